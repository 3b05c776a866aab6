"""TrivialAugment, 3-Augment and AugMix: distributions and pixels compared with torchvision's, Pillow's and timm's."""

import dataclasses
import random
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps
from sklearn.datasets import load_sample_images
from timm.data.auto_augment import augment_and_mix_transform
from torchvision.transforms import InterpolationMode, TrivialAugmentWide
from torchvision.transforms.autoaugment import _apply_op

from vitlab.config import ConfigError, choice, parse_policies
from vitlab.core.plugins import POLICIES
from vitlab.core.random import Draws
from vitlab.data.augment import Augment
from vitlab.data.augment.augmix import plan_augmix
from vitlab.data.augment.operations import build_operations
from vitlab.data.augment.three import plan_three
from vitlab.data.augment.trivial import ENHANCING, SPACE, plan_trivial

MANY = Draws(seed=0, epoch=0, index=np.arange(60_000))
PHOTOS = [np.ascontiguousarray(photo[40:168, 60:220]) for photo in load_sample_images().images]
OPERATIONS = build_operations((124, 116, 104), "bicubic")


def ours(name, photo, value):
    """The photo (H, W, 3) after one operation."""
    batch = torch.from_numpy(photo).permute(2, 0, 1)[None]
    return OPERATIONS[name](batch, torch.tensor([value], dtype=torch.float32))[0].permute(1, 2, 0).numpy()


def test_the_trivial_space_is_torchvisions():
    theirs = TrivialAugmentWide()._augmentation_space(31)
    assert list(theirs) == list(SPACE)
    for name, (magnitudes, signed) in theirs.items():
        operation, values, has_sign = SPACE[name]
        expected = np.broadcast_to(magnitudes.numpy().astype(float), 31)
        if name.startswith("Translate"):
            expected = np.trunc(expected)  # as _apply_op truncates it
        assert has_sign == signed and np.allclose(values, expected, atol=1e-5), (name, operation)


def test_trivial_draws_every_operation_and_strength_equally_often():
    plan = plan_trivial({}, MANY)
    assert plan.names.shape == (len(MANY), 1)
    counts = Counter(plan.names.ravel())
    assert set(counts) == {name for name, _, _ in SPACE.values()}
    assert all(count / len(MANY) == pytest.approx(1 / 14, abs=0.005) for count in counts.values())
    shear = plan.values[plan.names == "nearest_shear_x"]
    assert len(np.unique(shear)) == 61 and shear.mean() == pytest.approx(0, abs=0.03)
    bright = plan.values[plan.names == "brightness"]
    assert bright.min() == pytest.approx(0.01) and bright.max() == pytest.approx(1.99)


@pytest.mark.parametrize("name", SPACE)
def test_trivial_changes_pixels_as_torchvision_does(name):
    operation, values, signed = SPACE[name]
    for photo in PHOTOS:
        for magnitude in {sign * values[bin_] for bin_ in (1, 15, 30) for sign in ((1, -1) if signed else (1,))}:
            expected = _apply_op(Image.fromarray(photo), name, magnitude, InterpolationMode.NEAREST, None)
            value = 1 + magnitude if operation in ENHANCING else magnitude
            # torchvision shifts to the right, Pillow's affine data say where a pixel comes from
            value = -value if operation in ("nearest_shift_x", "nearest_shift_y") else value
            found = ours(operation, photo, value) if operation else photo
            difference = np.abs(found.astype(int) - np.asarray(expected).astype(int))
            assert np.mean(difference > 1) < 0.02, (name, magnitude, np.mean(difference > 1))


@pytest.mark.parametrize("sigma", [0.1, 0.4, 0.75, 1.0, 1.3, 1.7, 2.0])
def test_blur_has_pillows_pixels(sigma):
    for photo in PHOTOS:
        expected = np.asarray(Image.fromarray(photo).filter(ImageFilter.GaussianBlur(sigma)))
        difference = np.abs(ours("gaussian_blur", photo, sigma).astype(int) - expected.astype(int))
        assert difference.max() <= 1 and np.mean(difference > 0) < 0.001


def test_three_takes_one_of_three():
    plan = plan_three({}, MANY)
    counts = Counter(plan.names.ravel())
    assert set(counts) == {"grayscale", "solarize", "gaussian_blur"}
    assert all(count / len(MANY) == pytest.approx(1 / 3, abs=0.01) for count in counts.values())
    sigma = plan.values[plan.names == "gaussian_blur"]
    assert 0.1 <= sigma.min() < 0.11 and 1.99 < sigma.max() <= 2.0 and sigma.mean() == pytest.approx(1.05, abs=0.02)
    grey = np.asarray(ImageOps.grayscale(Image.fromarray(PHOTOS[0])))
    assert np.array_equal(ours("grayscale", PHOTOS[0], 0), np.repeat(grey[..., None], 3, 2))
    assert np.array_equal(ours("solarize", PHOTOS[0], 128), np.asarray(ImageOps.solarize(Image.fromarray(PHOTOS[0]))))


def test_augmix_draws_what_timm_draws():
    """The share of every operation, and the quantiles of its parameter, of the chains' lengths and of the weights."""
    from test_augment import canonical

    blend = plan_augmix(parse_policies("augmix-m5-w4")[0][1], MANY.select(slice(0, 20_000)))
    assert len(blend.chains) == 4
    lengths = Counter((blend.chains[1].names != "").sum(1))
    assert set(lengths) == {1, 2, 3} and all(n / 20_000 == pytest.approx(1 / 3, abs=0.015) for n in lengths.values())
    names = np.hstack([chain.names for chain in blend.chains])
    values = np.hstack([chain.values for chain in blend.chains])
    reference = augment_and_mix_transform("augmix-m5-w4", {"translate_pct": 0.3, "img_mean": (124, 116, 104)})
    assert {canonical(op.name) for op in reference.ops} == set(names.ravel()) - {""}
    random.seed(0)
    for op in reference.ops:
        name, seen = canonical(op.name), []
        op.aug_fn = lambda img, *args, seen=seen, **_: seen.append(args)
        for _ in range(3000):
            op(None)
        assert (names == name).sum() / (names != "").sum() == pytest.approx(1 / 13, abs=0.006), name
        if not seen[0]:
            continue
        theirs, mine = np.sort([float(args[0]) for args in seen]), np.sort(values[names == name])
        quantiles = np.linspace(0.05, 0.95, 10)
        scale = max(1e-6, np.abs(theirs).max())
        assert np.abs(np.quantile(mine, quantiles) - np.quantile(theirs, quantiles)).mean() < 0.06 * scale, name
    np.random.seed(0)
    dirichlet, beta = np.random.dirichlet([1.0] * 4, 20_000), np.random.beta(1.0, 1.0, 20_000)
    quantiles = np.linspace(0.05, 0.95, 10)
    assert np.allclose(np.quantile(blend.weights, quantiles), np.quantile(dirichlet, quantiles), atol=0.01)
    assert np.allclose(np.quantile(blend.share, quantiles), np.quantile(beta, quantiles), atol=0.02)


def test_augmix_blends_as_timm_does(monkeypatch):
    """timm's own blending, given our chains, weights and share; its older releases blend square images only."""
    photos = [photo[:128, :128] for photo in PHOTOS]
    engine = Augment(choice("augment", "augmix"), dataclasses.replace(choice("dataset", "digits"), hflip=0.0))
    draws = Draws(3, 1, np.arange(12))
    images = torch.from_numpy(np.stack([photos[i % 2] for i in range(12)])).permute(0, 3, 1, 2)
    found = engine.pixels(images, draws)
    (blend,) = engine.stages(draws)
    chains = [engine.carry_out(chain, images) for chain in blend.chains]
    transform = augment_and_mix_transform("augmix-m5-w4", {})
    for i in range(12):
        given = iter([Image.fromarray(chain[i].permute(1, 2, 0).numpy()) for chain in chains])
        monkeypatch.setattr("numpy.random.choice", lambda ops, depth, replace, given=given: [lambda _: next(given)])
        original = Image.fromarray(photos[i % 2])
        expected = transform._apply_basic(original, np.float32(blend.weights[i]), np.float32(blend.share[i]))
        difference = np.abs(found[i].permute(1, 2, 0).numpy().astype(int) - np.asarray(expected).astype(int))
        assert difference.max() <= 1 and np.mean(difference > 0) < 0.01


@pytest.mark.parametrize("name", ["trivial", "three", "augmix", "rand-m9-mstd0.5-inc1+three"])
def test_a_sample_does_not_depend_on_its_batch(name):
    condition = choice("augment", name) if "+" not in name else dataclasses.replace(
        choice("augment", "randaug"), auto_augment=name)  # fmt: skip
    images = torch.randint(0, 256, (24, 3, 20, 21), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    draws = Draws(5, 2, np.arange(100, 124), np.arange(24) % 3)
    engine = Augment(condition, dataclasses.replace(choice("dataset", "digits"), hflip=0.5))
    whole = engine(images, draws)
    for rows in (slice(0, 5), slice(5, 6), slice(6, 24)):
        assert torch.equal(whole[rows], engine(images[rows], draws.select(rows)))


@pytest.mark.parametrize(
    "text", ["trivial-m9", "rand-x9", "rand-m", "augmix-b1", "nothing", "rand-m9+", "", "original-m1"]
)
def test_an_unknown_policy_is_refused(text):
    with pytest.raises(ConfigError, match=r"augment\.auto_augment: got .*allowed: null, or one of original, rand-m9"):
        parse_policies(text)


def test_every_policy_that_ships_is_known_before_it_is_imported():
    for name in POLICIES.names():
        before = dict(POLICIES.about(name))
        POLICIES[name]
        assert tuple(before.get("options", ())) == tuple(POLICIES.about(name).get("options", ()))
