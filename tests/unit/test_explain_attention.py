"""Attention maps and rollout, by hand and compared with explicit attention."""

import pytest
import timm
import torch
from explain_references import forward, tiny_vit
from timm.models import VisionTransformer

from vitlab.core.errors import ConfigError
from vitlab.explain import UnfitError, attention_distance, attention_maps, rollout, rollout_map
from vitlab.explain.attention import fuse_heads


@pytest.fixture(scope="module")
def model():
    return tiny_vit()


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, 16, 16, dtype=torch.double, generator=torch.Generator().manual_seed(5))


def test_maps_equal_attention_written_out(model, images):
    maps = attention_maps(model, images)
    values = forward(model, images)
    assert maps.shape == (2, 3, 2, 5, 5) and not maps.requires_grad
    torch.testing.assert_close(maps, torch.stack([values[i]["a"] for i in range(2)]).detach())


def test_rollout_of_three_tokens_by_hand():
    first = torch.tensor([[0.2, 0.3, 0.5], [0.1, 0.8, 0.1], [0.4, 0.4, 0.2]]).double()
    second = torch.tensor([[0.6, 0.2, 0.2], [0.3, 0.3, 0.4], [0.0, 0.5, 0.5]]).double()
    found = rollout(torch.stack([first, second])[:, None, None])[0]
    # ½ (A + I) row by row; then class token: 0.8 and 0.1, 0.1 of the first layer's rows.
    halved = [[0.6, 0.15, 0.25], [0.05, 0.9, 0.05], [0.2, 0.2, 0.6]]
    by_hand = [0.8 * halved[0][j] + 0.1 * halved[1][j] + 0.1 * halved[2][j] for j in range(3)]
    torch.testing.assert_close(found[0], torch.tensor(by_hand).double())
    torch.testing.assert_close(found.sum(-1), torch.ones(3).double())


@pytest.mark.parametrize("how", ["mean", "max", "min"])
def test_rows_sum_to_one_however_heads_are_fused(how):
    attention = torch.rand(4, 2, 3, 6, 6, dtype=torch.double).softmax(-1)
    found = rollout(attention, head_fusion=how, discard_ratio=0.5)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 6).double())
    expected = {"mean": attention[0].mean(1), "max": attention[0].max(1).values, "min": attention[0].min(1).values}
    torch.testing.assert_close(fuse_heads(attention[0], how), expected[how])


def test_discarding_drops_the_smallest_entries_but_never_the_first():
    attention = torch.tensor([[0.0, 0.6, 0.4], [0.1, 0.2, 0.7], [0.3, 0.3, 0.4]]).double()
    found = rollout(attention[None, None, None], discard_ratio=0.34)[0]  # 3 of 9: 0.0 (kept, the first), 0.1, 0.2
    expected = torch.tensor([[1.0, 0.6, 0.4], [0.0, 1.0, 0.7], [0.3, 0.3, 1.4]]).double()
    torch.testing.assert_close(found, expected / expected.sum(-1, keepdim=True))


def test_start_layer_leaves_out_the_layers_before(model, images):
    maps = attention_maps(model, images)
    torch.testing.assert_close(rollout(maps, start_layer=1), rollout(maps[1:]))
    with pytest.raises(ConfigError, match="start_layer: got 2"):
        rollout(maps, start_layer=2)
    with pytest.raises(ConfigError, match="discard_ratio: got 1"):
        rollout(maps, discard_ratio=1.0)


@pytest.mark.parametrize("options", [{}, {"head_fusion": "max", "discard_ratio": 0.5}])
def test_rollout_of_an_image_does_not_see_its_batch(options, model, images):
    alone = torch.cat([rollout_map(model, image[None], **options) for image in images])
    torch.testing.assert_close(rollout_map(model, images, **options), alone, rtol=1e-9, atol=1e-12)


def test_the_map_is_the_class_tokens_row(model, images):
    joint = rollout(attention_maps(model, images))
    torch.testing.assert_close(rollout_map(model, images).flatten(1), joint[:, 0, 1:])


def test_the_map_of_a_pooled_model_is_the_patches_mean(images):
    model = tiny_vit(class_token=False, global_pool="avg", reg_tokens=2)
    joint = rollout(attention_maps(model, images))  # 2 registers, 4 patches
    torch.testing.assert_close(rollout_map(model, images).flatten(1), joint[:, 2:].mean(1)[:, 2:])


def test_distilled_models_read_two_tokens():
    torch.manual_seed(0)
    model = timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, depth=2, num_classes=5).double().eval()
    torch.nn.init.normal_(model.head.weight)
    torch.nn.init.normal_(model.head_dist.weight)
    images = torch.randn(1, 3, 32, 32).double()
    joint = rollout(attention_maps(model, images))
    torch.testing.assert_close(rollout_map(model, images).flatten(1), joint[:, :2].mean(1)[:, 2:])


def test_the_logits_are_those_of_the_model_itself(model, images):
    from vitlab.explain.recording import prepared, record

    with prepared(model):
        torch.testing.assert_close(record(model, images).logits, model(images))


def test_uniform_attention_has_the_known_distance():
    uniform = torch.full((1, 1, 1, 197, 197), 1 / 197)
    assert attention_distance(uniform, (14, 14), 16).item() == pytest.approx(116.49, abs=0.01)


def test_distance_by_hand_on_an_oblong_grid():
    attention = torch.zeros(1, 1, 1, 3, 3)  # a class token, and patches side by side
    attention[..., 0, :] = 1 / 3
    attention[..., 1, :] = torch.tensor([0.5, 0.25, 0.25])
    attention[..., 2, :] = torch.tensor([0.0, 1.0, 0.0])
    assert attention_distance(attention, (1, 2), (4, 8)).item() == pytest.approx((0.5 * 8 + 8) / 2)


def test_side_by_side_attentions_are_refused():
    model = timm.create_model("vit_base_patch16_18x2_224", img_size=32, depth=1, embed_dim=12, num_heads=2)
    model.blocks.append(model.blocks[0])
    with pytest.raises(UnfitError, match="side by side"):
        rollout_map(model.eval(), torch.randn(1, 3, 32, 32))


def test_windows_are_refused():
    model = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=56, embed_dim=12, depths=(1, 1), num_heads=(2, 2)
    )
    images = torch.randn(1, 3, 56, 56)
    with pytest.raises(UnfitError, match="not global"):
        rollout_map(model.eval(), images)
    with pytest.raises(UnfitError, match="not global"):
        attention_maps(model, images)


def test_maps_of_attention_pooling_leave_the_pooling_out():
    model = VisionTransformer(
        img_size=16,
        patch_size=8,
        embed_dim=12,
        depth=2,
        num_heads=2,
        num_classes=5,
        global_pool="map",
        class_token=False,
    ).eval()
    assert attention_maps(model, torch.randn(2, 3, 16, 16)).shape == (2, 2, 2, 4, 4)
    assert rollout_map(model, torch.randn(2, 3, 16, 16)).shape == (2, 2, 2)
