"""Weights that are named as timm and torchvision publish them are read by their own configurations."""

from __future__ import annotations

import argparse

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import CenterCrop, Resize

from vitlab.data.crop import central_squares
from vitlab.models.published import dataset_of_training, published_as
from vitlab.models.restore import restore

HALF, IMAGENET = (0.5, 0.5, 0.5), (0.485, 0.456, 0.406)
FILES = {
    "vit_tiny_patch16_224.augreg_in21k.safetensors": (21843, HALF, 0.9, "bicubic"),
    "models--timm--resnet50.a1_in1k/snapshots/abc/model.safetensors": (1000, IMAGENET, 0.95, "bicubic"),
    "vit_small_patch8_224.dino/pytorch_model.bin": (None, IMAGENET, 0.9, "bicubic"),
    "dinov2_vits14_pretrain.pth": (None, IMAGENET, 1.0, "bicubic"),
    "resnet50-0676ba61.pth": (1000, IMAGENET, 0.875, "bilinear"),
    "vit_b_16-c867db91.pth": (1000, IMAGENET, 0.875, "bilinear"),
    "vit_b_16_swag-9ac1b537.pth": (1000, IMAGENET, 1.0, "bicubic"),
}


@pytest.mark.parametrize("name", FILES)
def test_names_of_files(name, tmp_path):
    classes, mean, crop, interpolation = FILES[name]
    found = published_as(tmp_path / name, classes)
    assert found is not None
    dataset = found.dataset
    assert (dataset.mean, dataset.eval_crop, dataset.eval_interpolation) == (mean, crop, interpolation)
    assert published_as(tmp_path / name, 7) is None  # somebody's own classes


@pytest.mark.parametrize(
    "name", ["mine.pth", "vit_tiny_patch16_224.pth", "vit_tiny_patch16_224.mine.pt", "a.b.c/model.safetensors"]
)
def test_other_names_say_nothing(name, tmp_path):
    assert published_as(tmp_path / name, None) is None


@pytest.fixture
def read(compose_config):
    return lambda file, *words: restore(
        compose_config("task=explain", "explain=position", f"checkpoint={file}", *words), str(file)
    )


def test_bare_tensors_are_read_by_their_tag(tmp_path, read):
    torch.manual_seed(0)
    file = tmp_path / "vit_tiny_patch16_224.augreg_in21k.safetensors"
    state = timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict()
    save_file(state, file)
    restored = read(file)
    assert restored.dataset.mean == HALF and not restored.assumed
    assert "mean, std and crop are timm's for vit_tiny_patch16_224.augreg_in21k" in restored.describe()
    save_file(state | {"head.weight": torch.zeros(5, 192), "head.bias": torch.zeros(5)}, file)
    assert read(file).assumed  # another classifier: somebody's own weights


def test_a_network_that_no_tensor_tells_is_named_by_its_file(tmp_path, read):
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=1000).eval()
    file = tmp_path / "test_resnet.r160_in1k.pth"
    torch.save(model.state_dict(), file)
    restored = read(file)
    assert restored.model.name == "test_resnet" and restored.model.image_size == 160
    assert "by the file's name the model is test_resnet" in restored.describe()
    images = torch.randn(1, 3, 160, 160)
    torch.testing.assert_close(restored.network(images), model(images))


def test_timms_training_takes_what_is_not_given_from_its_model():
    given = {"mean": None, "std": None, "crop_pct": None, "interpolation": "", "dataset": "ImageFolder"}
    own = dataset_of_training("vit_tiny_patch16_224", given, 10)
    assert own and (own.mean, own.std, own.eval_crop, own.num_classes) == (HALF, HALF, 0.9, 10)
    other = dataset_of_training("vit_tiny_patch16_224", given | {"mean": [0.1], "interpolation": "bilinear"}, 10)
    assert other and (other.mean, other.std, other.eval_interpolation) == ((0.1,) * 3, HALF, "bilinear")
    tagged = dataset_of_training("resnet50.a1_in1k", {}, 1000)
    assert tagged and tagged.eval_crop == 0.95
    unknown = dataset_of_training("vit_tiny_patch16_224.mine", given, 10)
    assert unknown and unknown.mean == HALF
    assert dataset_of_training("resnet50", {"arch": "resnet50"}, 1000) is None  # PyTorch's example


def test_arguments_say_how_to_resize(tmp_path, read):
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=3)
    args = argparse.Namespace(mean=None, std=None, crop_pct=0.8, interpolation="bilinear")
    torch.save({"arch": "vit_tiny_patch16_224", "state_dict": model.state_dict(), "args": args}, tmp_path / "a.pth")
    restored = read(tmp_path / "a.pth")
    assert restored.dataset.eval_interpolation == "bilinear"
    assert restored.describe()[-1].endswith("shorter side to 40 (bilinear), central 32 x 32")
    assert read(tmp_path / "a.pth", "dataset.eval_interpolation=bicubic").dataset.eval_interpolation == "bicubic"


@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
def test_evaluation_resizes_as_torchvision_does(name):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), np.uint8)).resize((180, 120))
    ours = central_squares([np.array(image)], 32, 0.8, name)[0].int()
    theirs = CenterCrop(32)(Resize(40, InterpolationMode(name), antialias=True)(image))
    theirs = torch.from_numpy(np.array(theirs)).permute(2, 0, 1).int()
    assert (ours - theirs).abs().max() <= 1
