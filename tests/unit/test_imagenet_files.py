"""image-net.org's archives and Kaggle's folders with parts missing; whole ones are in test_forms.py."""

from __future__ import annotations

import os
import re
import shutil
import tarfile

import pytest
from forms import add, draw_tree, image_net_org, kaggle, numbered

from vitlab.config import ConfigError, DatasetConfig
from vitlab.data.sources.folder import recognise
from vitlab.data.sources.registry import build_source
from vitlab.data.sources.survey import describe_survey

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def tree(tmp_path):
    return numbered(draw_tree(tmp_path / "imagenet"))


def imagenet(root, **changes):
    return DatasetConfig("imagenet", "folder", root=str(root), **changes)


def build(root, **changes):
    return [build_source(imagenet(root, **changes), split) for split in ("train", "eval")]


@pytest.mark.parametrize(
    ("form", "damage", "message"),
    [
        (image_net_org, lambda r: (r / "ILSVRC2012_devkit_t12.tar.gz").unlink(), "no ILSVRC2012_devkit_t12.tar.gz in"),
        (image_net_org, lambda r: (r / "ILSVRC2012_img_val.tar").unlink(), "no ILSVRC2012_img_val.tar in"),
        (image_net_org, lambda r: (r / "ILSVRC2012_img_train.tar").unlink(), "no train split in"),
        (image_net_org, lambda r: os.truncate(r / "ILSVRC2012_img_train.tar", 9000), "is cut short or damaged at n03"),
        (image_net_org, lambda r: os.truncate(r / "ILSVRC2012_devkit_t12.tar.gz", 300), "devkit_t12.tar.gz is damaged"),
        (image_net_org, lambda r: append(r / "ILSVRC2012_img_val.tar", "ILSVRC2012_val_00000007.JPEG"),
         "ILSVRC2012_val_00000007.JPEG has no label in"),
        (kaggle, lambda r: (r / "LOC_val_solution.csv").unlink(), r"no LOC_val_solution\.csv in .*which labels"),
        (kaggle, lambda r: (r / "LOC_val_solution.csv").write_text("a,b\n1,2\n", encoding="utf-8"), "is not Kaggle's"),
        (kaggle, lambda r: shutil.copy(next(r.glob("ILSVRC/Data/CLS-LOC/val/*")), r / "ILSVRC/Data/CLS-LOC/val/x.JPEG"),
         r"x\.JPEG has no row in .*LOC_val_solution\.csv"),
        (kaggle, lambda r: shutil.rmtree(r / "ILSVRC/Data/CLS-LOC/train/n03417042"), "of class .n03417042., which"),
    ],
)  # fmt: skip
def test_what_is_missing_or_damaged_is_named(form, damage, message, tree, tmp_path):
    root = form(tree, tmp_path / "there")
    damage(root)
    with pytest.raises(ConfigError) as error:
        build(root)
    assert re.search(message, str(error.value))


def append(file, name):
    with tarfile.open(file, "a") as archive:
        add(archive, name, b"x")


@pytest.mark.parametrize("form", [image_net_org, kaggle])
def test_images_set_aside_need_neither_val_nor_its_labels(form, tree, tmp_path):
    root = form(tree, tmp_path / "there")
    for name in ("ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz", "LOC_val_solution.csv"):
        (root / name).unlink(missing_ok=True)
    train, held_out = build(root, val_fraction=0.2)
    assert (len(train), len(held_out)) == (12, 3)


def test_an_unpacked_devkit_will_do(tree, tmp_path):
    root = image_net_org(tree, tmp_path / "there")
    expected = build(root)[1].fingerprint()
    with tarfile.open(root / "ILSVRC2012_devkit_t12.tar.gz") as archive:
        archive.extractall(root, filter="data")
    (root / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    assert build(root)[1].fingerprint() == expected


@pytest.mark.parametrize("below", ["", "ILSVRC", "ILSVRC/Data/CLS-LOC"])
def test_any_of_kaggles_folders_may_be_given(below, tree, tmp_path):
    root = kaggle(tree, tmp_path / "there")
    assert len(build(root / below)[1]) == 6
    assert recognise(imagenet(root / below)).form == "Kaggle's folders"
    for file in (root / "ILSVRC/Data/CLS-LOC/val").iterdir():
        file.unlink()
    shutil.copytree(tree / "val", root / "ILSVRC/Data/CLS-LOC/val", dirs_exist_ok=True)
    assert build(root / below)[1].fingerprint() == build(tree)[1].fingerprint(), "sorted into class folders"


MAPPING = "n01440764 tench, Tinca tinca\nn02102040 English springer\nn03417042 garbage truck, dustcart\n"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (MAPPING, ""),
        (MAPPING + "n02979186 cassette player\n", "lacks 1 of the 4 classes in L: n02979186 (cassette player)"),
        (MAPPING + "".join(f"n0000000{i} x, y\n" for i in range(4)),
         "lacks 4 of the 7 classes in L: n00000000 (x), n00000001 (x), n00000002 (x), …"),
        ("\n" + MAPPING + "n00000001\n", "lacks 1 of the 4 classes in L: n00000001"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("sorted_by_class", [False, True])
def test_classes_that_kaggles_list_has_and_the_folders_lack_are_named(lines, said, sorted_by_class, tree, tmp_path):
    root = kaggle(tree, tmp_path / "there")
    (root / "LOC_synset_mapping.txt").write_text(lines, encoding="utf-8")
    if sorted_by_class:
        shutil.rmtree(root / "ILSVRC/Data/CLS-LOC/val")
        shutil.copytree(tree / "val", root / "ILSVRC/Data/CLS-LOC/val")
    remark = recognise(imagenet(root)).remark
    assert remark == (f"train/ {said}".replace(" L:", " LOC_synset_mapping.txt:") if said else "")
    (line,) = describe_survey(imagenet(root, num_classes=3, num_train=None, num_eval=None))
    assert line.endswith(remark) and "3 classes" in line


def test_a_list_of_kaggles_that_cannot_be_read(tree, tmp_path):
    root = kaggle(tree, tmp_path / "there")
    (root / "LOC_synset_mapping.txt").write_bytes(b"n01440764 t\xeanch")
    assert recognise(imagenet(root)).remark.startswith("LOC_synset_mapping.txt cannot be read ('utf-8' codec")
