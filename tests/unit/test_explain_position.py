"""Position embeddings and patch filters."""

import pytest
import timm
import torch
from explain_references import tiny_vit

from vitlab.explain import UnfitError, position_similarity, rgb_filters


def test_similarity_is_the_cosine_at_each_place():
    model = tiny_vit(img_size=(16, 24))
    found = position_similarity(model)
    assert found.shape == (2, 3, 2, 3)
    embedding = model.pos_embed[0, 1:].detach().float()
    expected = torch.nn.functional.cosine_similarity(embedding[4], embedding[2], dim=0)
    assert found[1, 1, 0, 2].item() == pytest.approx(expected.item(), abs=1e-6)
    assert found.abs().max() <= 1
    torch.testing.assert_close(found.flatten(0, 1).flatten(1).diagonal(), torch.ones(6))


@pytest.mark.parametrize("changes", [
    {"reg_tokens": 2}, {"reg_tokens": 2, "no_embed_class": True}, {"class_token": False, "global_pool": "avg"},
])  # fmt: skip
def test_prefix_tokens_are_dropped(changes):
    model = tiny_vit(**changes)
    torch.testing.assert_close(
        position_similarity(model)[0, 0, 1, 1],
        torch.nn.functional.cosine_similarity(model.pos_embed[0, -4], model.pos_embed[0, -1], dim=0).float(),
    )


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "test_resnet"])
def test_a_model_without_positions_is_refused(name):
    with pytest.raises(UnfitError, match="no position embedding of its own"):
        position_similarity(timm.create_model(name))
    with pytest.raises(UnfitError, match="no position embedding of its own"):
        position_similarity(tiny_vit(pos_embed="none"))


def test_filters_are_principal_components_in_order():
    model = tiny_vit(embed_dim=24)
    filters = rgb_filters(model, 10)
    assert filters.shape == (10, 3, 8, 8) and filters.min() == 0 and filters.max() == 1
    weight = model.patch_embed.proj.weight.detach().flatten(1)
    weight = weight - weight.mean(0)
    values, vectors = torch.linalg.eigh(weight.T @ weight)
    strongest = vectors[:, -1] if vectors[:, -1].abs().max() == vectors[:, -1].max() else -vectors[:, -1]
    expected = (strongest - strongest.min()) / (strongest.max() - strongest.min())
    torch.testing.assert_close(filters[0].flatten(), expected.float(), rtol=1e-4, atol=1e-5)
    assert values[-1] >= values[-2]
    assert len(rgb_filters(model, 500)) == 24


def test_filters_need_one_convolution_of_rgb():
    with pytest.raises(UnfitError, match="no filters"):
        rgb_filters(timm.create_model("test_resnet"))
