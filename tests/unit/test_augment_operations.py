"""Every operation against Pillow and timm at equal parameters."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from timm.data import auto_augment as timm_aa

from vitlab.data.augment.operations import build_operations

FILL = (124, 116, 104)
RNG = np.random.default_rng(0)


def pictures(size=(37, 45)):
    """Photographs in miniature, noise, a flat image and one with few levels: what histograms and edges trip over."""
    from sklearn.datasets import load_sample_images

    photos = [np.asarray(Image.fromarray(p).resize(size[::-1])) for p in load_sample_images().images]
    noise = RNG.integers(0, 256, (*size, 3), dtype=np.uint8)
    flat = np.full((*size, 3), 77, dtype=np.uint8)
    few = RNG.integers(0, 3, (*size, 3), dtype=np.uint8) * 90 + 20
    dark = (noise // 5 + 40).astype(np.uint8)
    return np.stack([*photos, noise, flat, few, dark])


def run(name, values, interpolation="bicubic"):
    images = pictures()
    batch = torch.from_numpy(images).permute(0, 3, 1, 2)
    out = build_operations(FILL, interpolation)[name](batch, torch.tensor(values, dtype=torch.float32))
    return images, out.permute(0, 2, 3, 1).numpy()


def worst(name, values, reference, interpolation="bicubic"):
    images, ours = run(name, values, interpolation)
    theirs = np.stack([np.asarray(reference(Image.fromarray(i), v)) for i, v in zip(images, values, strict=True)])
    return np.abs(ours.astype(int) - theirs.astype(int))


FACTORS = [0.1, 0.55, 1.0, 1.3, 1.9, 0.0]
POINTWISE = {
    "autocontrast": ([0.0] * 6, lambda i, _: ImageOps.autocontrast(i)),
    "equalize": ([0.0] * 6, lambda i, _: ImageOps.equalize(i)),
    "invert": ([0.0] * 6, lambda i, _: ImageOps.invert(i)),
    "posterize": ([1, 2, 4, 6, 7, 8], lambda i, v: ImageOps.posterize(i, int(v))),
    "solarize": ([0, 26, 128, 200, 255, 256], lambda i, v: ImageOps.solarize(i, int(v))),
    "solarize_add": ([0, 9, 50, 99, 110, 128], lambda i, v: timm_aa.solarize_add(i, int(v))),
    "color": (FACTORS, lambda i, v: ImageEnhance.Color(i).enhance(v)),
    "contrast": (FACTORS, lambda i, v: ImageEnhance.Contrast(i).enhance(v)),
    "brightness": (FACTORS, lambda i, v: ImageEnhance.Brightness(i).enhance(v)),
    "sharpness": (FACTORS, lambda i, v: ImageEnhance.Sharpness(i).enhance(v)),
}


@pytest.mark.parametrize("name", POINTWISE)
def test_pixelwise_operations_equal_pillow(name):
    values, reference = POINTWISE[name]
    """To the bit, but for autocontrast, whose levels are exact quotients here and rounded products in Pillow."""
    assert worst(name, values, reference).max() <= (name == "autocontrast")


def test_posterize_to_no_bits_is_black():
    """Level 10 of the increasing variant: Pillow before 12 made it black, Pillow 13 raises."""
    _, ours = run("posterize", [0] * 6)
    assert ours.max() == 0


GEOMETRIC = {
    "shear_x": ([-0.3, -0.1, 0.0, 0.07, 0.2, 0.3], timm_aa.shear_x),
    "shear_y": ([-0.3, -0.1, 0.0, 0.07, 0.2, 0.3], timm_aa.shear_y),
    "translate_x": ([-0.45, -0.2, 0.0, 0.1, 0.33, 0.45], timm_aa.translate_x_rel),
    "translate_y": ([-0.45, -0.2, 0.0, 0.1, 0.33, 0.45], timm_aa.translate_y_rel),
    "rotate": ([-30.0, -11.0, 0.0, 3.5, 17.0, 30.0], timm_aa.rotate),
}


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("name", GEOMETRIC)
def test_geometric_operations_follow_pillow(name, interpolation):
    """Within one level, but for the few pixels whose source lies on the border to within float32's rounding."""
    values, reference = GEOMETRIC[name]
    resample = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[interpolation]
    difference = worst(name, values, lambda i, v: reference(i, v, fillcolor=FILL, resample=resample), interpolation)
    assert np.mean(difference > 1) < 0.002, f"{np.mean(difference > 1):.4f} of the pixels differ by more than a level"


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("name", GEOMETRIC)
def test_photographs_and_flat_regions_move_as_in_pillow(name, interpolation):
    """No level is lost to float32 before truncation: only values at a whole level may fall either way."""
    values, reference = GEOMETRIC[name]
    resample = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[interpolation]
    difference = worst(name, values, lambda i, v: reference(i, v, fillcolor=FILL, resample=resample), interpolation)
    assert np.mean(difference[[0, 1, 3]] > 0) < 0.02
