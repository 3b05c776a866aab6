"""Pictures and class names: what a user may name, and what is said when it is not there."""

import numpy as np
import pytest
import torch
from PIL import Image

from vitlab.config import ConfigError, DatasetConfig, choice
from vitlab.explain.explained_model import ClassNames, class_names
from vitlab.explain.pictures import evaluation_pictures, load_pictures, normalise

PLAIN = DatasetConfig("plain", kind="folder", num_classes=3)
PETS = ClassNames(4, ("tabby, tabby cat", "tiger cat", "pug, pug-dog", "crane"))


@pytest.fixture
def photos(tmp_path):
    for i, name in enumerate(("b.jpg", "a.png", "c.JPEG")):
        Image.fromarray(np.full((40, 60, 3), 50 * i, np.uint8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture", encoding="utf-8")
    return tmp_path


def test_the_photographs_are_always_there():
    pictures = load_pictures(None, PLAIN, 32, "runs")
    assert [p.name for p in pictures] == ["china", "flower"]
    assert all(p.pixels.shape == (3, 32, 32) and p.pixels.dtype == torch.uint8 for p in pictures)


def test_files_folders_and_patterns(photos):
    assert [p.name for p in load_pictures(str(photos), PLAIN, 16, "runs")] == ["a", "b", "c"]
    assert [p.name for p in load_pictures(str(photos / "*.jpg"), PLAIN, 16, "runs")] == ["b"]
    both = load_pictures([str(photos / "c.JPEG"), str(photos / "c.JPEG")], PLAIN, 16, "runs")
    assert [p.name for p in both] == ["c-0", "c-1"]


def test_cropping_is_evaluations(photos):
    """Resize(256) and CenterCrop(224) of a picture that differs from left to right, compared with torchvision."""
    from torchvision.transforms.v2 import functional as tv

    ramp = np.tile(np.linspace(0, 255, 600).astype(np.uint8)[None, :, None], (400, 1, 3))
    Image.fromarray(ramp).save(photos / "ramp.png")
    (picture,) = load_pictures(str(photos / "ramp.png"), PLAIN, 224, "runs")
    image = torch.from_numpy(ramp.copy()).permute(2, 0, 1)
    resized = tv.resize(image, [256], interpolation=tv.InterpolationMode.BICUBIC, antialias=True)
    assert (picture.pixels.int() - tv.center_crop(resized, [224]).int()).abs().max() <= 1


def test_normalising_uses_the_data_sets_statistics(photos):
    data = DatasetConfig("plain", kind="folder", mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.5))
    pictures = load_pictures(str(photos / "b.jpg"), data, 16, "runs")
    expected = (pictures[0].pixels / 255 - torch.tensor(data.mean)[:, None, None]) / torch.tensor(data.std)[
        :, None, None
    ]
    torch.testing.assert_close(normalise(pictures, data)[0], expected, rtol=1e-5, atol=1e-5)


def test_images_of_the_evaluation_set(tmp_path):
    digits = choice("dataset", "digits")
    pictures = load_pictures(["eval", "eval:7", "eval:20-22"], digits, 16, str(tmp_path))
    assert [p.label for p in pictures[:4]] == [0, 1, 2, 3]
    assert [p.name for p in pictures[4:]] == ["eval-7", "eval-20", "eval-21", "eval-22"]
    spread = evaluation_pictures(digits, 16, str(tmp_path), 10)
    assert len(spread) == 10 and spread[0].name == "eval-0" and spread[-1].name == "eval-359"
    with pytest.raises(ConfigError, match=r"'eval:360' is out of range: the evaluation set has 360 images"):
        load_pictures("eval:360", digits, 16, str(tmp_path))


def test_what_is_no_image_is_named(photos):
    with pytest.raises(ConfigError, match=r"notes\.txt: not an image"):
        load_pictures(str(photos / "notes.txt"), PLAIN, 16, "runs")
    (photos / "cut.jpg").write_bytes((photos / "b.jpg").read_bytes()[:300])
    with pytest.raises(ConfigError, match=r"cut\.jpg"):
        load_pictures(str(photos / "cut.jpg"), PLAIN, 16, "runs")
    with pytest.raises(ConfigError, match=r"no image at .*nowhere"):
        load_pictures(str(photos / "nowhere" / "*.jpg"), PLAIN, 16, "runs")
    (photos / "empty").mkdir()
    with pytest.raises(ConfigError, match="no image at"):
        load_pictures(str(photos / "empty"), PLAIN, 16, "runs")


def test_classes_are_found_by_number_name_and_part():
    assert PETS.find(2) == 2
    assert PETS.find("Tabby") == 0 and PETS.find("tiger cat") == 1 and PETS.find("pug-d") == 2
    assert PETS.short(0) == "tabby"


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (4, r"explain\.class_index: got 4, the model has 4 classes \(0 to 3\)"),
        ("cat", r"'cat' may be 0 \(tabby, tabby cat\), 1 \(tiger cat\)"),
        ("tabbi", "did you mean 'tabby'"),
        ("zzz", "no class 'zzz' among the model's 4; the first are tabby"),
    ],
)
def test_wrong_classes_are_told(wanted, words):
    with pytest.raises(ConfigError, match=words):
        PETS.find(wanted)


def test_nameless_classes_have_numbers():
    nameless = class_names(None, 7, "folder")
    assert nameless.short(3) == "class 3" and nameless.find(3) == 3
    with pytest.raises(ConfigError, match="does not name its 7 classes"):
        nameless.find("cat")


def test_names_of_imagenet():
    for recorded in (None, (*(f"n{i:08d}" for i in range(998)), "n02123045", "n02110958")):
        names = class_names(recorded, 1000, "imagenet1k")
        assert names.short(names.find("tabby")) == "tabby"
    assert class_names(None, 1000, "imagenet1k").find("tabby") == 281
    assert class_names(None, 1000, "fractaldb1k").names is None
    assert class_names(("x", "y"), 2, "own").short(1) == "y"
