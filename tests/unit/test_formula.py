"""FractalDB's mathematics, compared with a renderer that follows the definition step by step."""

import hashlib

import numpy as np
import pytest
from scipy.stats import chisquare

from benchmarks import fractal_by_definition as definition
from vitlab.config import ConfigError
from vitlab.data.formula import geometry, render
from vitlab.data.formula.search import Search

SIZE, POINTS = 64, 2000


@pytest.fixture(scope="module")
def published():
    """The first 40 categories."""
    return definition.search_categories(40, threads=2)


def digest(categories):
    return hashlib.sha256(np.concatenate(categories).astype("<f8").tobytes()).hexdigest()


def test_the_first_categories_are_the_published_ones(published):
    assert digest(published[:11]) == "be8659e22274a00e3a2cda98360caf2f3351a725e5a69f34fede4108028ebdc4"
    assert published[0].shape == (5, 7) and published[0].dtype == np.float64


@pytest.mark.slow
def test_all_thousand_categories_are_the_published_ones():
    assert digest(definition.search_categories(1000, threads=2)) == (
        "2d65f2678a859836c9a3d7f2c49fa3ece55f642dfb6d704e46451c8d0b70bf9a"
    )


def test_the_search_finds_what_its_definition_finds():
    found = definition.search_categories(2, seed=7, threshold=0.02)
    for ours, theirs in zip(found, definition.search(2, 7, 0.02), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_search_goes_on_where_it_stopped(published, threads):
    search = Search(1, 0.2)
    for count in (2, 3, 6):
        search.extend(count, threads=threads)
    assert digest(search.categories) == digest(published[:6])
    whole = Search(1, 0.2)
    whole.extend(6)
    assert search.candidates == whole.candidates


def test_a_search_that_finds_too_little_gives_up():
    with pytest.raises(ConfigError, match=r"fractal\.categories: 5 asked for, 0 found among 30 candidates"):
        definition.search_categories(5, threshold=0.35, patience=30)
    with pytest.raises(ConfigError, match=r"fractal\.threshold: got 0\.5; 100000 points fill at most 0\.381"):
        definition.search_categories(5, threshold=0.5)


def test_the_weights_are_the_published_ones():
    assert geometry.WEIGHTS.shape == (25, 6)
    assert (geometry.WEIGHTS[geometry.PLAIN_VARIANT] == 1).all()
    assert len(np.unique(geometry.WEIGHTS, axis=0)) == 25
    np.testing.assert_array_equal(geometry.WEIGHTS[4], [1.8, 1, 1, 1, 1, 1])
    np.testing.assert_array_equal(geometry.WEIGHTS[5], [1, 0.2, 1, 1, 1, 1])
    np.testing.assert_array_equal(geometry.WEIGHTS[24], [1, 1, 1, 1, 1, 1.8])


def assert_follows_the_definition(category):
    masks = np.random.default_rng(0).integers(1, 512, POINTS)
    codes = geometry.build_geometry(category, image_size=SIZE, num_points=POINTS)
    visits = geometry.last_visits(category, image_size=SIZE, num_points=POINTS)
    for variant, weights in enumerate(geometry.WEIGHTS):
        of_cells = np.concatenate([[0], masks])[visits[variant, 3:, 3:]]
        ours = definition.stamp(codes[variant], of_cells)
        np.testing.assert_array_equal(ours, definition.draw(category, weights.tolist(), masks.tolist(), SIZE))


@pytest.mark.parametrize("number", [0, 1, 5, 17])
def test_pictures_follow_the_definition(published, number):
    assert_follows_the_definition(published[number])


@pytest.mark.parametrize(("number", "growth"), [(0, 1.6), (2, 1.4), (5, 1.6), (1, 1.8)])
def test_pictures_that_run_away_follow_the_definition(published, number, growth):
    category = published[number] * np.array([growth] * 4 + [1.0] * 3)
    numbers = np.random.RandomState(100).random_sample(POINTS).tolist()
    maps = [np.concatenate([category[:, :6] * weights, category[:, 6:]], 1).tolist() for weights in geometry.WEIGHTS]
    diverging = sum(not np.isfinite(definition.walk(m, numbers)).all() for m in maps)
    assert diverging >= 2, "no test of diverging variants"
    assert_follows_the_definition(category)


def test_a_number_above_every_running_probability_moves_nothing():
    choices = geometry.choose_maps(np.array([0.5, 0.25]), np.array([0.5, 0.6, 0.75, 0.9, 0.0, 0.3]))
    assert choices.tolist() == [0, 1, 1, 2, 0]


def test_variants_can_be_made_alone(published):
    together = geometry.build_geometry(published[3], image_size=SIZE, num_points=POINTS)
    for variant in (0, 2, 13):
        alone = geometry.build_geometry(
            published[3], image_size=SIZE, num_points=POINTS, weights=geometry.WEIGHTS[[variant]]
        )
        np.testing.assert_array_equal(alone[0], together[variant])


def test_resampling_replaces_degenerate_variants_and_no_other(published):
    sizes = {"image_size": 128, "num_points": 20_000}
    kept = geometry.build_geometry(published[9], **sizes)
    again = geometry.resampled_geometry(published[9], 9, seed=1, **sizes)
    changed = (again != kept).any((1, 2))
    assert changed[[4, 16]].all() and changed.sum() < 5  # 4 runs away, 16 leaves specks
    assert ((again < geometry.EMPTY).mean((1, 2)) >= geometry.MIN_FILL).all()
    other = geometry.resampled_geometry(published[9], 9, seed=2, **sizes)
    assert (other[changed] != again[changed]).any()
    elsewhere = geometry.resampled_geometry(published[9], 8, seed=1, **sizes)
    assert (elsewhere[changed] != again[changed]).any()


def test_masks_are_uniform():
    keys = render.mask_keys(0, np.array([[c, v, 0] for c in range(4) for v in range(5)]))
    masks = np.stack([definition.masks_of(int(key), 362) for key in keys])
    assert masks.min() == 1 and masks.max() == 511
    assert chisquare(np.bincount(masks.ravel(), minlength=512)[1:]).pvalue > 1e-3
    pairs = masks[:, :, :-1].astype(np.int64) // 64 * 8 + masks[:, :, 1:] // 64  # neighbours are independent
    expected = np.outer(*[np.bincount(np.arange(1, 512) // 64)] * 2).ravel() / 511**2 * pairs.size
    assert chisquare(np.bincount(pairs.ravel(), minlength=64), expected).pvalue > 1e-3


def test_keys_differ_by_everything():
    pictures = np.array([[c, v, k] for c in range(20) for v in range(25) for k in range(10)])
    keys = [render.mask_keys(seed, pictures, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len(np.unique(np.concatenate(keys))) == 4 * len(pictures)


def test_instances_cover_the_published_set_and_spread_early():
    kinds = [render.instance(number) for number in range(2000)]
    assert {(k.variant, k.count, k.flip) for k in kinds[:1000]} == {
        (v, c, f) for v in range(25) for c in range(10) for f in range(4)
    }
    assert len(set(kinds)) == 2000 and {k.count for k in kinds[1000:]} == set(range(10, 20))
    assert kinds[0] == render.Instance(geometry.PLAIN_VARIANT, 0, 0)
    assert len({k.variant for k in kinds[:25]}) == 25
    assert len({k.flip for k in kinds[:100]}) == len({k.count for k in kinds[:100]}) == 4


@pytest.mark.parametrize("size", [SIZE, 65])
def test_rendering_is_stamping_the_masks_of_the_key(published, size):
    codes = geometry.build_geometry(published[2], image_size=size, num_points=POINTS)
    packed = render.pack(codes)
    np.testing.assert_array_equal(definition.unpack(packed, size), codes)
    for variant in range(25):
        key = 0x9E3779B97F4A7C15 * (variant + 1) % 2**64
        plain = definition.stamp(codes[variant], definition.masks_of(key, size))
        flipped = plain, plain[::-1], plain[:, ::-1], plain[::-1, ::-1]
        for flip, expected in enumerate(flipped):
            np.testing.assert_array_equal(render.render(packed[variant], key, flip=flip), expected)


def test_a_crop_is_a_slice_of_the_whole(published):
    packed = render.pack(geometry.build_geometry(published[4], image_size=65, num_points=POINTS))[2]
    rng = np.random.default_rng(0)
    for _ in range(200):
        top, left = rng.integers(0, 65, 2)
        height, width = rng.integers(1, 66 - top), rng.integers(1, 66 - left)
        flip = int(rng.integers(4))
        whole = render.render(packed, 7, flip=flip)
        part = render.render(packed, 7, flip=flip, box=(top, left, height, width))
        np.testing.assert_array_equal(part, whole[top : top + height, left : left + width])


def test_classes_can_be_told_apart(published):
    """Nearest neighbours on 16 x 16 occupancy know the class from other masks, and often from another variant."""
    size = 96
    codes = [geometry.build_geometry(c, image_size=size, num_points=20_000) for c in published]

    def features(seed, variants):
        rows, labels = [], []
        for number, packed in enumerate(map(render.pack, codes)):
            for variant in variants:
                key = int(render.mask_keys(seed, np.array([[number, variant, 0]]))[0])
                picture = render.render(packed[variant], key)
                rows.append((picture > 0).reshape(16, size // 16, 16, size // 16).mean((1, 3)).ravel())
                labels.append(number)
        return np.array(rows), np.array(labels)

    def accuracy(known, asked):
        (x, labels), (y, wanted) = known, asked
        nearest = ((y[:, None] - x[None]) ** 2).sum(-1).argmin(1)
        return (labels[nearest] == wanted).mean()

    full = [2, 7, 12, 17, 22]  # scaled upwards or not at all, so that few are degenerate
    assert accuracy(features(0, full), features(1, full)) > 0.95
    assert accuracy(features(0, range(0, 25, 2)), features(0, range(1, 25, 2))) > 0.4
