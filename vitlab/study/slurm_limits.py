"""How many jobs Slurm takes from this user: in one array, and at once; asked where it answers, kept in any case."""

from __future__ import annotations

import getpass
import re
import subprocess
import sys
from dataclasses import dataclass

from vitlab.study.slurm_options import SlurmOptions

MAX_ARRAY_SIZE = 1001
"""Slurm's default, for clusters that do not say."""
NO_SUCH_ARRAY = "Invalid job array specification"
REFUSED = re.compile(rf"MaxSubmit|SubmitJob|job submit limit|{NO_SUCH_ARRAY}", re.IGNORECASE)
"""In sbatch's answer where there are too many jobs, and not where something is wrong with them."""
_SHARE = 8
"""An array is not submitted for less than this part of the places, while jobs of this user still wait for nodes."""


@dataclass(frozen=True)
class Limits:
    """What a cluster takes from this user; `at_once` is None where it does not say, or has no limit."""

    array: int = MAX_ARRAY_SIZE
    """Jobs of one array (MaxArraySize: the largest index is one less)."""
    at_once: int | None = None
    """Jobs that have not ended, each of an array counted (MaxSubmitJobs)."""

    def room(self, taken: int) -> int:
        """Jobs that may be submitted now, where this user has so many that have not ended."""
        return sys.maxsize if self.at_once is None else max(0, self.at_once - taken)

    def array_of(self, count: int) -> int:
        """Jobs of the first array of so many: arrays are as equal as can be, 6 and 6 rather than 11 and 1."""
        arrays = -(-count // self.array)
        return -(-count // arrays)

    def worth_it(self, room: int, waiting: int, wanted: int) -> bool:
        """Whether to submit into `room` places, `waiting` being jobs that are queued for nodes: one by one, thousands
        of cells would be thousands of arrays."""
        least = 1 if self.at_once is None or not waiting else max(1, self.at_once // _SHARE)
        return room >= min(least, wanted)


def ask_limits(options: SlurmOptions) -> Limits:
    """The limits of jobs with these options, by scontrol and sacctmgr."""
    shown = re.search(r"^MaxArraySize\s*=\s*(\d+)", _answer("scontrol", "show", "config"), re.MULTILINE)
    array = max(1, int(shown[1])) if shown else MAX_ARRAY_SIZE
    found, qualities = _of_associations(options)
    if options.qos is not None:
        qualities = {options.qos}
    if qualities:
        told = _table("sacctmgr", "-n", "-P", "show", "qos", "format=Name,MaxSubmitJobsPU,MaxSubmitJobsPA,GrpSubmit")
        found += [number for name, *numbers in told if name in qualities for number in numbers]
    return Limits(array, min((int(number) for number in found if number.isdigit()), default=None))


def _of_associations(options: SlurmOptions) -> tuple[list[str], set[str]]:
    """The limits that this user's associations set for such jobs, and the qualities of service that they begin in."""
    account = options.account
    if account is None:
        words = ("sacctmgr", "-n", "-P", "show", "user", getpass.getuser(), "format=DefaultAccount")
        account = next((row[0] for row in _table(*words) if row[0]), None)
    found, qualities = [], set()
    columns = "format=Account,Partition,MaxSubmitJobs,GrpSubmitJobs,DefaultQOS"
    for row in _table("sacctmgr", "-n", "-P", "show", "assoc", f"user={getpass.getuser()}", columns):
        if len(row) == 5 and account in (None, row[0]) and row[1] in ("", options.partition or row[1]):
            found += row[2:4]
            qualities |= {row[4]} - {""}
    return found, qualities


def _table(*words: str) -> list[list[str]]:
    return [line.split("|") for line in _answer(*words).splitlines() if line]


def _answer(*words: str) -> str:
    """What a command of Slurm prints; empty where it fails, or a cluster has no accounting."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, encoding="utf-8", errors="replace")
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "" if done.returncode else done.stdout
