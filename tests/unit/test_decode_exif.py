"""Photos that a camera stored lying down: as they are stored, or upright when asked."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from vitlab.config import DatasetConfig
from vitlab.data.decode import Reading, decode, decode_bytes, reading_of
from vitlab.data.sources.listing import reads_avif
from vitlab.explain.pictures import load_pictures

UPRIGHT = Reading(upright=True)
SMOOTH = np.stack([*np.meshgrid(np.arange(56) * 4, np.arange(40) * 6), np.full((40, 56), 90)], -1).astype(np.uint8)
FORMATS = {".jpg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".tif": "TIFF", ".avif": "AVIF"}


def photo(how, format="JPEG", **options):
    exif, stream = Image.Exif(), io.BytesIO()
    exif[0x0112] = how
    Image.fromarray(SMOOTH).save(stream, format, exif=exif, **options)
    return stream.getvalue()


@pytest.mark.parametrize("how", range(1, 9))
@pytest.mark.parametrize("suffix", FORMATS)
def test_upright_is_pillows_exif_transpose(tmp_path, suffix, how):
    if suffix == ".avif" and not reads_avif():
        pytest.skip("this Pillow has no AVIF")
    file = tmp_path / f"photo{suffix}"
    file.write_bytes(photo(how, FORMATS[suffix]))
    with Image.open(file) as image:
        stored, upright = np.asarray(image.convert("RGB")), np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    ours = decode(file, UPRIGHT)
    assert ours.shape == upright.shape == ((56, 40, 3) if how > 4 else (40, 56, 3))
    assert np.abs(ours.astype(int) - upright).max() <= 1, "two builds of libjpeg may round differently"
    assert np.abs(decode(file).astype(int) - stored).max() <= 1


def test_a_grey_photo_and_one_that_only_pillow_reads():
    exif, stream = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.fromarray(SMOOTH).convert("CMYK").save(stream, "JPEG", exif=exif)
    assert decode_bytes(stream.getvalue(), "cmyk.jpg", UPRIGHT).shape == (56, 40, 3)
    stream = io.BytesIO()
    Image.fromarray(SMOOTH[..., 0]).save(stream, "JPEG", exif=exif)
    assert decode_bytes(stream.getvalue(), "grey.jpg", UPRIGHT).shape == (56, 40, 3)
    stream = io.BytesIO()
    Image.fromarray(SMOOTH[..., 0].astype(np.uint16) * 200).save(stream, "PNG", exif=exif)
    assert decode_bytes(stream.getvalue(), "deep.png", UPRIGHT).shape == (56, 40, 3)


def test_a_damaged_rotation_leaves_the_pixels_as_they_are():
    """300 damages within the EXIF block: the photo is read, upright or as stored, and nothing is raised."""
    whole = photo(6)
    start = whole.index(b"Exif\0\0")
    end = start - 2 + int.from_bytes(whole[start - 2 : start], "big")
    rng = np.random.default_rng(0)
    shapes = set()
    for _ in range(300):
        content = bytearray(whole)
        for at in rng.integers(start + 6, end, rng.integers(1, 4)):
            content[at] = rng.integers(0, 256)
        shapes.add(decode_bytes(bytes(content), "photo.jpg", UPRIGHT).shape)
    assert shapes == {(40, 56, 3), (56, 40, 3)}


def test_a_data_set_says_how_its_files_are_read():
    assert reading_of(DatasetConfig("x", "folder")) == Reading()
    assert reading_of(DatasetConfig("x", "folder", exif="apply", grey16="minmax")) == Reading("minmax", True)


def test_a_file_that_the_user_names_is_shown_upright(tmp_path):
    """Whatever the data set does: the crop is that of the upright photo."""
    for how, name in ((1, "plain"), (6, "lying")):
        (tmp_path / f"{name}.jpg").write_bytes(photo(how, quality=95, subsampling=0))
    Image.fromarray(np.rot90(SMOOTH, -1)).save(tmp_path / "turned.jpg", quality=95, subsampling=0)
    data = DatasetConfig("plain", kind="folder", num_classes=3, eval_crop=1.0)
    plain, lying, turned = (
        load_pictures(str(tmp_path / f"{name}.jpg"), data, 40, "runs")[0].pixels.int()
        for name in ("plain", "lying", "turned")
    )
    assert (lying - turned).abs().max() <= 6 and (lying - plain).abs().max() > 100
