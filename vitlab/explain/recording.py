"""One forward pass of an unmodified model, recorded so that its backward pass can have three meanings.

A `TorchFunctionMode` intercepts about a dozen operations while the model runs its own forward; each becomes one
autograd node with a `Rule`. Structural operations (reshape, cat, expand, indexing, …) keep their own backward: for a
permutation or a selection the vector-Jacobian product is the routing of relevance, and its sums where a tensor is
used twice are the rule for copies.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vitlab.core.errors import UserError
from vitlab.explain import lrp_rules as rules
from vitlab.explain.lrp_rules import Call, Rule

Meaning = Literal["gradient", "relevance", "attnlrp"]
ACTIVATIONS = frozenset(
    ("gelu", "silu", "relu", "tanh", "hardswish", "hardtanh", "elu", "leaky_relu", "relu6", "mish", "selu", "celu",
     "relu_", "silu_", "tanh_")
)  # fmt: skip
"""Functions of one element with f(0) = 0."""
IN_PLACE: dict[str, Callable[..., Tensor]] = {
    "add_": torch.add, "__iadd__": torch.add, "mul_": torch.mul, "__imul__": torch.mul, "sub_": torch.sub,
    "__isub__": torch.sub, "div_": torch.div, "__itruediv__": torch.div, "__idiv__": torch.div,
}  # fmt: skip
STRUCTURAL = frozenset(
    ("reshape", "view", "view_as", "flatten", "unflatten", "permute", "transpose", "movedim", "swapaxes", "swapdims",
     "squeeze", "unsqueeze", "expand", "expand_as", "repeat", "repeat_interleave", "tile", "cat", "concat", "stack",
     "split", "chunk", "unbind", "tensor_split", "__getitem__", "__setitem__", "select", "narrow", "index_select",
     "gather", "roll", "flip", "pad", "contiguous", "clone", "detach", "to", "float", "type", "type_as", "double",
     "as_tensor", "mT", "T", "t", "copy_", "dropout", "identity", "requires_grad_", "rot90", "take_along_dim",
     "_dropout", "dropout_", "feature_dropout", "masked_fill", "where", "amax", "amin", "max_pool2d",
     "adaptive_max_pool2d", "reshape_as")
)  # fmt: skip
"""Operations whose own backward already routes relevance."""
NAMES = {
    "__matmul__": "matmul", "bmm": "matmul", "__add__": "add", "__radd__": "add", "__mul__": "mul", "__rmul__": "mul",
    "multiply": "mul", "__truediv__": "div", "__sub__": "sub", "_softmax": "softmax", "__neg__": "neg",
    "native_layer_norm": "layer_norm",
}  # fmt: skip


class _Node(torch.autograd.Function):
    """An operation whose backward follows its rule, in the meaning that its recorder has."""

    @staticmethod
    def forward(ctx: Any, recorder: Recorder, rule: Rule, *inputs: Tensor) -> Tensor:
        ctx.recorder, ctx.rule, ctx.call = recorder, rule, Call(rule.run, inputs)
        return ctx.call.output

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        ctx.call.reuse = ctx.recorder.reuse
        return (None, None, *getattr(ctx.rule, ctx.recorder.meaning)(cotangents[0], ctx.call))


def is_activation(x: Any) -> bool:
    """Whether `x` depends on the input. Parameters are frozen while it is recorded: gradients mark activations."""
    return isinstance(x, Tensor) and x.requires_grad and x.is_floating_point()


class Recorder(TorchFunctionMode):
    """Records a forward pass. `attention` holds the softmax outputs (B, H, Q, K) in order."""

    def __init__(self) -> None:
        super().__init__()
        self.meaning: Meaning = "gradient"
        self.reuse = False
        """Whether more backward passes of one meaning will come: what they share is then kept."""
        self.attention: list[Tensor] = []
        self.foreign: dict[str, int] = {}
        """Operations without a rule → how many attentions came before the last use."""
        self.block = 0
        """Number of the block that is running, where the model has a list of blocks."""
        self.blocks_of_attention: list[int] = []

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if not args and "input" in kwargs:
            args = (kwargs.pop("input"),)
        if name in IN_PLACE and any(is_activation(a) for a in args):
            result = self.__torch_function__(IN_PLACE[name], types, (args[0].clone(), *args[1:]), kwargs)
            args[0].copy_(result)
            return args[0]
        handler = _HANDLERS.get(NAMES.get(name, name))
        out = handler(self, func, *args, **kwargs) if handler else NotImplemented
        if out is not NotImplemented:
            return out
        if name in ACTIVATIONS and is_activation(args[0]):
            kwargs.pop("inplace", None)
            function = getattr(torch, name.removesuffix("_"), func) if name.endswith("_") else func
            return self._node(rules.Activation(lambda x: function(x, *args[1:], **kwargs)), args[0])
        out = func(*args, **kwargs)
        if name not in STRUCTURAL and is_activation(out):
            self.foreign[name] = len(self.attention)
        return out

    def _node(self, rule: Rule, *inputs: Tensor) -> Tensor:
        return _Node.apply(self, rule, *inputs)  # pyright: ignore[reportReturnType]

    def _linear(self, _: Any, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
        return self._node(rules.Linear(weight, bias), x) if is_activation(x) else NotImplemented

    def _attend(
        self, _: Any, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
        dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
    ) -> Tensor:  # fmt: skip
        """Fused attention, in its three steps."""
        if enable_gqa:
            groups = query.shape[-3] // key.shape[-3]
            key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
        factor = query.shape[-1] ** -0.5 if scale is None else scale
        if is_causal:
            shape = query.shape[-2], key.shape[-2]
            attn_mask = torch.ones(shape, dtype=torch.bool, device=query.device).tril()
        rule = rules.Scores(factor, attn_mask)
        if is_activation(query) and is_activation(key):
            scores = self._node(rule, query, key)
        elif is_activation(query) or is_activation(key):  # a learned query pools the tokens
            fixed, free = (query, key) if is_activation(key) else (key, query)
            flip = is_activation(key)
            scores = self._node(Rule(lambda x: rule.run(fixed, x) if flip else rule.run(x, fixed)), free)
        else:
            scores = rule.run(query, key)
        weights = self._softmax(torch.softmax, scores, -1)
        if is_activation(weights) and is_activation(value):
            return self._node(rules.Product(torch.matmul), weights, value)
        return weights @ value

    def _softmax(self, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if is_activation(x):
            out = self._node(rules.Pass(lambda s: func(s, *args, **kwargs)), x)
        else:
            out = func(x, *args, **kwargs)
        if out.ndim == 4:
            self.attention.append(out)
            self.blocks_of_attention.append(self.block)
        return out

    def _layer_norm(
        self, func: Any, x: Tensor, shape: Any, weight: Tensor | None = None, bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Any:  # fmt: skip
        if not is_activation(x):
            return NotImplemented
        return self._node(rules.LayerNorm(lambda t: F.layer_norm(t, shape, weight, bias, eps), weight, eps), x)

    def _rms_norm(
        self, func: Any, x: Tensor, shape: Any, weight: Tensor | None = None, eps: float | None = None
    ) -> Any:
        if not is_activation(x):
            return NotImplemented
        eps = torch.finfo(x.dtype).eps if eps is None else eps
        return self._node(rules.RMSNorm(lambda t: F.rms_norm(t, shape, weight, eps), weight, eps), x)

    def _pass(self, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not is_activation(x):
            return NotImplemented
        return self._node(rules.Pass(lambda t: func(t, *args, **kwargs)), x)

    def _share(self, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not is_activation(x):
            return NotImplemented
        return self._node(Rule(lambda t: func(t, *args, **kwargs)), x)

    def _add(self, func: Any, a: Any, b: Any, **kwargs: Any) -> Any:
        if is_activation(a) and is_activation(b) and not kwargs:
            return self._node((rules.Sum if a.shape == b.shape else Rule)(torch.add), a, b)
        return self._with_constant(torch.add, a, b, **kwargs)

    def _multiply(self, func: Any, a: Any, b: Any) -> Any:
        if is_activation(a) and is_activation(b):
            return self._node(rules.Product(torch.mul), a, b)
        return self._with_constant(torch.mul, a, b)

    def _divide(self, func: Any, a: Any, b: Any, **kwargs: Any) -> Any:
        if is_activation(a) and is_activation(b) and not kwargs:
            return self._node(rules.Quotient(torch.div), a, b)
        return NotImplemented if is_activation(b) else self._with_constant(torch.div, a, b, **kwargs)

    def _subtract(self, func: Any, a: Any, b: Any, **kwargs: Any) -> Any:
        if is_activation(a) and is_activation(b):
            return self._node(Rule(lambda x, y: torch.sub(x, y, **kwargs)), a, b)
        return self._with_constant(torch.sub, a, b, **kwargs)

    def _matmul(self, func: Any, a: Tensor, b: Tensor) -> Any:
        if is_activation(a) and is_activation(b):
            return self._node(rules.Product(torch.matmul), a, b)
        if is_activation(a):
            return self._node(Rule(lambda x: torch.matmul(x, b)), a)
        return self._node(Rule(lambda x: torch.matmul(a, x)), b) if is_activation(b) else NotImplemented

    def _einsum(self, func: Any, equation: str, *operands: Any) -> Any:
        if len(operands) == 2 and all(is_activation(x) for x in operands):
            return self._node(rules.Product(lambda a, b: torch.einsum(equation, a, b)), *operands)
        return NotImplemented

    def _with_constant(self, operation: Callable[..., Tensor], a: Any, b: Any, **kwargs: Any) -> Any:
        """An activation and a number or parameter: relevance belongs to the activation."""
        if is_activation(a):
            return self._node(rules.Pass(lambda x: operation(x, b, **kwargs)), a)
        if is_activation(b):
            return self._node(rules.Pass(lambda x: operation(a, x, **kwargs)), b)
        return NotImplemented


_HANDLERS: dict[str, Callable[..., Any]] = {
    "linear": Recorder._linear, "scaled_dot_product_attention": Recorder._attend, "softmax": Recorder._softmax,
    "layer_norm": Recorder._layer_norm, "rms_norm": Recorder._rms_norm, "mean": Recorder._share, "sum": Recorder._share,
    "add": Recorder._add, "mul": Recorder._multiply, "div": Recorder._divide, "sub": Recorder._subtract,
    "matmul": Recorder._matmul, "einsum": Recorder._einsum,
}  # fmt: skip
_HANDLERS |= dict.fromkeys(
    ("group_norm", "batch_norm", "normalize", "sigmoid", "softplus", "hardsigmoid", "neg"), Recorder._pass
)


class UnfitError(UserError):
    """A method does not fit an architecture; the message gives the reason and a method that fits."""


@dataclass
class Recording:
    """A forward pass with what its recorder holds."""

    recorder: Recorder
    images: Tensor
    """(B, 3, H, W), the leaf of the graph."""
    tokens: Tensor | None
    """(B, N, D), the last block's output, which is pooled; None where the model has no list of blocks."""
    logits: Tensor
    """(B, C)"""

    def attention(self) -> list[Tensor]:
        """The layers' attention (B, H, Q, K), in order. Raises UnfitError where it does not make a chain."""
        if not self.recorder.attention:
            raise UnfitError(
                "the model has no self-attention over all tokens (is it convolutional, a mixer, or of windows alone?); "
                "explain.method=attnlrp works on it"
            )
        inside = [block for block in self.recorder.blocks_of_attention if 0 < block < self.recorder.block]
        if len(inside) > len(set(inside)):
            raise UnfitError(
                "its blocks hold several attentions side by side, which is no chain; explain.method=attnlrp works on it"
            )
        return self.recorder.attention

    def pull(self, meaning: Meaning, outputs: Tensor, inputs: list[Tensor]) -> list[Tensor | None]:
        """Backpropagate one-hot rows (B, C) to each input under the given rule set; None if unreached."""
        self.recorder.meaning = meaning
        return list(torch.autograd.grad(self.logits, inputs, outputs, retain_graph=True, allow_unused=True))


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside torch.compile's or DistributedDataParallel's wrapper, in at least single precision."""
    for name in ("_orig_mod", "module"):
        inner = getattr(model, name, None)
        if isinstance(inner, nn.Module):
            return unwrapped(inner)
    if any(p.dtype in (torch.bfloat16, torch.float16) for p in model.parameters()):
        return copy.deepcopy(model).float()  # relevance divides: half precision would be noise
    return model


@contextmanager
def prepared(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode, frozen and without checkpointing; afterwards it is as it was."""
    modes = [(m, m.training) for m in model.modules()]
    frozen = [(p, p.requires_grad) for p in model.parameters()]
    checkpointing = [m for m in model.modules() if getattr(m, "grad_checkpointing", False) is True]
    try:
        model.eval()
        for parameter, _ in frozen:
            parameter.requires_grad_(False)
        for module in checkpointing:
            module.grad_checkpointing = False  # pyright: ignore[reportArgumentType]
        with torch.inference_mode(False):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, required in frozen:
            parameter.requires_grad_(required)
        for module in checkpointing:
            module.grad_checkpointing = True  # pyright: ignore[reportArgumentType]


def record(
    model: nn.Module, images: Tensor, *, backward: bool = True, readout: Callable[[Tensor], Tensor] | None = None
) -> Recording:
    """Run `model` on `images` (B, 3, H, W) with a recorder. Without `backward`, only the pooling is differentiable.

    `readout` makes the scores to be explained of the model's output. `model` must be
    `unwrapped` and `prepared`. Raises UnfitError where the output is no (B, C) logits.
    """
    parameter = next(model.parameters())
    images = images.detach().to(parameter.device, parameter.dtype).clone().requires_grad_(backward)
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: object) -> object:
        if not isinstance(output, Tensor) or output.ndim != 3:
            return None
        output = output if backward else output.detach().requires_grad_()
        kept.append(output)
        return output

    recorder = Recorder()

    def count(_module: nn.Module, _inputs: object) -> None:
        recorder.block += 1

    blocks = getattr(model, "blocks", None)
    with ExitStack() as stack:
        if isinstance(blocks, nn.Sequential | nn.ModuleList) and len(blocks):
            hooks = [blocks[-1].register_forward_hook(keep)]
            hooks += [block.register_forward_pre_hook(count) for block in blocks]
            for hook in hooks:
                stack.callback(hook.remove)
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast(images.device.type, enabled=False))
        with recorder:
            logits = model(images)
            if isinstance(logits, tuple | list):
                logits = logits[0]
            if readout is not None:
                logits = readout(logits)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise UnfitError("the model's output is not one row of class scores per image")
    return Recording(recorder, images, kept[-1] if kept else None, logits)
