"""One forward pass of a model, kept so that it can be explained."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitlab.core.errors import UserError
from vitlab.explain.traced_operations import Meaning, Tape


class UnfitError(UserError):
    """A method does not fit an architecture; the message says why, and which method does."""


@dataclass
class Recording:
    """A forward pass under a tape."""

    tape: Tape
    images: Tensor
    """(B, 3, H, W), the leaf of the graph."""
    tokens: Tensor | None
    """(B, N, D), what the last block hands to the pooling; None where the model has no list of blocks."""
    logits: Tensor
    """(B, C)"""

    def attention(self) -> list[Tensor]:
        """The layers' attention (B, H, Q, K), in order. Raises UnfitError where it does not make a chain."""
        if not self.tape.attention:
            raise UnfitError(
                "the model has no self-attention over all tokens (is it convolutional, a mixer, or of windows alone?); "
                "explain.method=attnlrp works on it"
            )
        inside = [block for block in self.tape.blocks_of_attention if 0 < block < self.tape.block]
        if len(inside) > len(set(inside)):
            raise UnfitError(
                "its blocks hold several attentions side by side, which is no chain; explain.method=attnlrp works on it"
            )
        return self.tape.attention

    def pull(self, meaning: Meaning, outputs: Tensor, inputs: list[Tensor]) -> list[Tensor | None]:
        """Backpropagate one-hot rows (B, C) to each input under the given rule set; None if unreached."""
        self.tape.meaning = meaning
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


def record(model: nn.Module, images: Tensor, *, backward: bool = True) -> Recording:
    """Run `model` on `images` (B, 3, H, W) under a tape. Without `backward`, only the pooling is differentiable.

    `model` must be `unwrapped` and `prepared`. Raises UnfitError where the output is no (B, C) logits.
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

    tape = Tape()

    def count(_module: nn.Module, _inputs: object) -> None:
        tape.block += 1

    blocks = getattr(model, "blocks", None)
    with ExitStack() as stack:
        if isinstance(blocks, nn.Sequential | nn.ModuleList) and len(blocks):
            hooks = [blocks[-1].register_forward_hook(keep)]
            hooks += [block.register_forward_pre_hook(count) for block in blocks]
            for hook in hooks:
                stack.callback(hook.remove)
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast(images.device.type, enabled=False))
        with tape:
            logits = model(images)
    if isinstance(logits, tuple | list):
        logits = logits[0]
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise UnfitError("the model's output is not one row of class scores per image")
    return Recording(tape, images, kept[-1] if kept else None, logits)
