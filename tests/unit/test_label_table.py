"""Tables of labels as people have them, and what is wrong with others. The usual one is in test_forms.py."""

from __future__ import annotations

import re

import pytest
from forms import draw_tree, samples

from vitlab.config import ConfigError, DatasetConfig
from vitlab.data.sources.registry import build_source

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def photos(tmp_path):
    """Files below images/, and a class for each: [(file, class)]."""
    tree, root = draw_tree(tmp_path / "birds", classes=("gull", "owl été", "tern")), tmp_path / "photos"
    found = []
    for path, _, content in samples(tree, "train"):
        folder, _, name = path.rpartition("/")
        (root / "images").mkdir(parents=True, exist_ok=True)
        (root / "images" / name).write_bytes(content)
        found.append((f"images/{name}", folder))
    return root, found


def write(root, text, name="train.csv"):
    (root / name).write_text(text, encoding="utf-8")
    return str(root / name)


def labelled(root, table, **changes):
    return DatasetConfig("birds", "folder", root=str(root), table=table, **changes)


@pytest.mark.parametrize(("delimiter", "name"), [(",", "t.csv"), ("\t", "t.tsv"), (";", "t.csv")])
def test_columns_are_guessed_and_delimiters_too(delimiter, name, photos):
    root, rows = photos
    lines = [["Class", "note", "Path"], *([label, "50% $x & y", file] for file, label in rows)]
    table = write(root, "\ufeff" + "\n".join(map(delimiter.join, lines)), name)
    source = build_source(labelled(root, table, val_fraction=0.2), "train")
    assert source.classes == ("gull", "owl été", "tern") and len(source) == 12
    assert all(
        name.startswith(source.classes[label] + "/") for name, label in zip(source.files, source.labels, strict=True)
    )


def test_columns_may_be_named_and_a_second_table_evaluates(photos):
    root, rows = photos
    lines = [f"{file},{label},x" for file, label in rows]
    train = write(root, "\n".join(["a,b,label", *lines[:-3]]))
    other = write(root, "\n".join(["a,b,label", *lines[-3:]]), "other.csv")
    data = labelled(root, train, eval_table=other, file_column="a", label_column="b")
    assert [len(build_source(data, split)) for split in ("train", "eval")] == [12, 3]


def test_whole_numbers_are_in_their_order(photos):
    root, rows = photos
    numbers = {"gull": "10", "owl été": "2", "tern": "7"}
    table = write(root, "\n".join(["file,target", *(f"{file},{numbers[label]}" for file, label in rows)]))
    assert build_source(labelled(root, table, val_fraction=0.2), "train").classes == ("2", "7", "10")


def test_a_table_may_be_parquet(photos):
    import pyarrow as pa
    from pyarrow.parquet import write_table

    root, rows = photos
    write_table(pa.table({"file": [f for f, _ in rows], "label": [label for _, label in rows]}), root / "t.parquet")
    assert len(build_source(labelled(root, str(root / "t.parquet"), num_eval=0), "train")) == 15


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", r"dataset\.file_column: .* has the columns a, b; say which one is the file"),
        ("image,b\n1,2\n", r"dataset\.label_column: .*dataset\.label_column=COLUMN"),
        ("image,label\nimages/none,gull\n", r"dataset\.table: 1 of 1 rows of .* name no image file in .*'images/none'"),
        ("image,label\nFILE,\n", r"row 2 \(images/\S+\) has no label in the column 'label'"),
        ("image,label\nFILE,gull\nFILE,gull\n", "is there twice"),
        ("image,label\nFILE\n", r"row 2 has 1 cells, and there are 2 columns"),
        ("image,label,split\nFILE,gull,holdout\n", r"row 2 is of the split 'holdout'; known are train, val, valid"),
        ("image,label,split\nFILE,gull,train\nFILE,owl,val\n", r"is of class 'owl' in val, which train lacks"),
        ("", "is no table with a line of column names"),
        ("image,label\nFILE,gull\n", r"no val split in .*dataset\.val_fraction=0\.1"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(text, message, photos):
    root, rows = photos
    table = write(root, text.replace("FILE", rows[0][0]))
    with pytest.raises(ConfigError) as error:
        build_source(labelled(root, table), "train")
        build_source(labelled(root, table), "eval")
    assert re.search(message, str(error.value)), error.value


def test_missing_tables_and_roots_are_named(photos, compose_config):
    root, _ = photos
    with pytest.raises(ConfigError, match=r"dataset\.table: there is no file"):
        build_source(labelled(root, str(root / "none.csv")), "train")
    with pytest.raises(ConfigError, match=r"give the folder that the files named in"):
        build_source(DatasetConfig("birds", "folder", table=write(root, "a,b")), "train")
    write(root, "image,label\n", "latin.csv")
    (root / "latin.csv").write_bytes("image,label\na,\xe9\n".encode("latin-1"))
    with pytest.raises(ConfigError, match="in UTF-8"):
        build_source(labelled(root, str(root / "latin.csv")), "train")


def test_a_name_without_extension_that_may_be_two_files(photos):
    root, rows = photos
    stem = rows[0][0].rpartition(".")[0]
    for ending in (".bmp", ".gif"):
        (root / f"{stem}{ending}").write_bytes(b"x")
    with pytest.raises(ConfigError, match="name the files with extensions"):
        build_source(labelled(root, write(root, f"image,label\n{stem},gull\n")), "train")
