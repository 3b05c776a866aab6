"""Image files of every odd sort: the pixels that Pillow's convert("RGB") gives, or one error that names the file."""

import io

import numpy as np
import pytest
from PIL import Image

from vitlab.data.crop import central_squares, resize_crops
from vitlab.data.decode import BadImageError, decode

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (40, 56, 3), dtype=np.uint8)
SMOOTH = np.stack([*np.meshgrid(np.arange(56) * 4, np.arange(40) * 6), np.full((40, 56), 90)], -1).astype(np.uint8)


def by_pillow(file):
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def rotated():
    image, exif = Image.fromarray(SMOOTH), Image.Exif()
    exif[0x0112] = 6
    return image, {"exif": exif}


ODD = {
    "grey.jpg": lambda: (Image.fromarray(SMOOTH).convert("L"), {}),
    "grey.png": lambda: (Image.fromarray(NOISE).convert("L"), {}),
    "cmyk.jpg": lambda: (Image.fromarray(SMOOTH).convert("CMYK"), {}),
    "palette.png": lambda: (Image.fromarray(SMOOTH).convert("P"), {}),
    "palette.gif": lambda: (Image.fromarray(SMOOTH).convert("P"), {}),
    "transparent.png": lambda: (Image.fromarray(np.concatenate([NOISE, NOISE[..., :1]], -1)), {}),
    "bits.png": lambda: (Image.fromarray(NOISE).convert("1"), {}),
    "rotated.jpg": rotated,
    "pixel.jpg": lambda: (Image.fromarray(NOISE[:1, :1]), {}),
    "pixel.png": lambda: (Image.fromarray(NOISE[:1, :1]), {}),
    "line.jpg": lambda: (Image.fromarray(SMOOTH[:1]), {}),
    "progressive.jpg": lambda: (Image.fromarray(SMOOTH), {"progressive": True}),
    "subsampled.jpg": lambda: (Image.fromarray(SMOOTH), {"subsampling": 2, "quality": 60}),
    "full.jpg": lambda: (Image.fromarray(NOISE), {"subsampling": 0, "quality": 95}),
    "rgb.jpg": lambda: (Image.fromarray(SMOOTH), {"keep_rgb": True}),
    "image.webp": lambda: (Image.fromarray(SMOOTH), {}),
    "image.bmp": lambda: (Image.fromarray(NOISE), {}),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_files_are_read_as_pillow_reads_them(tmp_path, name):
    image, options = ODD[name]()
    image.save(tmp_path / name, **options)
    ours, theirs = decode(tmp_path / name), by_pillow(tmp_path / name)
    assert ours.dtype == np.uint8 and ours.shape == theirs.shape
    assert np.abs(ours.astype(int) - theirs).max() <= 1, "two builds of libjpeg may round differently"


@pytest.mark.parametrize("extension", ["jpg", "png", "webp"])
def test_a_name_says_nothing_of_the_format(tmp_path, extension):
    """ImageNet has a PNG named .JPEG."""
    Image.fromarray(NOISE).save(tmp_path / "x", format="PNG")
    file = (tmp_path / "x").rename(tmp_path / f"x.{extension}")
    assert np.array_equal(decode(file), NOISE)


def jpeg():
    stream = io.BytesIO()
    Image.fromarray(NOISE).save(stream, "JPEG")
    return stream.getvalue()


def png():
    stream = io.BytesIO()
    Image.fromarray(NOISE).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xd8", b"\xff\xd8\xff", jpeg()[:300], jpeg()[: len(jpeg()) // 2], png()[:60], png()[:-2000],
     b"not an image at all", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"<svg/>"],
    ids=["empty", "two bytes", "three bytes", "header", "half a jpeg", "png's head", "half a png", "text",
         "png's name", "gif's name", "svg"],
)  # fmt: skip
def test_what_is_no_whole_image_is_named(tmp_path, content):
    file = tmp_path / "broken.jpg"
    file.write_bytes(content)
    with pytest.raises(BadImageError, match=r"broken\.jpg: .{5}") as raised:
        decode(file)
    assert "\n" not in str(raised.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(BadImageError, match=r"gone\.jpg: cannot be read \(No such file"):
        decode(tmp_path / "gone.jpg")
    with pytest.raises(BadImageError, match=r"cannot be read \(Is a directory"):
        decode(tmp_path)


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (3, 200), (300, 7)])
def test_extreme_shapes_can_be_cropped_and_evaluated(shape):
    image = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert central_squares([image], 32, 0.875).shape == (1, 3, 32, 32)
    assert resize_crops([image], np.array([[0, 0, *shape]]), 32, "bicubic").shape == (1, 3, 32, 32)


def test_a_resized_crop_is_pillows(tmp_path):
    """Pillow resizes in 22-bit fixed point, torch in 16-bit: at most one level apart on noise."""
    box = np.array([[5, 7, 30, 41]])
    ours = resize_crops([NOISE], box, 16, "bicubic")[0].permute(1, 2, 0).numpy()
    theirs = Image.fromarray(NOISE).crop((7, 5, 48, 35)).resize((16, 16), Image.Resampling.BICUBIC)
    assert np.abs(ours.astype(int) - np.asarray(theirs)).max() <= 1
