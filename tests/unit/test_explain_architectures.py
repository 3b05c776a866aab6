"""timm's architectures as they are, two blocks deep: finite maps and unchanged logits, or a clean refusal."""

import warnings

import pytest
import timm
import torch

from vitlab.explain import UnfitError, relevance, rollout_map

FITTING = (
    "vit_tiny_patch16_224", "vit_base_patch32_clip_224", "vit_base_patch16_siglip_224", "vit_small_patch14_dinov2",
    "vit_base_patch16_reg4_gap_256", "vit_wee_patch16_reg1_gap_256",
    "vit_so150m2_patch16_reg1_gap_256", "vit_base_patch16_xp_224", "vit_tiny_r_s16_p8_224",
    "vit_medium_patch16_gap_256", "vit_relpos_small_patch16_224",
    "vit_srelpos_small_patch16_224", "vit_small_patch16_rope_224",
    "vit_small_patch16_dinov3", "vit_pe_core_tiny_patch16_384", "vitamin_small_224", "flexivit_small",
    "naflexvit_base_patch16_gap", "deit_tiny_distilled_patch16_224", "deit3_small_patch16_224", "beit_base_patch16_224",
    "beitv2_base_patch16_224", "eva02_tiny_patch14_224", "cait_xxs24_224", "test_vit",
)  # fmt: skip
CHAINLESS = (
    "vit_dlittle_patch16_reg1_gap_256",
    "swin_tiny_patch4_window7_224", "xcit_nano_12_p16_224", "pit_ti_224", "tnt_s_patch16_224", "crossvit_tiny_240",
    "samvit_base_patch16_224", "convit_tiny", "vit_base_patch16_18x2_224", "levit_128s", "volo_d1_224",
    "twins_svt_small", "mvitv2_tiny", "mixer_s16_224", "resnet18", "convnext_atto",
)  # fmt: skip
"""Attention in windows, over channels, at several scales, side by side, as differences, or none: only AttnLRP fits."""
QUICK = ("deit_tiny_distilled_patch16_224", "vit_small_patch16_rope_224", "cait_xxs24_224", "resnet18")


def build(name: str):
    """The model two blocks deep where it lets us, with a head that says something, and images for it."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for sizes in ({"depth": 2}, {"depths": (1, 1, 1, 1)}, {}):
            try:
                model = timm.create_model(name, num_classes=7, **sizes).eval()
                break
            except (TypeError, ValueError, RuntimeError, AttributeError):
                continue
        else:
            raise AssertionError(f"timm cannot build {name}")
    for module in (model.get_classifier(),):
        for head in module if isinstance(module, tuple | list) else (module,):
            if isinstance(head, torch.nn.Linear):
                torch.nn.init.normal_(head.weight, std=0.1)
    size = getattr(getattr(model, "patch_embed", None), "img_size", None) or model.pretrained_cfg["input_size"][1:]
    return model, torch.randn(2, 3, *((size, size) if isinstance(size, int) else size))


def params():
    """The quick ones always, the others with the slow tests."""
    return [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in (*FITTING, *CHAINLESS)]


@pytest.mark.parametrize("name", params())
def test_maps_are_finite_and_logits_unchanged_or_refused(name):
    model, images = build(name)
    with torch.no_grad():
        logits = model(images)
    for method in ("rollout", "generic", "lrp", "attnlrp"):
        explain = rollout_map if method == "rollout" else relevance
        options = {} if method == "rollout" else {"method": method, "targets": 3}
        if method != "attnlrp" and name in CHAINLESS:
            with pytest.raises(UnfitError, match="method=attnlrp"):
                explain(model, images, **options)
            continue
        maps = explain(model, images, **options)
        assert maps.shape[0] == 2 and maps.ndim == 3
        assert maps.isfinite().all() and (maps.abs().amax((1, 2)) > 0).all()
    with torch.no_grad():
        torch.testing.assert_close(model(images), logits, rtol=0, atol=0)
