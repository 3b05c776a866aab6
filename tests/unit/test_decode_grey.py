"""Grey of more than 8 bits, as cameras, scanners and microscopes write it: never clipped to white."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from vitlab.data.decode import BadImageError, Reading, decode

MINMAX = Reading(grey16="minmax")
RAMP = np.linspace(0, 65535, 32 * 48).round().astype(np.uint16).reshape(32, 48)


def png16(values):
    """A PNG of 16 bits, grey (H, W) or colour (H, W, 3), written by hand: big endian, unfiltered."""
    height, width = values.shape[:2]
    lines = values.astype(">u2").reshape(height, -1).view(np.uint8)
    lines = np.concatenate([np.zeros((height, 1), np.uint8), lines], axis=1)
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2 * (values.ndim == 3), 0, 0, 0)),
        (b"IDAT", zlib.compress(lines.tobytes())),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )


def tiff(values, *, bits=None, sample_format=1, photometric=1, order="<", packed=None):
    """An uncompressed TIFF of one strip, written by hand. `photometric` 0: the smallest value is white."""
    values = np.ascontiguousarray(values)
    pixels = packed if packed is not None else values.astype(values.dtype.newbyteorder(order)).tobytes()
    tags = [
        (256, 4, values.shape[1]), (257, 4, values.shape[0]), (258, 3, bits or values.itemsize * 8), (259, 3, 1),
        (262, 3, photometric), (273, 4, 8), (277, 3, 1), (278, 4, values.shape[0]), (279, 4, len(pixels)),
        (339, 3, sample_format),
    ]  # fmt: skip
    at = 8 + len(pixels) + len(pixels) % 2
    entries = b"".join(
        struct.pack(order + "HHI", tag, kind, 1) + struct.pack(order + ("I" if kind == 4 else "Hxx"), value)
        for tag, kind, value in tags
    )
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, at)
    directory = struct.pack(order + "H", len(tags)) + entries + struct.pack(order + "I", 0)
    return head + pixels + b"\0" * (len(pixels) % 2) + directory


def packed_12_bits(values):
    bits = np.unpackbits(values.astype(">u2").view(np.uint8)).reshape(*values.shape, 16)[..., 4:]
    return np.packbits(bits.reshape(values.shape[0], -1), axis=1).tobytes()


def written(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    return tmp_path / name


def scaled(values, white):
    return np.repeat(np.rint(values * (255 / white)).astype(np.uint8)[..., None], 3, axis=2)


def test_the_fault_that_this_is_about(tmp_path):
    """Pillow's own conversion makes everything above 255 white."""
    file = written(tmp_path, "x.png", png16(RAMP))
    assert np.asarray(Image.open(file).convert("RGB")).mean() > 250
    assert abs(decode(file).mean() - 127.5) < 1


@pytest.mark.parametrize("name", ["pillow.png", "pillow.tif", "pillow.pgm"])
def test_16_bits_by_the_range_of_the_format(tmp_path, name):
    Image.fromarray(RAMP).save(tmp_path / name)
    assert np.array_equal(decode(tmp_path / name), scaled(RAMP, 65535))


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bits_of_other_writers(tmp_path, order):
    assert np.array_equal(decode(written(tmp_path, "x.png", png16(RAMP))), scaled(RAMP, 65535))
    assert np.array_equal(decode(written(tmp_path, "x.tif", tiff(RAMP, order=order))), scaled(RAMP, 65535))


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_16_bits_compressed(tmp_path, compression):
    Image.fromarray(RAMP).save(tmp_path / "x.tif", compression=compression)
    assert np.array_equal(decode(tmp_path / "x.tif"), scaled(RAMP, 65535))


def test_12_bits_have_a_range_of_their_own(tmp_path):
    values = (RAMP >> 4).astype(np.uint16)
    content = tiff(values, bits=12, packed=packed_12_bits(values))
    assert np.array_equal(decode(written(tmp_path, "x.tif", content)), scaled(values, 4095))


def test_a_portable_graymap_scales_by_the_largest_value_that_it_names(tmp_path):
    """PGM says its white itself: 4095 here."""
    values = (RAMP >> 4).astype(">u2")
    content = b"P5 48 32 4095\n" + values.tobytes()
    assert np.abs(decode(written(tmp_path, "x.pgm", content)).astype(int) - scaled(values, 4095)).max() <= 1


def test_where_the_smallest_value_is_white(tmp_path):
    """Many X-ray films are stored so; of 8 bits Pillow inverts them itself."""
    content = tiff(RAMP, photometric=0)
    assert np.array_equal(decode(written(tmp_path, "x.tif", content)), 255 - scaled(RAMP, 65535))
    eight = tiff((RAMP >> 8).astype(np.uint8), photometric=0)
    assert np.array_equal(decode(written(tmp_path, "y.tif", eight))[..., 0], 255 - (RAMP >> 8))


def test_minmax_uses_each_images_own_extremes(tmp_path):
    dark = (RAMP // 20 + 300).astype(np.uint16)
    file = written(tmp_path, "x.png", png16(dark))
    assert decode(file).max() == 14
    ours = decode(file, MINMAX)
    assert ours.min() == 0 and ours.max() == 255
    expected = np.rint((dark - 300.0) * 255 / (dark.max() - 300)).astype(np.uint8)
    assert np.array_equal(ours[..., 1], expected)
    constant = written(tmp_path, "y.png", png16(np.full((4, 4), 777, np.uint16)))
    assert not decode(constant, MINMAX).any()


FLOATS = RAMP.astype(np.float32) / 65535 * 3 - 1
UNSIGNED_32 = RAMP.astype(np.uint32) * 65536
NO_RANGE = {
    "32-bit float grey": (tiff(FLOATS, sample_format=3), RAMP),
    "signed 16-bit grey": (tiff((RAMP.astype(np.int32) - 32768).astype(np.int16), sample_format=2), RAMP),
    "signed 32-bit grey": (tiff(RAMP.astype(np.int32) - 40000, sample_format=2), RAMP),
    "32-bit grey": (tiff(UNSIGNED_32, sample_format=1), RAMP),
}


@pytest.mark.parametrize("kind", NO_RANGE)
def test_grey_without_a_range_is_refused_by_name_or_scaled_when_asked(tmp_path, kind):
    content, ramp = NO_RANGE[kind]
    file = written(tmp_path, "depth.tif", content)
    with pytest.raises(BadImageError, match=rf"depth\.tif: {kind} .* dataset\.grey16=minmax scales") as raised:
        decode(file)
    assert "\n" not in str(raised.value)
    assert np.array_equal(decode(file, MINMAX), scaled(ramp, 65535))


def test_values_that_are_no_numbers_are_black(tmp_path):
    values = FLOATS.copy()
    values[0, :5] = np.nan, np.inf, -np.inf, np.nan, np.nan
    ours = decode(written(tmp_path, "x.tif", tiff(values, sample_format=3)), MINMAX)
    assert ours[0, 0].tolist() == ours[0, 1].tolist() == [0, 0, 0] and ours.max() == 255
    nothing = written(tmp_path, "y.tif", tiff(np.full((3, 3), np.nan, np.float32), sample_format=3))
    with pytest.raises(BadImageError, match=r"y\.tif: 32-bit float grey without a single finite value"):
        decode(nothing, MINMAX)


def test_other_images_are_the_same_whatever_the_choice(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    for name, picture in (("x.jpg", noise), ("x.png", noise), ("y.png", noise[..., 0])):
        Image.fromarray(picture).save(tmp_path / name)
        assert np.array_equal(decode(tmp_path / name), decode(tmp_path / name, MINMAX))


def test_16_bits_in_colour_keep_their_upper_half(tmp_path):
    colour = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], -1)
    assert np.array_equal(decode(written(tmp_path, "x.png", png16(colour))), (colour >> 8).astype(np.uint8))
