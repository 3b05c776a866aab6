"""Relevance compared with independent implementations, and what must hold whatever the model."""

import copy

import pytest
import timm
import torch
from explain_references import attnlrp_pixels, chefer_map, chefer_relevances, forward, tiny_vit
from timm.models import VisionTransformer

from vitlab.core.errors import ConfigError
from vitlab.explain import attention_maps, relevance, rollout_map
from vitlab.explain.recording import UnfitError, prepared, record

CLASSES = torch.tensor([1, 3, 0])


@pytest.fixture(scope="module")
def model():
    return tiny_vit()


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, 16, 16, dtype=torch.double, generator=torch.Generator().manual_seed(5))


def relative(a, b):
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_lrp_equals_products_written_out(seed, start, images):
    model = tiny_vit(seed)
    ours = relevance(model, images, CLASSES, method="lrp", start_layer=start)
    assert relative(ours.flatten(1), chefer_map(model, images, CLASSES, start)) <= 1e-10


def test_lrp_of_each_attention_equals_products_written_out(model, images):
    relevances, gradients, _ = chefer_relevances(model, images, CLASSES)
    with prepared(model):
        recording = record(model, images)
        one_hot = torch.nn.functional.one_hot(CLASSES, 5).double()
        for meaning, expected in (("relevance", relevances), ("gradient", gradients)):
            found = recording.pull(meaning, one_hot, recording.attention())
            assert max(relative(found[i], expected[i]) for i in expected) <= 1e-10


def test_lrp_conserves_relevance(model, images):
    """Each class starts with 1, and the tokens that enter the first block hold 1 in the end."""
    with prepared(model):
        recording = record(model, images)
        one_hot = torch.nn.functional.one_hot(CLASSES, 5).double()
        assert recording.tokens is not None
        (last,) = recording.pull("relevance", one_hot, [recording.tokens])
    torch.testing.assert_close(last.sum((1, 2)), torch.ones(3, dtype=torch.double))
    _, _, first = chefer_relevances(model, images, CLASSES)
    torch.testing.assert_close(first.sum((1, 2)), torch.ones(3, dtype=torch.double))


def test_generic_equals_plain_autograd(model, images):
    values = forward(model, images)
    values["logits"].gather(1, CLASSES[:, None]).sum().backward()
    joint = torch.eye(5, dtype=torch.double)
    for i in range(2):
        attention = values[i]["a"]
        joint = joint + (attention.grad * attention).detach().clamp(min=0).mean(1) @ joint  # ICCV'21, eq. 6
    ours = relevance(model, images, CLASSES, method="generic")
    assert relative(ours.flatten(1), joint[:, 0, 1:]) <= 1e-12


def test_attnlrp_equals_its_rules(model, images):
    expected = attnlrp_pixels(model, images, CLASSES).sum(1).unflatten(2, (2, 8)).unflatten(1, (2, 8)).sum((2, 4))
    assert relative(relevance(model, images, CLASSES, method="attnlrp"), expected) <= 1e-10


@pytest.mark.parametrize("method", ["lrp", "generic", "attnlrp"])
def test_an_image_does_not_see_its_batch(method, model, images):
    together = relevance(model, images, CLASSES, method=method)
    alone = torch.cat([relevance(model, images[i : i + 1], CLASSES[i : i + 1], method=method) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", ["lrp", "generic", "attnlrp"])
def test_targets_take_every_form(method, model, images):
    many = relevance(model, images, torch.tensor([[1, 2], [1, 0], [1, 4]]), method=method)
    assert many.shape == (3, 2, 2, 2)
    torch.testing.assert_close(many[:, 0], relevance(model, images, 1, method=method))
    torch.testing.assert_close(many[:, 0], relevance(model, images, [1, 1, 1], method=method))
    torch.testing.assert_close(many[:, 1], relevance(model, images, [2, 0, 4], method=method))
    predicted = model(images).argmax(1)
    torch.testing.assert_close(
        relevance(model, images, method=method), relevance(model, images, predicted, method=method)
    )


WRONG_TARGETS = {
    "too high": (5, "class 5 is out of range: the model has 5"),
    "negative": (-1, "class -1"),
    "too few": ([1, 2], r"expected \(3,\)"),
    "a fraction": (torch.tensor(0.5), "whole numbers"),
}


@pytest.mark.parametrize(("targets", "words"), WRONG_TARGETS.values(), ids=WRONG_TARGETS)
def test_wrong_targets_are_refused(targets, words, model, images):
    with pytest.raises(ConfigError, match=words):
        relevance(model, images, targets)


def test_a_wrong_layer_is_refused(model, images):
    with pytest.raises(ConfigError, match="start_layer: got 2, allowed: 0 to 1"):
        relevance(model, images, 0, start_layer=2)
    with pytest.raises(ConfigError, match="takes no start_layer"):
        relevance(model, images, 0, method="attnlrp", start_layer=1)


def test_the_model_is_left_as_it_was(model, images):
    model = copy.deepcopy(model).train()
    model.blocks[0].eval()
    model.head.weight.requires_grad_(False)
    model.set_grad_checkpointing(True)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for method in ("lrp", "generic", "attnlrp"):
        relevance(model, images, method=method)
    with pytest.raises(ConfigError, match="out of range"):
        relevance(model, images, 99)
    assert model.training and not model.blocks[0].training and model.blocks[1].training
    assert not model.head.weight.requires_grad and model.norm.weight.requires_grad
    assert model.grad_checkpointing and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not model.blocks[1]._forward_hooks and not model.blocks[0]._forward_pre_hooks


def test_works_without_gradients_around_it(model, images):
    with torch.no_grad():
        quiet = relevance(model, images, 1)
    torch.testing.assert_close(quiet, relevance(model, images, 1))
    with torch.inference_mode():
        inferred = relevance(model, images.clone(), 1)
    torch.testing.assert_close(inferred, quiet)
    assert not quiet.requires_grad


VARIANTS = {
    "registers and GAP": {"reg_tokens": 2, "global_pool": "avg", "class_token": False},
    "max pooling": {"global_pool": "max"},
    "LayerScale": {"init_values": 1e-5},
    "qk-norm": {"qk_norm": True},
    "no class embedding": {"no_embed_class": True},
    "attention pooling": {"global_pool": "map", "class_token": False},
    "oblong grid": {"img_size": (16, 32)},
    "pre-norm": {"pre_norm": True},
}


@pytest.mark.parametrize("method", ["lrp", "generic", "attnlrp", "rollout"])
@pytest.mark.parametrize("name", VARIANTS)
def test_variants_of_the_vision_transformer(name, method):
    torch.manual_seed(3)
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 2, "num_classes": 5}
    model = VisionTransformer(**(sizes | VARIANTS[name])).eval()
    images = torch.randn(2, 3, 16, 32 if name == "oblong grid" else 16)
    maps = rollout_map(model, images) if method == "rollout" else relevance(model, images, 1, method=method)
    assert maps.shape == (2, 2, 4 if name == "oblong grid" else 2)
    assert maps.isfinite().all() and maps.abs().max() > 0
    tokens = maps[0].numel() + model.num_prefix_tokens
    assert attention_maps(model, images).shape == (2, 2, 2, tokens, tokens)


def test_pooled_tokens_weigh_by_their_own_relevance():
    """With average pooling no token stands for the image; all-equal pooling weights would blur the classes."""
    model = tiny_vit(class_token=False, global_pool="avg")
    images = torch.randn(1, 3, 16, 16, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    maps = relevance(model, images, torch.tensor([[0, 1]]), method="lrp")[0]
    assert (maps[0] / maps[0].sum() - maps[1] / maps[1].sum()).abs().max() > 1e-3


def test_half_precision_weights_are_widened(images):
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=5).eval().bfloat16()
    pixels = torch.randn(1, 3, 160, 160).bfloat16()
    maps, wide = relevance(model, pixels, 1), copy.deepcopy(model).float()
    torch.testing.assert_close(maps, relevance(wide, pixels.float(), 1))
    torch.testing.assert_close(rollout_map(model, pixels), rollout_map(wide, pixels.float()))
    assert attention_maps(model, pixels).dtype == torch.float32
    assert maps.dtype == torch.float32 and next(model.parameters()).dtype == torch.bfloat16


def test_compiled_and_wrapped_models_are_unwrapped(model, images):
    torch.testing.assert_close(relevance(torch.compile(model), images, 1), relevance(model, images, 1))


def test_fused_and_plain_attention_agree(images):
    model = tiny_vit()
    fused = relevance(model, images, 1)
    for block in model.blocks:
        block.attn.fused_attn = not block.attn.fused_attn
    torch.testing.assert_close(relevance(model, images, 1), fused, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", ["lrp", "generic"])
def test_a_convolutional_network_is_refused(method):
    model = timm.create_model("test_resnet", num_classes=5)
    with pytest.raises(UnfitError, match=r"no self-attention.*method=attnlrp works"):
        relevance(model, torch.randn(1, 3, 64, 64), 1, method=method)
    assert relevance(model, torch.randn(1, 3, 64, 64), 1, method="attnlrp").isfinite().all()
