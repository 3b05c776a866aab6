"""From records to tables: collect, compare, lay out, render."""

from vitlab.analysis.collect import collect
from vitlab.analysis.deit_logs import collect_logs
from vitlab.analysis.statistics import compare_to_baseline
from vitlab.analysis.wandb_source import collect_wandb

__all__ = ["collect", "collect_logs", "collect_wandb", "compare_to_baseline"]
