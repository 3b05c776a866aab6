"""FractalDB as files, and as a picture."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitlab.cli.fractal_task import run_fractaldb_task
from vitlab.config import ConfigError, FractalConfig
from vitlab.core import files
from vitlab.core.errors import UserError
from vitlab.data.formula.image_export import contact_sheet, encode_png, export, published_name
from vitlab.data.formula.render import instance
from vitlab.data.formula.source import FractalSource

SPEC = FractalConfig(categories=3, instances=30, image_size=41, num_points=3000)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def source(cache):
    return FractalSource(SPEC, cache)


def names(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names(folder)}


@pytest.mark.parametrize("width", [1, 7, 8, 41])
def test_our_png_is_read_by_others(tmp_path, width):
    picture = np.random.default_rng(width).integers(0, 2, (13, width), dtype=np.uint8) * 127
    (tmp_path / "x.png").write_bytes(encode_png(picture))
    with Image.open(tmp_path / "x.png") as image:
        image.verify()
    with Image.open(tmp_path / "x.png") as image:
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), np.repeat(picture[..., None], 3, 2))


def test_the_published_layout(source, tmp_path):
    tree = export(source, tmp_path, layout="published")
    assert tree == tmp_path / "FractalDB-3" and names(tmp_path / "FractalDB-3/00001")[0].startswith("00001_")
    assert len(names(tree)) == len(source)
    kind = instance(28)
    name = f"00002/00002_{kind.variant:02}_count_{kind.count}_flip{kind.flip}.png"
    with Image.open(tree / name) as image:
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), source.image(2 * 30 + 28))
    assert json.loads((tmp_path / "fractaldb.json").read_text(encoding="utf-8"))["search_seed"] == 1


def test_thousand_instances_have_the_published_names():
    made = {published_name(7, number) for number in range(1000)}
    published = {f"00007_{w:02}_count_{c}_flip{f}.png" for w in range(25) for c in range(10) for f in range(4)}
    assert made == published


def test_a_folder_reader_reads_the_train_layout(source, tmp_path):
    from torchvision.datasets import ImageFolder

    export(source, tmp_path, layout="train", threads=2)
    folder = ImageFolder(tmp_path / "train")
    assert tuple(folder.classes) == source.classes and len(folder) == len(source)
    ours = {source.image(i).tobytes() for i in range(30, 60)}
    theirs = {np.asarray(image).tobytes() for image, label in folder if label == 1}  # pyright: ignore
    assert ours == theirs


def test_arrays(source, tmp_path):
    tree = export(source, tmp_path, format="npy")
    pixels = np.load(tree / "00001.npy", mmap_mode="r")
    assert pixels.shape == (30, 41, 41) and pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels[4], source.image(34)[..., 0])


@pytest.mark.parametrize("format", ["png", "npy"])
def test_a_killed_export_goes_on(source, tmp_path, monkeypatch, format):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    export(source, whole, format=format)
    render, asked = source.crop, []

    def die(row, box):
        asked.append(row)
        if len(asked) > 45:
            raise KeyboardInterrupt
        return render(row, box)

    monkeypatch.setattr(source, "crop", die)
    with pytest.raises(KeyboardInterrupt):
        export(source, killed, format=format)
    monkeypatch.undo()
    done = {name for name in names(killed) if "partial" not in name}
    assert 1 < len(done) < len(names(whole))
    untouched = [killed / name for name in done if name != "fractaldb.json"]
    before = [file.stat().st_mtime_ns for file in untouched]
    export(source, killed, format=format)
    assert contents(killed) == contents(whole)
    assert [file.stat().st_mtime_ns for file in untouched] == before


def test_what_is_in_the_way_is_left_alone(source, cache, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="not empty, and no export of FractalDB"):
        export(source, other)
    export(source, tmp_path / "first")
    with pytest.raises(UserError, match=r"another export \(layout='train', not 'published'\)"):
        export(source, tmp_path / "first", layout="published")
    with pytest.raises(UserError, match=r"another export \(mask_seed=0, not 5\)"):
        export(FractalSource(replace(SPEC, mask_seed=5), cache), tmp_path / "first")
    (tmp_path / "first" / "fractaldb.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be read"):
        export(source, tmp_path / "first")


def test_a_disk_too_small(source, tmp_path, monkeypatch):
    usage = files.shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"[KM]B are needed"):
        export(source, tmp_path / "x")


def test_the_contact_sheet_shows_categories_and_instances(source, tmp_path):
    contact_sheet(source, tmp_path / "new" / "sheet.png", num_categories=2, num_instances=5, side=41)
    sheet = np.asarray(Image.open(tmp_path / "new" / "sheet.png"))
    assert sheet.shape == (2 * 45 + 4, 48 + 5 * 45 + 4)
    np.testing.assert_array_equal(sheet[49:90, 93:134], source.image(61)[..., 0] * 2)  # row 2 is the last category


def test_a_sheet_needs_a_pictures_name(source, tmp_path):
    with pytest.raises(ConfigError, match=r"fractaldb\.preview: .* end it in \.png"):
        contact_sheet(source, tmp_path / "sheet")


def test_the_task_says_what_it_did_and_what_next(cache, tmp_path):
    lines = run_fractaldb_task(SPEC, cache, tmp_path / "tree", preview=tmp_path / "s.png")
    assert any("90 images of 3 classes" in line for line in lines) and (tmp_path / "s.png").exists()
    assert any(line.endswith(f"dataset.root={tmp_path / 'tree'}") for line in lines)
    assert len(names(tmp_path / "tree" / "train")) == 90
    only_geometry = run_fractaldb_task(SPEC, cache, None)
    assert "python run.py dataset=fractaldb1k" in only_geometry[-1]
