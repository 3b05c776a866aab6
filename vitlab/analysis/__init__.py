"""From records to tables: collect, compare, lay out, render."""

from vitlab.analysis.collect import collect
from vitlab.analysis.statistics import compare_to_baseline

__all__ = ["collect", "compare_to_baseline"]
