"""One model of each of timm's families trains two steps and evaluates, or is refused by name.

docs/models.md lists them.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from vitlab.config import AugmentConfig, ConfigError, ModelConfig, choice
from vitlab.config.choices import native_image_size
from vitlab.config.schema import CellConfig
from vitlab.data.augment import Augment
from vitlab.data.loader import Batch
from vitlab.models.build import build_model
from vitlab.models.drop_path import install_drop_path
from vitlab.models.trainable import try_training
from vitlab.train.evaluate import evaluate
from vitlab.train.optim import build_optimizer
from vitlab.train.step import train_step

TRAINED = (
    "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "beit_base_patch16_224", "cait_xxs24_224",
    "xcit_nano_12_p16_224", "eva02_tiny_patch14_224", "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256",
    "coatnet_pico_rw_224", "convnext_atto", "mixer_s32_224", "resnet18", "resnetv2_18",
    "regnetx_002", "efficientnet_b0", "mobilenetv3_small_050", "densenet121", "vgg11", "inception_v3", "xception41",
    "nf_regnet_b0", "levit_128s", "pit_ti_224", "tnt_s_patch16_224", "crossvit_tiny_240", "convit_tiny",
    "twins_svt_small", "visformer_tiny", "poolformer_s12", "edgenext_xx_small", "mobilevit_xxs",
    "efficientformer_l1", "efficientformerv2_s0", "fastvit_t8", "mvitv2_tiny", "davit_tiny", "focalnet_tiny_srf",
    "gcvit_xxtiny", "hrnet_w18_small", "inception_next_atto", "nest_tiny", "pvt_v2_b0", "repvgg_a0",
    "repvit_m0_9", "res2net50d", "selecsls42", "sequencer2d_s", "starnet_s1",
    "tiny_vit_5m_224", "ese_vovnet19b_slim", "coat_lite_tiny", "cs3darknet_s", "dla34", "dpn48b", "hardcorenas_a",
    "hiera_tiny_224", "gernet_s", "skresnet18", "swiftformer_xs", "rdnet_tiny", "hgnetv2_b0", "mambaout_femto",
    "shvit_s1", "vitamin_small_224", "volo_d1_224", "nextvit_small",
)  # fmt: skip
ALONE = ("densenet121", "vgg11", "inception_v3", "hrnet_w18_small", "repvit_m0_9", "selecsls42",
         "dla34", "dpn48b", "shvit_s1", "tnt_s_patch16_224", "mobilevit_xxs")  # fmt: skip
"""Trained, but without stochastic depth: they have none, or it drops parts of an image."""
REFUSED = {
    "rexnet_100": "(bernoulli), as dropout does",
    "ghostnet_050": "(bernoulli), as dropout does",
    "legacy_seresnet18": "(bernoulli), as dropout does",
    "swinv2_cr_tiny_ns_224": "(bernoulli), as dropout does",
}
"""Not trained → why."""
QUICK = ("swin_tiny_patch4_window7_224", "convnext_atto", "resnet18")
REPEATED = ("convnext_atto", "resnet18")
DOCS = Path(__file__).parents[2] / "docs" / "models.md"


def cell_for(name: str, rate: float) -> CellConfig:
    recipe = dataclasses.replace(choice("recipe", "quick"), batch_size=2, drop_path=rate)
    model = ModelConfig(name, image_size=native_image_size(name))
    return CellConfig(model, choice("dataset", "digits"), AugmentConfig(), choice("pretrain", "scratch"), recipe)


def params(names):
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", params(TRAINED))
def test_two_steps_and_an_evaluation(name):
    """Stochastic depth on where the family has it: the masks come from counters, and a step repeats to the bit."""
    cell = cell_for(name, 0.0 if name in ALONE else 0.3)
    size = cell.model.image_size
    images, index = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8), np.arange(2)
    batch = Batch(images, torch.tensor([1, 3]), index, np.zeros_like(index), index)
    augment, ended = Augment(cell.augment, cell.dataset), []
    for _ in range(2 if name in REPEATED else 1):
        torch.manual_seed(0)
        model = build_model(cell.model, 10, drop_path=cell.recipe.drop_path)
        trial = try_training(model, cell.model, 10)
        masks = install_drop_path(model, cell.recipe.drop_path, trial.calls)
        for unused in trial.unused:
            model.get_parameter(unused).requires_grad_(False)
        optimizer, generator = build_optimizer(model, cell.recipe), torch.get_rng_state()
        before = [p.detach().clone() for p in model.parameters()]
        losses = [
            train_step(model.train(), optimizer, [batch], augment, masks, cell, epoch, 2).item() for epoch in range(2)
        ]
        assert torch.equal(generator, torch.get_rng_state()), "a step draws nothing from the global generator"
        changed = [not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)]
        assert all(np.isfinite(losses)) and sum(changed) > 0.5 * len(changed)
        evaluation = evaluate(model, [batch], augment.normalise, torch.device("cpu"), "fp32")
        assert evaluation is not None and np.isfinite(evaluation.loss)
        ended.append((losses, evaluation.loss))
    assert ended[0] == ended[-1]


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_keep_the_promise_is_refused_by_name(name):
    cell = cell_for(name, 0.0)
    with pytest.raises(ConfigError, match=r"^model\.name: ") as error:
        try_training(build_model(cell.model, 10), cell.model, 10)
    assert name in str(error.value) and REFUSED[name] in str(error.value)


@pytest.mark.parametrize("name", ["vgg11", "mobilevit_xxs"])
def test_stochastic_depth_that_a_family_has_not_is_refused(name):
    cell = cell_for(name, 0.1)
    with pytest.raises(ConfigError, match=rf"^recipe\.drop_path: .*{name}.*recipe\.drop_path=0"):
        try_training(build_model(cell.model, 10, drop_path=0.1), cell.model, 10)


def test_the_documentation_lists_the_families():
    text = DOCS.read_text(encoding="utf-8")
    listed = set(re.findall(r"`([a-z]\w+)`", text))
    assert {*TRAINED, *REFUSED} <= listed
    assert len({*TRAINED}) >= 40 and {*ALONE} <= {*TRAINED}
