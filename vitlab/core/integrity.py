"""Whether data are what was recorded: digests in JSON and YAML, checksums of archives, fingerprints of images."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vitlab.core.errors import UserError

DIGEST = "digest"
"""The key under which a mapping holds the digest of all its other keys."""
_BLOCK, _INNER = (re.compile(rf"^{indent}(?=[^\s-]|-\S)", re.MULTILINE) for indent in ("", "  "))
"""Where a key of YAML begins; a `- ` belongs to the list of the key before."""
_PLAIN = re.compile(r"[^&*!%|>#\t]*")
"""YAML without anchors, tags, directives, comments and blocks of text."""


class DamagedError(UserError):
    """A file that cannot be read, or that is not what was written. Reads `PATH: problem; remedy`.

    `path` is an address where the file is a run of W&B's server.
    """

    def __init__(self, path: Path | str, problem: str, remedy: str) -> None:
        super().__init__(remedy)
        self.args = (path, problem, remedy)
        self.path, self.problem = path, problem

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}; {self.text}"


def train_again(identity: str) -> str:
    """What to do about a damaged file of a cell; what follows the colon is added to the study's command."""
    return f"restore the file, or train the cell again: study.rerun='[{identity}]'"


class NewerError(UserError):
    """A file that a newer vitlab has written."""


def digest_of(content: Mapping[str, Any]) -> str:
    """SHA-256 (64 hexadecimal digits) of a mapping of plain values, without its own digest.

    The order of keys does not count, and 90.0 is 90: JSON and YAML writers differ in both.
    """
    return _digest_of_normal(_normal({key: value for key, value in content.items() if key != DIGEST}))


def _digest_of_normal(plain: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _normal(value: Any) -> Any:
    if type(value) is str or type(value) is int or value is None:  # most are: a study of 10,000 cells has millions
        return value
    if type(value) is dict or isinstance(value, Mapping):
        return {str(key): _normal(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_normal(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """`content` with its digest as the last key."""
    return {key: value for key, value in content.items() if key != DIGEST} | {DIGEST: digest_of(content)}


def is_sealed(content: Mapping[str, Any]) -> bool:
    """Whether `content` is what `sealed` made. False also for a mapping without a digest."""
    return content.get(DIGEST) == digest_of(content)


def file_digest(path: Path) -> str:
    """SHA-256 (64 hexadecimal digits) of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_text(path: Path, remedy: str) -> str | None:
    """A UTF-8 text file, or None where there is none. Raises DamagedError for anything else of that name."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise DamagedError(path, f"damaged (byte {error.start} is not UTF-8)", remedy) from error
    except IsADirectoryError as error:
        raise DamagedError(path, "is a folder, not a file", remedy) from error
    except OSError as error:
        raise DamagedError(path, f"cannot be read ({error.strerror})", remedy) from error


def read_mapping(
    path: Path, remedy: str, schema: int | None = None, *, verified: bool = False
) -> dict[str, Any] | None:
    """A JSON or YAML file that holds a mapping, without its digest; None where there is no such file.

    A file without a digest is taken as it is; so is one whose bytes the caller has `verified`. Raises DamagedError,
    which ends in `remedy`, for a file that cannot be parsed, holds no mapping, or has another content than when it was
    written; NewerError where its schema_version is above `schema` (None: any will do).
    """
    text = read_text(path, remedy)
    if text is None:
        return None
    if not text.strip():
        raise DamagedError(path, "damaged (it is empty)", remedy)
    try:
        content = parse_yaml(text) if path.suffix == ".yaml" else json.loads(text)
    except Exception as error:  # damaged text makes the parsers raise nearly anything, RecursionError among them
        raise DamagedError(path, f"damaged ({one_line_of(error)})", remedy) from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise DamagedError(path, "damaged (no mapping inside)", remedy)
    version = content.get("schema_version", 0)
    if not isinstance(version, int):
        raise DamagedError(path, f"damaged (schema_version is {version!r})", remedy)
    if schema is not None and version > schema:
        raise NewerError(
            f"{path}: written by a newer vitlab (schema {version}, this one reads up to {schema}); update vitlab or "
            "use another output_dir"
        )
    if DIGEST in content and not verified and not _is_intact(text, content, path):
        raise DamagedError(path, "damaged (its content has changed since it was written)", remedy)
    content.pop(DIGEST, None)
    return content


Shape = Any
"""A type, or several; a predicate; a mapping of keys to shapes, where `key?` may be absent or null; `[shape]`, a list
of such values."""


def any_number(value: Any) -> bool:
    """A number, which may be infinite or NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def finite(value: Any) -> bool:
    return any_number(value) and math.isfinite(value)


def percent(value: Any) -> bool:
    """A number from 0 to 100."""
    return finite(value) and 0 <= value <= 100


def texts(value: Any) -> bool:
    """A mapping of texts to texts, or to null."""
    return isinstance(value, Mapping) and all(
        isinstance(key, str) and (text is None or isinstance(text, str)) for key, text in value.items()
    )


def misfit(value: Any, shape: Shape, key: str = "") -> str | None:
    """Where `value` is not of `shape`: "last.top1 is 'x'", or None. Keys that `shape` does not name may be anything."""
    if type(shape) is dict:
        if type(value) is not dict and not isinstance(value, Mapping):
            return f"{key or 'its content'} is {_shown(value)}"
        for name, inner in shape.items():
            own = name.removesuffix("?")
            if own != name and value.get(own) is None:
                continue
            if type(inner) is type and type(value.get(own)) is inner:
                continue  # the usual case, without a call
            inside = f"{key}.{own}".strip(".")
            if found := misfit(value[own], inner, inside) if own in value else f"{inside} is missing":
                return found
        return None
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{key} is {_shown(value)}"
        return next((m for i, v in enumerate(value) if (m := misfit(v, shape[0], f"{key}[{i}]"))), None)
    if isinstance(shape, type | tuple):
        boolean = shape is bool or (isinstance(shape, tuple) and bool in shape)
        fits = isinstance(value, shape) and (boolean or not isinstance(value, bool))
    else:
        fits = shape(value)
    return None if fits else f"{key} is {_shown(value)}"


def contradiction(one: Mapping[str, Any], other: Mapping[str, Any], key: str = "") -> str | None:
    """The first key that two trees of values both hold, with different values: `recipe.epochs`; None where they agree.

    A key that only one holds is of another version of vitlab, and no contradiction.
    """
    for name in (name for name in one if name in other):
        inside = f"{key}.{name}".removeprefix(".")
        if isinstance(one[name], Mapping) and isinstance(other[name], Mapping):
            if found := contradiction(one[name], other[name], inside):
                return found
        elif one[name] != other[name]:
            return inside
    return None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}…"


def _is_intact(text: str, content: Mapping[str, Any], path: Path) -> bool:
    """`is_sealed` for what was read from `text`; JSON's own parser makes whole numbers integers, which is faster."""
    if path.suffix == ".yaml":
        return is_sealed(content)
    plain = json.loads(text, parse_float=_whole)
    return plain.pop(DIGEST) == _digest_of_normal(plain)


def _whole(text: str) -> int | float:
    value = float(text)
    return int(value) if value.is_integer() else value


def one_line_of(error: Exception) -> str:
    """The message of a library's error, cut to one line of at most 120 characters."""
    return " ".join(str(error).split())[:120] or type(error).__name__


@dataclass(frozen=True)
class Fingerprint:
    """The identity of the images of one split, as in provenance.json."""

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


def parse_yaml(text: str) -> Any:
    """What PyYAML's safe loader makes of `text`; raises its errors.

    Cells have most groups in common: a group that was parsed once is shared here, and nobody may change what is inside.
    """
    found: dict[str, Any] = {}
    lines = ""
    try:
        if _PLAIN.fullmatch(text) is None or text.startswith("---"):
            return _load(text)
        for block in _BLOCK.split(text):
            head, _, rest = block.partition("\n")
            if rest.startswith("  ") and head.endswith(":"):
                (key,) = _load_group(head)
                found[key] = inner = {}
                for part in _INNER.split(rest):
                    inner |= _load_group(part)
            else:
                lines += block
        found |= _load(lines) or {}
    except Exception:  # it is laid out in another way, or damaged: the whole is parsed, and what is wrong said of that
        return _load(text)
    return found


@functools.lru_cache(maxsize=4096)
def _load_group(text: str) -> Mapping[str, Any]:
    return _load(text) if text.strip() else {}


def _load(text: str) -> Any:
    import yaml

    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # C: ten times faster, where libyaml is there
