"""Parquet: read whole where it fits in memory, taken out once where it does not; broken files are named."""

from __future__ import annotations

import dataclasses
import os
import re

import pytest
from forms import draw_tree, numbered, parquet, samples

from vitlab.cli.pack_task import run_pack
from vitlab.config import ConfigError, DatasetConfig
from vitlab.core.errors import UserError
from vitlab.data.sources import files_pack, index, parquet_files
from vitlab.data.sources.claims import require_data
from vitlab.data.sources.registry import build_source, load_split

CHANGED = {b"huggingface": b"{}"}


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def tree(tmp_path):
    return numbered(draw_tree(tmp_path / "birds", classes=("gull", "owl été", "tern")))


def birds(root, **changes):
    return DatasetConfig("birds", "folder", root=str(root), **changes)


def refused(root, **changes) -> str:
    with pytest.raises(UserError) as error:
        build_source(birds(root, **changes), "train")
        build_source(birds(root, **changes), "eval")
    return str(error.value)


def test_the_hubs_imagenet_has_the_names_of_the_folder(tree, tmp_path):
    """Its files are called n01440764_10026_n01440764.JPEG, its classes `tench, Tinca tinca`."""
    folder = draw_tree(tmp_path / "imagenet")
    root = parquet(folder, tmp_path / "p", names=["tench, Tinca tinca", "spaniel", "pump"], image=None,
                   picture=lambda part: [{"bytes": b, "path": hub_name(p)} for p, _, b in part])  # fmt: skip
    one, other = build_source(birds(root), "train"), build_source(birds(folder), "train")
    assert one.classes == other.classes and one.fingerprint() == other.fingerprint()


def hub_name(path):
    folder, _, name = path.rpartition("/")
    stem, _, ending = name.rpartition(".")
    return f"{stem}_{folder}.{ending}"


def test_without_label_names_numbers_are_the_classes(tree, tmp_path):
    root = parquet(tree, tmp_path / "p", names=None)
    source = build_source(birds(root), "train")
    assert source.classes == ("0", "1", "2") and source.labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5


def test_what_does_not_fit_in_memory_is_refused_with_the_command_that_converts_it(tree, tmp_path, monkeypatch):
    root = parquet(tree, tmp_path / "p")
    monkeypatch.setattr(parquet_files, "_memory", lambda: 1000)
    with pytest.raises(ConfigError, match=r"task=pack pack\.format=files pack\.path=FOLDER") as error:
        require_data(birds(root))
    assert "do not fit in memory" in str(error.value)
    assert "task=pack pack.format=files" in refused(root), "also where nothing has asked before"
    assert len(load_split(birds(root), "train")) == 15, "packing reads them"


def test_it_is_converted_byte_for_byte_and_goes_on_where_it_was(tree, tmp_path, compose_config, monkeypatch):
    monkeypatch.setattr(parquet_files, "_memory", lambda: 1000)
    monkeypatch.setattr(files_pack, "SHARD", 6)
    root, target, runs = parquet(tree, tmp_path / "p"), tmp_path / "packed", tmp_path / "r"

    def pack():
        index._remembered.cache_clear()
        return run_pack(compose_config(
            "task=pack", "pack.format=files", "dataset=folder", "dataset.name=birds", "workers=0",
            f"dataset.root={root}", f"pack.path={target}", f"output_dir={runs}",
        ))  # fmt: skip

    write, written = files_pack._write_tar, []

    def killed(job):
        written.append(job.file.name)
        if len(written) == 2:
            raise KeyboardInterrupt
        return write(job)

    monkeypatch.setattr(files_pack, "_write_tar", killed)
    with pytest.raises(KeyboardInterrupt):
        pack()
    before = (target / "train-00000.tar").stat().st_mtime_ns
    assert not (target / "files.json").exists()
    monkeypatch.setattr(files_pack, "_write_tar", write)
    lines = pack()
    assert re.match(r"pack of the files of birds: 15 \+ 6 images, [1-9]\d\.\d KB in ", lines[-2])
    assert lines[-1] == f"train from it: python run.py dataset=folder dataset.name=birds dataset.root={target}"
    assert (target / "train-00000.tar").stat().st_mtime_ns == before, "kept"
    source = build_source(birds(target), "train")
    held = {source.files[i]: source.content.read(i) for i in range(len(source))}
    assert held == {path: content for path, _, content in samples(tree, "train")}
    assert source.fingerprint() == build_source(birds(tree), "train").fingerprint()
    content = bytearray((target / "train-00001.tar").read_bytes())
    content[700] ^= 1
    (target / "train-00001.tar").write_bytes(content)
    pack()
    assert (target / "train-00001.tar").read_bytes() != bytes(content), "damage is found by the digest, and undone"
    (target / "train-00001.tar").unlink()
    assert "train-00001.tar is missing, it was" in refused(target) and "complete it" in refused(target)
    with pytest.raises(ConfigError, match=r"was made of other images"):
        draw_tree(tmp_path / "more", per_class=6)
        root, runs = parquet(tmp_path / "more", tmp_path / "q"), tmp_path / "r2"
        pack()


def test_a_broken_row_group_is_named_and_never_skipped(tree, tmp_path, monkeypatch):
    import pyarrow.parquet as pq

    root = parquet(tree, tmp_path / "p", groups=2, compression="gzip")
    file = root / "data" / "train-00001-of-00002-0a1b2c.parquet"
    column = pq.ParquetFile(file).metadata.row_group(1).column(0)
    with file.open("r+b") as stream:
        stream.seek(column.dictionary_page_offset or column.data_page_offset)
        stream.write(b"\xff" * 64)
    text = refused(root, bad_images="skip")
    assert re.search(r"train-00001-of-00002-0a1b2c\.parquet: row group 1 cannot be read", text), text


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: f.unlink(), "1 of the numbered files is missing: number 1"),
        (lambda f: os.truncate(f, 200), "is no whole parquet file"),
        (lambda f: rewrite(f, drop="label"), "has no column of labels"),
        (lambda f: rewrite(f, drop="image"), "has no column of images"),
        (lambda f: rewrite(f, label=9), "the label '9' of"),
        (lambda f: rewrite(f, label=None), "has no label"),
    ],
)
def test_what_is_wrong_is_named(damage, message, tree, tmp_path):
    root = parquet(tree, tmp_path / "p")
    number = 0 if "column" in message else 1
    damage(root / "data" / f"train-{number:05}-of-00002-0a1b2c.parquet")
    assert message in refused(root)


def rewrite(file, drop=None, **values):
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(file)
    if drop:
        table = table.drop_columns(drop)
    for name, value in values.items():
        column = pa.array([value] * len(table), pa.int64())
        table = table.set_column(table.column_names.index(name), name, column)
    pq.write_table(table, file)


def test_a_row_without_bytes_is_a_bad_image(tree, tmp_path):
    root = parquet(
        tree, tmp_path / "p", image=None, picture=lambda part: [{"bytes": None, "path": p} for p, _, _ in part]
    )
    source = load_split(birds(root), "train")
    with pytest.raises(UserError, match="the row has no bytes"):
        source.image(0)


def test_pyarrow_is_named_where_it_is_missing(tree, tmp_path, monkeypatch):
    root = parquet(tree, tmp_path / "p")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.compute", None)
    assert re.search(r"parquet is parquet, which pyarrow reads; install it: pip install pyarrow", refused(root))


def test_a_pack_of_files_is_no_pack_of_pixels(tree, tmp_path, compose_config):
    with pytest.raises(ConfigError, match=r"pack\.format: digits is held in memory and has no image files"):
        run_pack(compose_config("task=pack", "pack.format=files", "dataset=digits", f"pack.path={tmp_path / 'd'}"))
    run_pack(compose_config("task=pack", "pack.format=files", "dataset=folder", f"dataset.root={tree}",
                            f"pack.path={tmp_path / 'f'}", f"output_dir={tmp_path}/r"))  # fmt: skip
    with pytest.raises(ConfigError, match="holds files, as a folder does") as error:
        load_split(dataclasses.replace(birds(tree), pack=str(tmp_path / "f")), "train")
    assert error.value.ways == (f"dataset.root={tmp_path / 'f'} dataset.pack=null",)


def test_a_disk_that_is_too_small_or_fills_is_said(tree, tmp_path, compose_config, monkeypatch):
    def pack():
        run_pack(compose_config("task=pack", "pack.format=files", "dataset=folder", f"dataset.root={tree}",
                                f"pack.path={tmp_path / 'f'}", f"output_dir={tmp_path}/r"))  # fmt: skip

    monkeypatch.setattr("vitlab.core.files.free_space", lambda folder: 100)
    with pytest.raises(ConfigError, match=r"pack\.path: .*are needed and 100 bytes are free"):
        pack()
    monkeypatch.undo()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(
        ConfigError, match=r"pack\.path: could not write .*train-00000\.tar: No space left.*same command"
    ):
        pack()
