"""Policies, erasing and mixing: their distributions compared with timm's, and that no batch changes a sample."""

import dataclasses
import hashlib
import re
from collections import Counter

import numpy as np
import pytest
import torch
from timm.data.auto_augment import AugmentOp, auto_augment_policy_original, rand_augment_transform
from timm.data.mixup import Mixup

from vitlab.config import AugmentConfig, choice, parse_policies
from vitlab.core.random import INCREMENT, Draws, finalise
from vitlab.data.augment import Augment, mix
from vitlab.data.augment.erasing import counter_bits, counter_normal, erase_boxes, fill_with_noise
from vitlab.data.augment.mixing import draw_mixing, smooth
from vitlab.data.augment.policies import (
    IMAGENET_POLICY,
    plan_auto_augment,
    plan_color_jitter,
    plan_rand_augment,
)

MANY = Draws(seed=0, epoch=0, index=np.arange(60_000))


def canonical(name):
    """timm's name of an operation → ours."""
    stem = re.sub("Increasing|Original|Rel", "", name)
    special = {"AutoContrast": "autocontrast", "SolarizeAdd": "solarize_add", "ShearX": "shear_x", "ShearY": "shear_y",
               "TranslateX": "translate_x", "TranslateY": "translate_y"}  # fmt: skip
    return special.get(stem, stem.lower())


def test_the_imagenet_policy_is_timms():
    ours = [[(canonical(n), p, m) for n, p, m in policy] for policy in IMAGENET_POLICY]
    theirs = [
        [(canonical(op.name), op.prob, op.magnitude) for op in policy] for policy in auto_augment_policy_original({})
    ]
    assert ours == theirs


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "rand-m7-n3-mstd0.5-p0.8", "rand-m10-inc1"])
def test_rand_augment_has_timms_distribution(policy):
    """The share of every operation, and the quantiles of every parameter, from 60,000 samples of each."""
    plan = plan_rand_augment(parse_policies(policy)[0][1], MANY)
    reference = rand_augment_transform(policy, {"translate_pct": 0.45, "img_mean": (124, 116, 104)})
    assert {canonical(op.name) for op in reference.ops} == set(plan.names.ravel()) - {""}
    assert plan.names.shape[1] == reference.num_layers
    share = (plan.names != "").mean()
    assert share == pytest.approx(reference.ops[0].prob, abs=0.01)
    counts = Counter(plan.names.ravel())
    for op in reference.ops:
        name = canonical(op.name)
        assert counts[name] / (plan.names != "").sum() == pytest.approx(1 / 15, abs=0.005)
        ours = np.sort(plan.values[plan.names == name])
        theirs = np.sort([timm_value(op) for _ in range(4000)])
        quantiles = np.linspace(0.05, 0.95, 10)
        scale = max(1e-6, np.abs(theirs).max())
        assert np.abs(np.quantile(ours, quantiles) - np.quantile(theirs, quantiles)).mean() < 0.15 * scale, name


def timm_value(op: AugmentOp) -> float:
    """The argument that timm's operation would get, drawn as timm draws it."""
    seen = []
    op.aug_fn, prob, op.prob = (lambda img, *args, **_: seen.append(args)), op.prob, 1.0
    op(None)
    op.prob = prob
    return float(seen[0][0]) if seen[0] else 0.0


def test_auto_augment_applies_each_operation_as_often_as_timm():
    plan = plan_auto_augment({}, MANY)
    expected = Counter()
    for policy in auto_augment_policy_original({}):
        for op in policy:
            expected[canonical(op.name)] += op.prob / 25
    counts = Counter(plan.names.ravel())
    for name, rate in expected.items():
        assert counts[name] / len(MANY) == pytest.approx(rate, abs=0.012), name


def test_color_jitter_draws_every_order_and_factor():
    plan = plan_color_jitter(0.4, MANY)
    orders = Counter(map(tuple, plan.names))
    assert len(orders) == 6 and min(orders.values()) > 9_400
    assert plan.values.min() >= 0.6 and plan.values.max() <= 1.4
    assert plan.values.mean() == pytest.approx(1.0, abs=0.003)


DATASET = dataclasses.replace(choice("dataset", "digits"), hflip=0.5)
ALL_ON = dataclasses.replace(choice("augment", "deit"), color_jitter=0.4, erase=0.9, mix_group=4)


@pytest.mark.parametrize(
    "augment", [ALL_ON, choice("augment", "autoaug"), choice("augment", "jitter")], ids=["all", "aa", "jitter"]
)
def test_a_sample_does_not_depend_on_its_batch(augment):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (24, 3, 20, 20), dtype=torch.uint8, generator=generator)
    draws = Draws(5, 2, np.arange(100, 124), np.arange(24) % 3)
    engine = Augment(augment, DATASET)
    whole = engine(images, draws)
    for rows in (slice(0, 5), slice(5, 6), slice(6, 24)):
        assert torch.equal(whole[rows], engine(images[rows], draws.select(rows)))
    other = engine(images, dataclasses.replace(draws, epoch=3))
    assert not torch.equal(whole, other)


def test_nothing_is_left_on_when_all_is_off():
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    engine = Augment(AugmentConfig(), choice("dataset", "digits"))
    expected = (images.float() / 255 - 0.5) / 0.5
    assert torch.allclose(engine(images, Draws(0, 0, np.arange(4))), expected, atol=1e-6)


def test_erasing_follows_zhong():
    boxes = erase_boxes(0.25, 224, 224, MANY)
    erased = boxes[boxes[:, 2] > 0]
    assert len(erased) / len(boxes) == pytest.approx(0.25, abs=0.006)
    area, aspect = erased[:, 2] * erased[:, 3] / 224**2, erased[:, 2] / erased[:, 3]
    assert area.min() > 0.018 and area.max() < 0.34 and aspect.min() > 0.28 and aspect.max() < 3.5
    assert (erased[:, 0] + erased[:, 2] <= 224).all() and (erased[:, 1] + erased[:, 3] <= 224).all()
    assert area.mean() == pytest.approx((0.02 + 1 / 3) / 2, abs=0.006)


def test_erasing_comes_after_normalisation():
    augment = AugmentConfig(erase=1.0)
    images = torch.full((200, 3, 16, 16), 128, dtype=torch.uint8)
    out = Augment(augment, DATASET)(images, Draws(0, 0, np.arange(200)))
    noise = out[(out - out.mode().values.mode().values.mode().values.mode().values).abs() > 1e-3]
    assert abs(float(noise.mean())) < 0.02 and float(noise.std()) == pytest.approx(1, abs=0.02)


def test_erasing_touches_its_boxes_only():
    images = torch.zeros(50, 3, 14, 18)
    draws = Draws(0, 0, np.arange(50))
    boxes = erase_boxes(0.6, 14, 18, draws)
    fill_with_noise(images, boxes, draws)
    for image, (top, left, height, width) in zip(images, boxes, strict=True):
        assert bool((image[:, top : top + height, left : left + width] != 0).all())
        image[:, top : top + height, left : left + width] = 0
    assert not images.any()


def test_the_memory_layout_does_not_matter():
    images = torch.randint(0, 256, (20, 3, 16, 16), dtype=torch.uint8)
    draws = Draws(0, 0, np.arange(20))
    engine = Augment(ALL_ON, DATASET)
    assert torch.equal(engine(images, draws), engine(images.to(memory_format=torch.channels_last), draws))


def test_noise_and_draws_have_one_generator():
    generator = np.random.default_rng(0)
    keys = np.append(generator.integers(0, 2**64, 1000, dtype=np.uint64), np.uint64(1234567))
    counters = np.append(generator.integers(0, 2**62, 1000, dtype=np.uint64), np.uint64(0))
    on_host = finalise(keys + (counters + np.uint64(1)) * np.uint64(INCREMENT))
    on_device = counter_bits(torch.from_numpy(keys.view(np.int64)), torch.from_numpy(counters.view(np.int64)))
    assert np.array_equal(on_device.numpy().view(np.uint64), on_host)
    assert int(on_host[-1]) == 6457827717110365317, "the first number that the published SplitMix64 gives from 1234567"


def test_draws_keep_their_bits():
    bits = Draws(7, 3, np.arange(1000)).bits("crop", 5)
    assert hashlib.sha256(bits.tobytes()).hexdigest()[:16] == "1912507ff6d89422"


def test_counter_noise_is_normal_and_independent():
    keys, places = torch.arange(400).repeat_interleave(256), torch.arange(256).repeat(400)
    noise = counter_normal(keys, places).double()
    assert abs(float(noise.mean())) < 0.005 and float(noise.std()) == pytest.approx(1, abs=0.005)
    assert float((noise**4).mean()) == pytest.approx(3, abs=0.05)
    channels = np.corrcoef(noise.numpy().T) - np.eye(3)
    flat = noise.view(400, -1)
    assert np.abs(channels).max() < 0.015
    assert abs(float((flat[1:] * flat[:-1]).mean())) < 0.01 and abs(float((flat[:, 3:] * flat[:, :-3]).mean())) < 0.01


@pytest.mark.parametrize("name", ["mixup", "cutmix", "deit"])
def test_mixing_is_timms_at_equal_lambda(name, monkeypatch):
    """One group at a time compared with timm's Mixup(mode="batch") that is given our lambda and box."""
    augment = dataclasses.replace(choice("augment", name), mix_group=8)
    images = torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(8) % 5
    for group in range(20):
        draws = Draws(3, 1, np.array([group]))
        lam, boxes, cuts = draw_mixing(augment, 12, 12, draws)
        ours, targets = mix(augment, images, labels, num_classes=5, draws_of_groups=draws)
        theirs = Mixup(augment.mixup, augment.cutmix, label_smoothing=augment.smoothing, num_classes=5)
        monkeypatch.setattr(theirs, "_params_per_batch", lambda lam=lam, cuts=cuts: (float(lam[0]), bool(cuts[0])))
        box = tuple(int(v) for v in boxes[0])
        monkeypatch.setattr(
            "timm.data.mixup.cutmix_bbox_and_lam", lambda *a, lam=lam, box=box, **k: (box, float(lam[0]))
        )
        expected = images.clone()
        expected, expected_targets = theirs(expected, labels)
        assert torch.allclose(ours, expected, atol=1e-5)
        assert torch.allclose(targets, expected_targets.to(targets), atol=1e-5)


def test_mixing_draws_lambda_from_beta():
    augment = choice("augment", "mixup")
    lam, _, cuts = draw_mixing(augment, 32, 32, MANY)
    assert not cuts.any()
    assert lam.mean() == pytest.approx(0.5, abs=0.005)
    assert lam.var() == pytest.approx(1 / (4 * (2 * 0.8 + 1)), abs=0.003)  # of Beta(a, a)
    both = draw_mixing(choice("augment", "deit"), 32, 32, MANY)[2]
    assert both.mean() == pytest.approx(0.5, abs=0.01)


def test_groups_do_not_depend_on_how_a_batch_is_split():
    augment = dataclasses.replace(choice("augment", "deit"), mix_group=4)
    images, labels = torch.randn(16, 3, 8, 8), torch.arange(16) % 10
    groups = Draws(0, 0, np.arange(4))
    whole, targets = mix(augment, images, labels, num_classes=10, draws_of_groups=groups)
    halves = [mix(augment, images[s], labels[s], num_classes=10, draws_of_groups=groups.select(g))
              for s, g in ((slice(0, 8), slice(0, 2)), (slice(8, 16), slice(2, 4)))]  # fmt: skip
    assert torch.equal(whole, torch.cat([h[0] for h in halves]))
    assert torch.equal(targets, torch.cat([h[1] for h in halves]))
    with pytest.raises(ValueError, match="mix_group"):
        mix(augment, images[:6], labels[:6], num_classes=10, draws_of_groups=groups)


def test_targets_say_which_loss():
    labels = torch.tensor([1, 0])
    plain = mix(
        AugmentConfig(), torch.zeros(2, 3, 4, 4), labels, num_classes=3, draws_of_groups=Draws(0, 0, np.arange(1))
    )
    assert plain[1] is labels
    smoothed = smooth(labels, 3, 0.3)
    assert torch.allclose(smoothed, torch.tensor([[0.1, 0.8, 0.1], [0.8, 0.1, 0.1]]))


@pytest.mark.parametrize("size", [(19, 37), (28, 28), (61, 53)])
def test_no_split_changes_a_bit_at_odd_sizes(size):
    """Vector units treat the end of an array apart from its body; where a sample lies must not matter all the same."""
    images = torch.randint(0, 256, (40, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    draws = Draws(1, 0, np.arange(40))
    engine = Augment(ALL_ON, DATASET)
    whole = engine(images, draws)
    shuffled = np.random.default_rng(0).permutation(40)
    assert torch.equal(whole[shuffled], engine(images[shuffled], draws.select(shuffled)))
    singles = [engine(images[i : i + 1], draws.select(slice(i, i + 1))) for i in range(40)]
    assert torch.equal(whole, torch.cat(singles))


def test_images_are_left_as_they_were():
    images = torch.randint(0, 256, (12, 3, 16, 16), dtype=torch.uint8)
    before = images.clone()
    Augment(ALL_ON, DATASET)(images, Draws(0, 0, np.arange(12)))
    assert torch.equal(images, before)


def test_an_odd_group_is_refused():
    augment = AugmentConfig(mixup=0.8, mix_group=3)
    with pytest.raises(ValueError, match="even divisor"):
        mix(
            augment, torch.zeros(6, 3, 4, 4), torch.zeros(6, dtype=torch.long), num_classes=2,
            draws_of_groups=Draws(0, 0, np.arange(2)),
        )  # fmt: skip
