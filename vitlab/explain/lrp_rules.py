"""The backward pass of an operation: its gradient, its relevance (LRP), or its AttnLRP gradient.

LRP is that of Chefer et al., "Transformer Interpretability Beyond Attention Visualization" (CVPR 2021), without the
epsilon of its code and with sums taken per sample. AttnLRP is Achtibat et al. (ICML 2024), written as a modified
gradient: relevance = input × gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Run = Callable[..., Tensor]
OVERWRITTEN = "modified by an inplace operation"
"""Autograd's words, and ours, where a model has written over an activation that the backward pass needs."""
CANCELLED = 64
"""Sums of products below this many rounding errors of their absolute sum count as 0: they are noise."""


class Call:
    """One application of an operation: `inputs` and `output`, detached, and its vector-Jacobian product."""

    def __init__(self, run: Run, inputs: Sequence[Tensor]) -> None:
        self._run = run
        self._leaves = [x.detach().requires_grad_() for x in inputs]
        self._versions = [x._version for x in self._leaves]
        self.reuse = False
        """Whether the backward pass will run again, for another class."""
        self.cache: dict[str, Tensor] = {}
        self._apply()

    def _apply(self) -> None:
        with torch.enable_grad():
            self._result = self._run(*self._leaves)
        self._version = self._result._version

    def _fresh(self) -> Tensor:
        """The result; computed again where the model has written over it since (x += …)."""
        if self._result._version != self._version:
            self._apply()
        return self._result

    @property
    def inputs(self) -> list[Tensor]:
        if [x._version for x in self._leaves] != self._versions:
            raise RuntimeError(f"an activation was {OVERWRITTEN}")
        return [x.detach() for x in self._leaves]

    @property
    def output(self) -> Tensor:
        return self._fresh().detach()

    def vjp(self, g: Tensor) -> list[Tensor]:
        """`g` (as the output) times the Jacobian: a tensor for each input."""
        return list(torch.autograd.grad(self._fresh(), self._leaves, g, retain_graph=True))


def ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where b is 0 (or too small for the quotient to be a number)."""
    return a / b.masked_fill(b.abs() <= torch.finfo(b.dtype).tiny, torch.inf)


def sum_per_sample(x: Tensor) -> Tensor:
    """Sums (B, 1, …, 1) over all but the first axis. Chefer's code sums over the batch as well, which mixes images."""
    return x.sum(tuple(range(1, x.ndim)), keepdim=True)


class Rule:
    """Relevance is shared in proportion to each input's contribution to the output (a linear operation): x ∇(R / y)."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def gradient(self, g: Tensor, call: Call) -> list[Tensor]:
        return call.vjp(g)

    def relevance(self, r: Tensor, call: Call) -> list[Tensor]:
        return [x * c for x, c in zip(call.inputs, call.vjp(ratio(r, call.output)), strict=True)]

    def attnlrp(self, g: Tensor, call: Call) -> list[Tensor]:
        return call.vjp(g)


class Pass(Rule):
    """Relevance passes unchanged: softmax, normalisation, scaling by a constant or a parameter."""

    def relevance(self, r: Tensor, call: Call) -> list[Tensor]:
        return [r.sum_to_size(call.inputs[0].shape)]


class Activation(Pass):
    """GELU and its like, element by element, with f(0) = 0. AttnLRP: f(x) / x in place of the derivative."""

    def attnlrp(self, g: Tensor, call: Call) -> list[Tensor]:
        (x,) = call.inputs
        return [torch.where(x == 0, call.vjp(g)[0], g * ratio(call.output, x))]


class LayerNorm(Pass):
    """Relevance passes. AttnLRP: the standard deviation counts as a constant."""

    def __init__(self, run: Run, weight: Tensor | None, eps: float) -> None:
        super().__init__(run)
        self.weight, self.eps = weight, eps

    def attnlrp(self, g: Tensor, call: Call) -> list[Tensor]:
        (x,) = call.inputs
        scaled = g / (x.var(-1, unbiased=False, keepdim=True) + self.eps).sqrt()
        if self.weight is not None:
            scaled = scaled * self.weight
        return [scaled - scaled.mean(-1, keepdim=True)]


class RMSNorm(Pass):
    """Relevance passes. AttnLRP: the root mean square counts as a constant, so that y is x times a constant."""

    def __init__(self, run: Run, weight: Tensor | None, eps: float) -> None:
        super().__init__(run)
        self.weight, self.eps = weight, eps

    def attnlrp(self, g: Tensor, call: Call) -> list[Tensor]:
        (x,) = call.inputs
        scaled = g / (x.square().mean(-1, keepdim=True) + self.eps).sqrt()
        return [scaled if self.weight is None else scaled * self.weight]


class Linear(Rule):
    """y = x Wᵀ + b. Relevance by the positive products (x w)⁺ alone, without the bias (the αβ rule with α = 1)."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(lambda x: F.linear(x, weight, bias))
        self.weight, self.bias = weight, bias

    def relevance(self, r: Tensor, call: Call) -> list[Tensor]:
        """Σ_j (x_i w_ji)⁺ / z⁺_j R_j, in three matrix products by (x w)⁺ = ½ (x w + |x| |w|)."""
        (x,), weight_size = call.inputs, self.weight.abs()
        size = x.abs()
        positive = call.cache.get("positive")
        if positive is None:
            total = F.linear(size, weight_size)
            y = call.output if self.bias is None else call.output - self.bias
            positive = y + total  # 2 z⁺
            noise = positive <= total.mul_(CANCELLED * torch.finfo(x.dtype).eps)
            positive.masked_fill_(noise, torch.inf)
            if call.reuse:
                call.cache["positive"] = positive
        s = r / positive
        return [(s @ self.weight).mul_(x).addcmul_(size, s @ weight_size)]


class Product(Rule):
    """A product of two activations: each gets half of the relevance of its contribution, in LRP and in AttnLRP."""

    def relevance(self, r: Tensor, call: Call) -> list[Tensor]:
        return [part / 2 for part in super().relevance(r, call)]

    def attnlrp(self, g: Tensor, call: Call) -> list[Tensor]:
        return [part / 2 for part in call.vjp(g)]


class Scores(Product):
    """softmax's input from q and k: scale × q kᵀ + mask. Scale and mask pass relevance on."""

    def __init__(self, scale: float, mask: Tensor | None) -> None:
        super().__init__(lambda q, k: _masked(q @ k.transpose(-2, -1) * scale, mask))
        self.scale, self.mask = scale, mask

    def relevance(self, r: Tensor, call: Call) -> list[Tensor]:
        q, k = call.inputs
        product = call.output / self.scale if self.mask is None else q @ k.transpose(-2, -1)
        s = ratio(r, product).div_(2)
        return [q * (s @ k), k * (s.transpose(-2, -1) @ q)]


def _masked(scores: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return scores
    return scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask


class Sum(Rule):
    """x₁ + x₂ of one shape: shared by contribution, then each branch rescaled so that the total stays (Chefer's Add).

    Branch i gets |Σ aᵢ| / (|Σ a₁| + |Σ a₂|) of the sample's relevance, where aᵢ = xᵢ R / (x₁ + x₂).
    """

    def relevance(self, r: Tensor, call: Call) -> list[Tensor]:
        share = ratio(r, call.output)
        parts = [x * share for x in call.inputs]
        sums = [sum_per_sample(part) for part in parts]
        scale = ratio(sum_per_sample(r), sums[0].abs() + sums[1].abs())
        return [part * (scale * total.sign()) for part, total in zip(parts, sums, strict=True)]


class Quotient(Rule):
    """x₁ / x₂, a normalisation: relevance belongs to the numerator, and to AttnLRP the denominator is a constant."""

    def relevance(self, r: Tensor, call: Call) -> list[Tensor]:
        a, b = call.inputs
        return [r.sum_to_size(a.shape), torch.zeros_like(b)]

    def attnlrp(self, g: Tensor, call: Call) -> list[Tensor]:
        return [call.vjp(g)[0], torch.zeros_like(call.inputs[1])]
