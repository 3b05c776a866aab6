"""Relevance maps compared with Chefer's own code: agreement, time and memory, on the same ViT with the same weights.

python -m benchmarks.bench_explain --chefer FOLDER [--model vit_tiny_patch16_224] [--rounds 5] [--device cpu]

FOLDER is a clone of github.com/hila-chefer/Transformer-Explainability; its code also needs `pip install einops`.
Both sides run in this one process and take turns; the best of the rounds counts. Theirs is driven as its own
generator drives it: forward, backward, relprop, once for each class. Peak memory is that of a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import sys
import time
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path

import timm
import torch
from torch import Tensor

from vitlab.explain import relevance

TOP = 5


def chefer_model(folder: str, ours: torch.nn.Module, *, epsilon_free: bool) -> torch.nn.Module:
    """Chefer's ViT with the weights of `ours`, a plain ViT of timm's."""
    if folder not in sys.path:
        sys.path.insert(0, folder)
    import baselines

    baselines.ViT = types.ModuleType("baselines.ViT")
    from baselines.ViT.ViT_LRP import VisionTransformer
    from modules import layers_ours

    theirs = VisionTransformer(
        img_size=224, patch_size=ours.patch_embed.patch_size[0], embed_dim=ours.embed_dim, depth=len(ours.blocks),
        num_heads=ours.blocks[0].attn.num_heads, num_classes=ours.num_classes, qkv_bias=True,
    )  # fmt: skip
    theirs.load_state_dict(ours.state_dict())
    theirs.norm.eps = ours.norm.eps  # 1e-5 there, 1e-6 in timm
    if not hasattr(layers_ours, "shipped"):
        layers_ours.shipped = layers_ours.safe_divide
    layers_ours.safe_divide = exact_divide if epsilon_free else layers_ours.shipped
    return theirs.eval()


def exact_divide(a: Tensor, b: Tensor) -> Tensor:
    """Their safe_divide without its 1e-9."""
    return torch.where(b == 0, 0.0, a / torch.where(b == 0, 1.0, b))


def chefer_map(model: torch.nn.Module, image: Tensor, index: int) -> Tensor:
    """One class of one image (1, 3, 224, 224), as their generator does it, on any device: (1, patches)."""
    output = model(image)
    one_hot = torch.zeros_like(output)
    one_hot[0, index] = 1
    model.zero_grad()
    (one_hot * output).sum().backward(retain_graph=True)
    return model.relprop(one_hot, method="transformer_attribution", alpha=1).detach()


def setting(name: str, device: str) -> tuple[torch.nn.Module, Tensor]:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=1000).eval()
    with torch.no_grad():  # weights as alive as trained ones; timm's initial ones hardly attend
        for parameter in model.parameters():
            parameter.add_(0.04 * torch.randn_like(parameter))
    return model.to(device), torch.randn(1, 3, 224, 224, device=device)


def agreement(folder: str, name: str) -> None:
    """In double precision, for three classes: the largest difference over the map's maximum."""
    model, image = setting(name, "cpu")
    model, image = model.double(), image.double()
    for epsilon_free in (True, False):
        theirs = chefer_model(folder, model, epsilon_free=epsilon_free).double()
        worst = 0.0
        for index in (7, 281, 950):
            expected = chefer_map(theirs, image, index)
            found = relevance(model, image, index).flatten(1)
            worst = max(worst, float((found - expected).abs().max() / expected.abs().max()))
        print(f"agreement, float64, {'epsilon-free' if epsilon_free else 'as shipped'}: {worst:.1e}")


def best_of(rounds: int, sides: dict[str, Callable[[], object]], device: str) -> dict[str, tuple[float, float]]:
    """The best (wall, CPU) milliseconds of each side; they take turns. CPU time hardly minds busy neighbours."""
    best = {side: (float("inf"), float("inf")) for side in sides}
    for _ in range(rounds):
        for side, run in sides.items():
            synchronise(device)
            wall, processor = time.perf_counter(), time.process_time()
            run()
            synchronise(device)
            spent = 1000 * (time.perf_counter() - wall), 1000 * (time.process_time() - processor)
            best[side] = (min(best[side][0], spent[0]), min(best[side][1], spent[1]))
    return best


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def speed(folder: str, name: str, rounds: int, device: str) -> None:
    model, image = setting(name, device)
    theirs = chefer_model(folder, model, epsilon_free=False).to(device)
    classes = list(range(TOP))
    targets = torch.tensor([classes])
    for title, sides in (
        ("one class", {
            "Chefer": lambda: chefer_map(theirs, image, 281),
            "vitlab": lambda: relevance(model, image, 281),
        }),
        (f"{TOP} classes", {
            "Chefer": lambda: [chefer_map(theirs, image, c) for c in classes],
            "vitlab": lambda: relevance(model, image, targets),
        }),
    ):  # fmt: skip
        for run in sides.values():
            run()
        times = best_of(rounds, sides, device)
        for kind, place in (("wall", 0), ("CPU", 1)) if device == "cpu" else (("wall", 0),):
            theirs_ms, ours_ms = times["Chefer"][place], times["vitlab"][place]
            ratio = f"{theirs_ms / ours_ms:.2f} times faster"
            print(f"{title} of one image, {kind} time: Chefer {theirs_ms:.0f} ms, vitlab {ours_ms:.0f} ms: {ratio}")
    batch = torch.randn(8, 3, 224, 224, device=device)
    relevance(model, batch[:2], 1)
    for method in ("lrp", "generic", "attnlrp"):
        run = partial(relevance, model, batch, 1, method=method)
        wall, processor = best_of(max(1, rounds // 2), {"vitlab": run}, device)["vitlab"]
        print(f"vitlab, {method}, in batches of 8: {wall / 8:.0f} ms per image, {processor / 8:.0f} ms of CPU")


def _measure(side: str, folder: str, name: str, device: str, queue: multiprocessing.Queue) -> None:
    torch.set_num_threads(1)
    model, image = setting(name, device)
    run: Callable[[], object] = partial(relevance, model, image, 281)
    if side == "Chefer":
        theirs = chefer_model(folder, model, epsilon_free=False).to(device)
        run = partial(chefer_map, theirs, image, 281)
    with torch.no_grad():
        model(image)
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        queue.put((torch.cuda.max_memory_allocated() - before) / 2**20)
    else:
        before = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forget the peak so far
        run()
        queue.put(_resident("VmHWM") - before)


def _resident(field: str) -> float:
    """A line of Linux's /proc/self/status, in MiB."""
    line = next(
        row for row in Path("/proc/self/status").read_text(encoding="utf-8").splitlines() if row.startswith(field)
    )
    return int(line.split()[1]) / 1024


def memory(folder: str, name: str, device: str) -> None:
    """What one map adds to a process's peak, beyond a plain forward pass."""
    context = multiprocessing.get_context("spawn")
    peaks = {}
    for side in ("Chefer", "vitlab"):
        queue = context.Queue()
        process = context.Process(target=_measure, args=(side, folder, name, device, queue))
        process.start()
        peaks[side] = queue.get()
        process.join()
    shown = ", ".join(f"{side} {mib:.0f} MiB" for side, mib in peaks.items())
    print(f"memory beyond a forward pass, one class: {shown}: {peaks['Chefer'] / peaks['vitlab']:.2f} times less")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chefer", required=True, help="folder of a clone of Transformer-Explainability")
    parser.add_argument("--model", default="vit_tiny_patch16_224")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    where = torch.cuda.get_device_name() if given.device == "cuda" else f"{platform.machine()}, {given.threads} threads"
    print(f"{given.model}, {where}, torch {torch.__version__}, timm {timm.__version__}")
    agreement(given.chefer, given.model)
    speed(given.chefer, given.model, given.rounds, given.device)
    memory(given.chefer, given.model, given.device)


if __name__ == "__main__":
    main()
