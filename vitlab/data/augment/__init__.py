"""The study's subject: augmentation, batched, on whatever device trains, with per-sample counters for randomness."""

from vitlab.data.augment.engine import Augment
from vitlab.data.augment.mixing import mix

__all__ = ["Augment", "mix"]
