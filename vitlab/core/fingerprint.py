"""What tells the images of one split of a data set from others: taken from the disk, recorded, compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from vitlab.core.integrity import Shape, misfit


@dataclass(frozen=True)
class Fingerprint:
    """What tells the images of one split from others, as provenance.json has it."""

    images: int
    names: str
    """16 hex digits of all names and sizes; of the pixels' shape for images in memory, of the options for FractalDB."""
    sample: str | None = None
    """16 hex digits of the ends of `SAMPLE` files."""
    contents: str | None = None
    """16 hex digits of all bytes; null where they were not read."""

    def plain(self) -> dict[str, Any]:
        return asdict(self)

    def agrees(self, other: Fingerprint) -> bool:
        """Whether nothing that both know differs."""
        known = ((self.sample, other.sample), (self.contents, other.contents))
        return self.names == other.names and all(None in pair or pair[0] == pair[1] for pair in known)

    def joined(self, other: Fingerprint) -> Fingerprint:
        """What either knows of the same images."""
        return replace(self, sample=self.sample or other.sample, contents=self.contents or other.contents)

    @property
    def short(self) -> str:
        """Equal for fingerprints that hold the same; a name for a file."""
        return "-".join(part for part in (self.names, self.sample, self.contents) if part)


FINGERPRINT: dict[str, Shape] = {"images": int, "names": str, "sample?": str, "contents?": str}
"""The shape of a plain fingerprint."""


def plain_fingerprints(value: Any) -> bool:
    """Whether a value is a mapping of splits to plain fingerprints."""
    return isinstance(value, Mapping) and not any(misfit(inner, FINGERPRINT) for inner in value.values())


def fingerprint_from(plain: Mapping[str, Any]) -> Fingerprint:
    """The inverse of `Fingerprint.plain`. Raises ValueError for anything else."""
    try:
        return Fingerprint(int(plain["images"]), str(plain["names"]), plain.get("sample"), plain.get("contents"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"no fingerprint of a data set: {plain!r}") from error


def fingerprints_from(plain: Any) -> dict[str, Fingerprint]:
    """Split → fingerprint, from their plain form; empty for anything that is no mapping, such as the text that older
    records hold. Raises ValueError for a mapping to anything else."""
    return {split: fingerprint_from(value) for split, value in plain.items()} if isinstance(plain, Mapping) else {}
