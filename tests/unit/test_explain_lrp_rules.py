"""Each rule by itself: what it conserves, and what it does with noise and in-place writing."""

import pytest
import torch
import torch.nn.functional as F
from explain_references import tiny_vit

from vitlab.explain import UnfitError, relevance
from vitlab.explain import lrp_rules as rules
from vitlab.explain.lrp_rules import Call


def apply(rule, *inputs):
    return Call(rule.run, inputs)


def doubles(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


def test_linear_is_the_positive_products_and_conserves():
    x, weight, bias, r = doubles(4, 7), doubles(5, 7, seed=1), doubles(5, seed=2), doubles(4, 5, seed=3)
    (found,) = rules.Linear(weight, bias).relevance(r, apply(rules.Linear(weight, bias), x))
    products = (x[:, None] * weight).clamp(min=0)
    torch.testing.assert_close(found, (products / products.sum(-1, keepdim=True) * r[..., None]).sum(1))
    torch.testing.assert_close(found.sum(1), r.sum(1))


def test_linear_without_positive_products_stops_relevance():
    """All products negative: in single precision z⁺ is rounding noise, and dividing by it would make infinities."""
    x, weight = torch.rand(3, 50) + 0.1, -torch.rand(4, 50) - 0.1
    rule = rules.Linear(weight, None)
    (found,) = rule.relevance(torch.ones(3, 4), apply(rule, x))
    assert found.abs().max() == 0


def test_linear_keeps_its_denominator_only_for_more_classes():
    rule = rules.Linear(doubles(5, 7), None)
    call = apply(rule, doubles(4, 7, seed=1))
    first = rule.relevance(doubles(4, 5, seed=2), call)[0]
    assert not call.cache
    call.reuse = True
    rule.relevance(doubles(4, 5, seed=2), call)
    torch.testing.assert_close(rule.relevance(doubles(4, 5, seed=2), call)[0], first)
    assert call.cache


@pytest.mark.parametrize(
    ("rule", "shapes"),
    [
        (rules.Product(torch.matmul), ((3, 4, 5), (3, 5, 6))),
        (rules.Product(torch.mul), ((3, 4), (3, 4))),
        (rules.Scores(0.5, None), ((3, 4, 5), (3, 6, 5))),
        (rules.Sum(torch.add), ((3, 4, 5), (3, 4, 5))),
        (rules.Rule(lambda x: x.mean(1, keepdim=True)), ((3, 4),)),
        (rules.Pass(lambda x: x.softmax(-1)), ((3, 4),)),
        (rules.Quotient(torch.div), ((3, 4), (3, 1))),
    ],
)
def test_relevance_is_conserved_per_sample(rule, shapes):
    inputs = [doubles(*shape, seed=i) for i, shape in enumerate(shapes)]
    call = apply(rule, *inputs)
    r = doubles(*call.output.shape, seed=9)
    parts = rule.relevance(r, call)
    assert all(part.shape == x.shape for part, x in zip(parts, inputs, strict=True))
    total = sum(rules.sum_per_sample(part).flatten() for part in parts)
    torch.testing.assert_close(total, rules.sum_per_sample(r).flatten())


def test_sum_is_per_sample():
    a, b, r = doubles(4, 6), doubles(4, 6, seed=1), doubles(4, 6, seed=2)
    rule = rules.Sum(torch.add)
    together = rule.relevance(r, apply(rule, a, b))
    for i in range(4):
        one = rule.relevance(r[i : i + 1], apply(rule, a[i : i + 1], b[i : i + 1]))
        torch.testing.assert_close(together[0][i : i + 1], one[0])


@pytest.mark.parametrize("function", [F.gelu, F.silu, F.relu, torch.tanh])
def test_attnlrp_of_an_activation_passes_relevance(function):
    x, r = doubles(3, 5), doubles(3, 5, seed=1)
    rule = rules.Activation(function)
    call = apply(rule, x)
    gradient = rules.ratio(r, call.output)
    found = x * rule.attnlrp(gradient, call)[0]
    torch.testing.assert_close(found, torch.where(call.output == 0, 0.0, r))


def test_attnlrp_at_zero_is_the_derivative():
    rule = rules.Activation(F.gelu)
    call = apply(rule, torch.zeros(2, dtype=torch.double))
    torch.testing.assert_close(
        rule.attnlrp(torch.ones(2, dtype=torch.double), call)[0], torch.tensor([0.5, 0.5]).double()
    )


def test_attnlrp_of_norms_has_a_constant_deviation():
    x, weight, bias, g = doubles(3, 6), doubles(6, seed=1), doubles(6, seed=2), doubles(3, 6, seed=3)
    layer = rules.LayerNorm(lambda t: F.layer_norm(t, (6,), weight, bias, 1e-6), weight, 1e-6)
    free = x.clone().requires_grad_()
    deviation = (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    expected = (free - free.mean(-1, keepdim=True)) / deviation * weight + bias
    torch.testing.assert_close(layer.attnlrp(g, apply(layer, x))[0], torch.autograd.grad(expected, free, g)[0])
    root = rules.RMSNorm(lambda t: F.rms_norm(t, (6,), weight, 1e-6), weight, 1e-6)
    expected = free / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight
    torch.testing.assert_close(root.attnlrp(g, apply(root, x))[0], torch.autograd.grad(expected, free, g)[0])


def test_a_quotient_by_nothing_is_nothing():
    found = rules.ratio(torch.tensor([1.0, 1.0, 0.0]), torch.tensor([0.0, 1e-40, 2.0]))
    assert found.tolist() == [0, 0, 0]


class Inplace(torch.nn.Module):
    """A network that writes over its activations."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = torch.nn.Linear(12, 6), torch.nn.Linear(6, 3)

    def forward(self, x):
        hidden = self.first(x.flatten(1))
        hidden += 1.0
        hidden[:, :2].add_(0.5)
        return self.second(torch.nn.functional.relu(hidden, inplace=True))


def test_writing_over_activations_keeps_its_meaning():
    model, images = Inplace().double(), doubles(2, 3, 2, 2)
    found = relevance(model, images, 1, method="attnlrp")
    hidden = F.linear(images.flatten(1), model.first.weight, model.first.bias) + torch.tensor([1.5, 1.5, 1, 1, 1, 1])
    gradient = ((hidden > 0) * model.second.weight[1]) @ model.first.weight
    torch.testing.assert_close(found, (images * gradient.view_as(images)).sum(1).detach())


def test_what_is_overwritten_after_its_use_is_refused():
    class Overwriting(torch.nn.Module):
        def __init__(self, block):
            super().__init__()
            self.block = block

        def forward(self, x):
            normed = self.block.norm2(x)
            out = self.block(x) + self.block.mlp(normed)
            normed.mul_(2.0)
            return out

    model = tiny_vit()
    model.blocks[1] = Overwriting(model.blocks[1])
    with pytest.raises(UnfitError, match="writes over activations"):
        relevance(model, doubles(1, 3, 16, 16), 1, method="lrp")
