"""Weights on the Hugging Face hub: what a name means there, its digest without a download, and the download itself.

Everything goes through huggingface_hub: its cache, its token, its HF_ENDPOINT and HF_HUB_OFFLINE. A file is pinned to
the commit that was found first, so that every later use, on a compute node without a network too, reads the same bytes.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vitlab.core.errors import ConfigError
from vitlab.core.integrity import DamagedError, file_digest

WEIGHTS = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip
"""The weights in a folder of timm's or transformers', the preferred first."""
INDEX = ".index.json"
"""What the name of an index of shards ends in."""
_FURTHER = ("config.json", "preprocessor_config.json")
_REPOSITORY = r"[\w][\w.-]*/[\w][\w.-]*"
_NAMED = re.compile(rf"(?:hf-hub:|hf_hub:)(?P<repo>{_REPOSITORY})(?:@(?P<revision>[\w./-]+))?(?::(?P<file>[\w./-]+))?")
_TIMMS = re.compile(r"(?P<repo>timm/[\w][\w.-]*)(?:@(?P<revision>[\w./-]+))?")
_ADDRESS = re.compile(
    rf"https?://[\w.:-]+/(?P<repo>{_REPOSITORY})(?:/(?:tree|blob|resolve)/(?P<revision>[\w.-]+)(?:/(?P<file>[^?#]+))?)?/?"
    r"(?:[?#].*)?"
)
_PINNED = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubFile:
    """Weights on the hub; what is not known yet is None."""

    repo: str
    revision: str | None = None
    """A branch, a tag or, once it was looked up, a commit of 40 hexadecimal digits."""
    file: str | None = None
    digest: str | None = None
    """SHA-256 of the file; of an index of shards, that of the shards' own."""
    size: int = 0
    """Bytes of the weights."""
    further: tuple[str, ...] = ()
    """The other files that belong to it: shards, config.json, preprocessor_config.json."""

    @property
    def name(self) -> str:
        """What to type for exactly this file."""
        at = f"@{self.revision}" if self.revision else ""
        return f"hf-hub:{self.repo}{at}" + (f":{self.file}" if self.file else "")


def named_on_hub(name: str) -> HubFile | None:
    """What `hf-hub:USER/MODEL[@REVISION][:FILE]`, `timm/MODEL` or a model card's address names; None for other text."""
    match = _NAMED.fullmatch(name) or _TIMMS.fullmatch(name) or _ADDRESS.fullmatch(name)
    if match is None:
        return None
    parts = match.groupdict()
    return HubFile(parts["repo"], parts["revision"], parts.get("file"))


@functools.lru_cache(maxsize=64)
def look_up(wanted: HubFile, key: str) -> HubFile:
    """`wanted` with its commit, file and digest, from the hub's metadata; without a network, from the local cache.

    Nothing is downloaded where the hub tells the digest, as it does of every large file. Raises ConfigError, naming
    `key`, where the hub has no such model, revision or weights, or where it is out of reach and the cache is empty.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        info = HfApi().model_info(wanted.repo, revision=wanted.revision, files_metadata=True, timeout=20)
    except GatedRepoError as error:
        text = f"{wanted.repo} is gated: accept its terms at its page, and log in (hf auth login)"
        raise ConfigError(key, text) from error
    except RevisionNotFoundError as error:
        text = f"{wanted.repo} has no revision {wanted.revision!r}; leave it out for the newest"
        raise ConfigError(key, text) from error
    except RepositoryNotFoundError as error:
        raise ConfigError(
            key, f"the hub has no model {wanted.repo!r}, or it is private and you are not logged in (hf auth login)"
        ) from error
    except HFValidationError as error:
        raise ConfigError(key, f"{wanted.repo!r} is no name of a model: {error}") from error
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError, *_transport_errors()) as error:
        return _cached(wanted, key, error)
    entries = {entry.rfilename: entry for entry in info.siblings or ()}
    sizes = {name: (entry.size or 0, entry.lfs.sha256 if entry.lfs else None) for name, entry in entries.items()}
    file = wanted.file or _weights_among(list(sizes))
    if file is None or file not in sizes:
        held = ", ".join(sorted(sizes)[:6]) or "nothing"
        asked = f"no {file}" if file else "no weights that are known here"
        raise ConfigError(key, f"{wanted.repo} holds {asked} ({held}); name a file: hf-hub:{wanted.repo}:FILE")
    shards = _shards(file, list(sizes))
    further = tuple(name for name in _FURTHER if name in sizes)
    found = HubFile(wanted.repo, info.sha, file, None, sum(sizes[n][0] for n in shards or [file]), (*shards, *further))
    digests = [sizes[name][1] for name in shards or [file]]
    if None in digests:  # a file so small that the hub keeps it in git
        return dataclasses.replace(found, digest=weights_digest(fetch(found, key)))
    return dataclasses.replace(found, digest=_joined([str(d) for d in digests]) if shards else digests[0])


def fetch(file: HubFile, key: str) -> Path:
    """The file in the local cache, downloaded where it is not there yet. Raises ConfigError where that fails,
    DamagedError where what arrived has another digest than the hub tells."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if not (file.revision and _PINNED.fullmatch(file.revision) and file.file):
        file = look_up(file, key)
    assert file.file, "as looked up"
    further = file.further
    if not further:  # pinned by an earlier command
        if (cached := in_cache(file)) is not None:
            return cached
        file = look_up(file, key)
        further = file.further
    assert file.file, "as looked up"
    try:
        for name in further:
            hf_hub_download(file.repo, name, revision=file.revision)
        path = Path(hf_hub_download(file.repo, file.file, revision=file.revision))
    except LocalEntryNotFoundError as error:
        raise ConfigError(key, _unreachable(file, error)) from error
    except (HfHubHTTPError, OSError, *_transport_errors()) as error:
        raise ConfigError(
            key, f"the download of {file.name} was interrupted ({_line(error)}); type the command again: what has "
            "arrived is kept",
        ) from error  # fmt: skip
    if file.digest and weights_digest(path) != file.digest:
        problem = f"is not what the hub has (SHA-256 {weights_digest(path)[:12]}…, not {file.digest[:12]}…)"
        raise DamagedError(path, problem, f"delete {path.resolve()} and type the command again")
    return path


def weights_digest(path: Path) -> str:
    """SHA-256 of a file of weights; of an index of shards, that of the shards' digests."""
    if not path.name.endswith(INDEX):
        return file_digest(path)
    shards = _shards(path.name, [entry.name for entry in path.parent.iterdir()])
    return _joined([file_digest(path.with_name(name)) for name in shards])


def _joined(digests: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _weights_among(names: Sequence[str]) -> str | None:
    known = next((name for name in WEIGHTS if name in names), None)
    others = [n for n in names if n.endswith((".safetensors", ".bin", ".npz", ".pth", ".pt")) and "/" not in n]
    return known or (others[0] if len(others) == 1 else None)


def _shards(file: str, names: Sequence[str]) -> list[str]:
    """The shards that belong to an index, in order."""
    if not file.endswith(INDEX):
        return []
    stem, _, ending = file.removesuffix(INDEX).rpartition(".")
    pattern = re.compile(rf"{re.escape(stem)}-\d+-of-\d+\.{re.escape(ending)}")
    return sorted(name for name in names if pattern.fullmatch(name))


def _cached(wanted: HubFile, key: str, error: Exception) -> HubFile:
    """What the local cache has of `wanted`, for want of an answer of the hub."""
    for file in [wanted.file] if wanted.file else WEIGHTS:
        path = in_cache(dataclasses.replace(wanted, file=file)) or _newest_in_cache(wanted, file)
        if path is not None:
            commit = path.parent.name
            return HubFile(wanted.repo, commit, file, weights_digest(path), path.stat().st_size)
    raise ConfigError(key, _unreachable(wanted, error)) from error


def in_cache(file: HubFile) -> Path | None:
    """Where the file is in the local cache; None where it is not."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(file.repo, file.file or "", revision=file.revision)
    return Path(found) if isinstance(found, str) else None


def _newest_in_cache(wanted: HubFile, file: str) -> Path | None:
    """The file of the commit that was downloaded last, where no revision is asked for: we download by commit, of which
    huggingface_hub keeps no branch."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    if wanted.revision not in (None, "main"):
        return None
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=wanted.repo, repo_type="model") / "snapshots"
    found = [commit / file for commit in folder.glob("*") if (commit / file).is_file()]
    return max(found, key=lambda path: path.parent.stat().st_mtime, default=None)


def _unreachable(file: HubFile, error: Exception) -> str:
    return (
        f"{file.name} is not in the cache, and the hub is out of reach ({_line(error)}). Where there is a network, "
        f"download it once (hf download {file.repo}); or give a file"
    )


def _transport_errors() -> tuple[type[Exception], ...]:
    """What the client's own transport raises and huggingface_hub passes on; which transport, depends on its version."""
    kinds: list[type[Exception]] = []
    for module, name in (("httpx2", "HTTPError"), ("httpx", "HTTPError"), ("requests", "RequestException")):
        if module in sys.modules:
            kinds.append(getattr(sys.modules[module], name))
    return tuple(kinds)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:140] or type(error).__name__


def require_token(repo: str, key: str) -> None:
    """Raise ConfigError where `repo` is no USER/NAME, or no token is configured to upload with."""
    from huggingface_hub import get_token

    if not re.fullmatch(_REPOSITORY, repo):
        raise ConfigError(key, f"got {repo!r}, expected USER/NAME")
    if not get_token():
        raise ConfigError(key, "uploading needs a token, and none is configured; type hf auth login, or set HF_TOKEN")


def upload(folder: Path, repo: str, key: str) -> str:
    """Upload a folder as the model `repo`, which is made where it does not exist; returns its address.

    Raises ConfigError where the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    api = HfApi()
    try:
        api.create_repo(repo, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload by vitlab")
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError, *_transport_errors()) as error:
        raise ConfigError(key, f"{repo} was not uploaded ({_line(error)}); the folder is at {folder}") from error
    except RuntimeError as error:
        if not isinstance(error.__cause__, (HfHubHTTPError, OSError, *_transport_errors())):
            raise
        text = f"{repo} was not uploaded ({_line(error)} {_line(error.__cause__)}); the folder is at {folder}"
        raise ConfigError(key, text) from error
    return f"{api.endpoint}/{repo}"
