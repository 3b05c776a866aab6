"""Perturbation, deletion and insertion curves of several methods."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib
from matplotlib.figure import Figure

from vitlab.explain.faithfulness import Curves
from vitlab.explain.plot.style import COLOURS, METHOD_TITLES, RC

PANELS = (
    ("most_first", "most relevant removed first", "class kept (%)", "lower is better"),
    ("least_first", "least relevant removed first", "class kept (%)", "higher is better"),
    ("deletion", "deletion", "probability of the class (%)", "lower is better"),
    ("insertion", "insertion", "probability of the class (%)", "higher is better"),
)


def draw_curves(curves: Mapping[str, Curves], *, title: str) -> Figure:
    """Four panels; bands are the standard error over images; the random baseline is grey."""
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(12.4, 3.2), layout="constrained")
        axes = figure.subplots(1, 4)
        colours = iter(COLOURS)
        styles = {m: ("0.5", "--") if m == "random" else (next(colours), "-") for m in curves}
        for axis, (name, heading, ylabel, better) in zip(axes, PANELS, strict=True):
            for method, curve in curves.items():
                colour, line = styles[method]
                share, values = 100 * curve.share.numpy(), 100 * getattr(curve, name).numpy()
                mean, error = values.mean(1), values.std(1, ddof=1) / values.shape[1] ** 0.5
                axis.plot(share, mean, line, color=colour, lw=1.7, label=METHOD_TITLES[method])
                axis.fill_between(share, mean - error, mean + error, color=colour, alpha=0.15, lw=0)
            axis.set_title(f"{heading}\n({better})")
            axis.set_xlabel("patches " + ("given (%)" if name == "insertion" else "removed (%)"))
            axis.set_ylabel(ylabel)
            axis.set_ylim(-2, 102)
            axis.spines[["top", "right"]].set_visible(False)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8)
        figure.suptitle(title, x=0.005, ha="left")
    return figure
