"""From records to tables: collect, compare, lay out, render."""

from vitlab.analysis.sources.deit_logs import collect_logs
from vitlab.analysis.sources.records import collect
from vitlab.analysis.sources.wandb_runs import collect_wandb
from vitlab.analysis.statistics import compare_to_baseline

__all__ = ["collect", "collect_logs", "collect_wandb", "compare_to_baseline"]
