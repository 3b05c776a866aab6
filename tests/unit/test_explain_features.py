"""What features depend on, without a class: equal to what a classifier of that one direction says, and to attention."""

import copy

import numpy as np
import pytest
import timm
import torch
from timm.models import VisionTransformer

from vitlab.explain import attention_maps, class_attention, feature_relevance, patch_features, principal_components
from vitlab.explain.features import own_similarity, reading_tokens, without_classifier
from vitlab.explain.methods import relevance
from vitlab.explain.recording import UnfitError

SIZES = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 2}
KINDS = {
    "class token": {},
    "average": {"global_pool": "avg", "class_token": False, "fc_norm": True},
    "registers and LayerScale": {"reg_tokens": 2, "init_values": 0.1},
}


def vit(num_classes: int = 0, **sizes) -> VisionTransformer:
    torch.manual_seed(3)
    return VisionTransformer(num_classes=num_classes, **(SIZES | sizes)).double().eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, 16, 16, dtype=torch.double, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("method", ["lrp", "generic", "attnlrp"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_target_is_a_classifier_whose_row_is_the_features(kind, method, images):
    backbone = vit(**KINDS[kind])
    found = feature_relevance(backbone, images, method=method)
    assert found.shape == (3, 2, 2) and found.abs().max() > 0
    features = backbone(images).detach()
    for place in range(3):
        classifier = copy.deepcopy(backbone)
        classifier.head = torch.nn.Linear(12, 1, bias=False).double()
        classifier.head.weight = torch.nn.Parameter(features[place : place + 1])
        expected = relevance(classifier, images[place : place + 1], 0, method=method)[0]
        torch.testing.assert_close(found[place], expected, rtol=1e-9, atol=1e-12)


def test_a_classifier_is_left_out_and_left_alone(images):
    model = vit(num_classes=7)
    backbone = vit()
    backbone.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("head.")})
    torch.testing.assert_close(feature_relevance(model, images), feature_relevance(backbone, images))
    assert model(images).shape == (3, 7) and without_classifier(model)(images).shape == (3, 12)


def test_the_gradient_of_the_similarity_is_the_features():
    features = torch.tensor([[1.0, -2.0, 3.0]], requires_grad=True)
    own_similarity(features).sum().backward()
    torch.testing.assert_close(features.grad, features.detach())


def test_attention_is_the_class_tokens_row_of_the_last_layer(images):
    model = vit(reg_tokens=2)
    last = attention_maps(model, images)[-1]  # (B, H, N, N); class token, two registers, four patches
    torch.testing.assert_close(class_attention(model, images), last[:, :, 0, 3:].unflatten(-1, (2, 2)))
    assert reading_tokens(model) == "the class token"


def test_attention_of_a_pooled_model_is_the_patches_mean(images):
    model = vit(global_pool="avg", class_token=False)
    expected = attention_maps(model, images)[-1].mean(2).unflatten(-1, (2, 2))
    torch.testing.assert_close(class_attention(model, images), expected)
    assert "pooled" in reading_tokens(model)


def test_attention_of_class_attention_layers_and_of_pooling_queries():
    torch.manual_seed(0)
    cait = timm.create_model("cait_xxs24_224", img_size=64, depth=2, num_classes=0).eval()
    found = class_attention(cait, torch.randn(1, 3, 64, 64))
    assert found.shape == (1, 4, 4, 4) and 0 < float(found.detach().sum(dim=(2, 3)).max()) < 1
    pooled = vit(global_pool="map", class_token=False).float()
    weights = class_attention(pooled, torch.randn(2, 3, 16, 16))
    torch.testing.assert_close(weights.sum((2, 3)), torch.ones_like(weights[:, :, 0, 0]))


def test_windows_have_no_attention_over_all_patches():
    torch.manual_seed(0)
    swin = timm.create_model("swin_s3_tiny_224", img_size=64, embed_dim=12, num_classes=3).eval()
    with pytest.raises(UnfitError):
        class_attention(swin, torch.randn(2, 3, 64, 64))
    with pytest.raises(UnfitError, match="no patch embedding"):
        patch_features(timm.create_model("test_resnet").eval(), torch.randn(1, 3, 32, 32))


def test_components_are_those_of_the_covariance():
    features = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([4.0, 3, 2, 1, 1])
    coordinates, share = principal_components(features)
    flat = features.flatten(0, 2).double().numpy()
    variances = np.linalg.eigvalsh(np.cov(flat.T))[::-1]
    np.testing.assert_allclose(share, variances[:3] / variances.sum(), rtol=1e-5)
    found = coordinates.flatten(0, 2).double().numpy()
    np.testing.assert_allclose(np.cov(found.T), np.diag(variances[:3]), atol=1e-5)
    assert coordinates.shape == (2, 3, 4, 3) and (found.max(0) >= -found.min(0)).all()


def test_components_that_the_patches_do_not_have_are_0():
    flat, share = principal_components(torch.ones(1, 2, 2, 8))
    assert not flat.any() and not share.any()
    one, share = principal_components(torch.randn(1, 1, 2, 8))  # two patches differ in one direction
    assert share[0] == pytest.approx(1) and not one[..., 2].any()


def test_patch_features_are_the_last_layers_without_the_prefix(images):
    model = vit(reg_tokens=2)
    expected = model.forward_features(images)[:, 3:].unflatten(1, (2, 2)).detach()
    torch.testing.assert_close(patch_features(model, images), expected)
