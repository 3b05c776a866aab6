"""W&B: whether and how it can be reached, the runs of cells and of figures, and what their summaries hold packed."""

from __future__ import annotations

import base64
import contextlib
import json
import netrc
import os
import ssl
import threading
import urllib.error
import urllib.request
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from vitlab.core.errors import ConfigError
from vitlab.core.metrics import PRIMARY, row_key

if TYPE_CHECKING:
    import numpy as np

ANSWER_SECONDS = 5.0
"""How long a server may take to answer before a run is logged offline."""
FINISH_SECONDS = 30.0
"""How long a finished run may take to be uploaded; `wandb sync` uploads the rest."""
_LEGACY = {"dryrun": "offline", "run": "online"}
_VIEWER = "query Viewer { viewer { id } }"
Answer = Literal["ready", "no answer", "key refused"]


@dataclass(frozen=True)
class Choice:
    """How a run is logged: `mode` is what W&B is started with, `why` is the reason."""

    mode: Literal["online", "offline", "disabled"]
    why: Literal["asked", "key", "no key", "no answer", "key refused"]
    url: str = ""
    """The server, where it was asked."""


def asked_mode(mode: str) -> str:
    """`wandb.mode`, or for `auto` the value of WANDB_MODE: auto, online, offline or disabled."""
    chosen = os.environ.get("WANDB_MODE") if mode == "auto" else None
    return _LEGACY.get(chosen, chosen) if chosen else mode


def has_key() -> bool:
    """Whether credentials are configured: WANDB_API_KEY, an identity token, or what `wandb login` writes."""
    return bool(os.environ.get("WANDB_IDENTITY_TOKEN_FILE")) or _key() is not None


def require_key(mode: str) -> None:
    """Raise ConfigError where W&B is to be online and has no key."""
    if asked_mode(mode) == "online" and not has_key():
        source = "" if mode == "online" else " (WANDB_MODE)"
        raise ConfigError(
            "wandb.mode",
            f"online{source} needs a key, and none is configured; type `wandb login`, or give wandb.mode=offline and "
            "upload later with `wandb sync`",
        )


def require_accepted_key(mode: str) -> None:
    """Raise ConfigError where W&B is to be online and its server does not accept the key. One request."""
    if asked_mode(mode) == "online" and ask_server(url := base_url()) == "key refused":
        raise ConfigError(
            "wandb.mode",
            f"{url} does not accept the key that is configured; type `wandb login --relogin`, or give "
            "wandb.mode=offline and upload later with `wandb sync`",
        )


def choose_mode(mode: str) -> Choice:
    """How to log now: online where a key is configured and the server answers within ANSWER_SECONDS, else offline."""
    asked = asked_mode(mode)
    if asked == "disabled":
        return Choice("disabled", "asked")
    if asked == "offline":
        return Choice("offline", "asked")
    if not has_key():
        return Choice("offline", "no key")
    answer = ask_server(url := base_url())
    return Choice("online", "key", url) if answer == "ready" else Choice("offline", answer, url)


def quiet_settings(mode: str) -> Any:
    """The SDK's settings for a run that prints nothing and, online, holds no cell up for longer than FINISH_SECONDS.

    Offline there is no limit: with one, the SDK returns before its file is written.
    """
    import wandb

    bounds: dict[str, Any] = {"init_timeout": FINISH_SECONDS}
    if mode == "online":
        bounds |= {"finish_timeout": FINISH_SECONDS, "finish_timeout_raises": True}
    known = getattr(wandb.Settings, "model_fields", bounds)  # older ones have no limit to finishing
    words = {name: value for name, value in bounds.items() if name in known}
    return wandb.Settings(silent=True, console="off", x_disable_stats=True, **words)


def start_run(choice: Choice, **about: Any) -> Any:
    """Begin a run of the SDK's that prints nothing; `about` are further arguments of `wandb.init`.

    Raises whatever the SDK raises.
    """
    import wandb

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return wandb.init(**about, mode=choice.mode, settings=quiet_settings(choice.mode))


def log_figures(mode: str, figures: Sequence[Path], **about: Any) -> None:
    """Log png files as images of one run; whatever goes wrong, a line is printed and the files are on the disk.

    With `wandb.mode=auto` only where W&B would be online: pictures are no record, so none are kept for later.
    """
    if not figures or asked_mode(mode) == "disabled":
        return
    choice = choose_mode(mode)
    if choice.mode != "online" and mode != "offline":
        if choice.why in ("no answer", "key refused"):
            said = "did not answer" if choice.why == "no answer" else "does not accept the key (wandb login --relogin)"
            print(f"W&B: {choice.url} {said}; the figures are on the disk")
        return
    try:
        run = start_run(choice, dir=str(figures[0].parent), **about)
        import wandb

        run.log({figure.stem: wandb.Image(str(figure)) for figure in figures})
        run.finish()
    except Exception as error:
        print(f"W&B: {error} (the figures are on the disk)")


def pack_hits(hits: np.ndarray) -> str:
    """Which evaluation images a model gets right, (N,) bool, in their order: bits, compressed, in base64.

    1 kB for ImageNet's 50,000, so that checkpoints can be compared from W&B alone.
    """
    import numpy as np

    return f"{len(hits)}:{base64.b64encode(zlib.compress(np.packbits(hits).tobytes())).decode()}"


def unpack_hits(packed: str) -> np.ndarray:
    """The inverse of `pack_hits`. Raises ValueError or zlib.error for anything else."""
    import numpy as np

    count, _, data = packed.partition(":")
    bits = np.unpackbits(np.frombuffer(zlib.decompress(base64.b64decode(data, validate=True)), np.uint8))
    if not 0 <= len(bits) - int(count) < 8:
        raise ValueError(f"{len(bits)} bits are not of {count} images")
    return bits[: int(count)].astype(bool)


def pack_curve(rows: Sequence[Mapping[str, Any]]) -> str:
    """The primary metric over the epochs as JSON, `[[epoch, top1], …]`: learning curves without a query per run."""
    key = row_key(PRIMARY)
    return json.dumps([[row["epoch"], row[key]] for row in rows if key in row])


def unpack_curve(packed: str) -> list[dict[str, Any]]:
    """The rows, of epoch and primary metric alone, that `pack_curve` packed. Raises ValueError or TypeError."""
    return [{"epoch": epoch, row_key(PRIMARY): value} for epoch, value in json.loads(packed)]


def base_url() -> str:
    """The address of W&B's server, as the SDK has it from its settings."""
    if given := os.environ.get("WANDB_BASE_URL"):
        return given.rstrip("/")
    import wandb

    return str(wandb.setup().settings.base_url).rstrip("/")


def ask_server(url: str, seconds: float = ANSWER_SECONDS) -> Answer:
    """Ask the server at `url`, with a limit of so many seconds, however long a name or a connection takes."""
    answers: list[Answer] = []
    thread = threading.Thread(target=lambda: answers.append(_ask(url, seconds)), daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else "no answer"


def _ask(url: str, seconds: float) -> Answer:
    headers = {"Content-Type": "application/json", "User-Agent": "vitlab"}
    if key := _key(urlsplit(url).hostname):
        headers["Authorization"] = f"Basic {base64.b64encode(f'api:{key}'.encode()).decode()}"
    request = urllib.request.Request(f"{url}/graphql", json.dumps({"query": _VIEWER}).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=seconds) as response:
            content: Any = json.load(response)
        viewer = content["data"].get("viewer", {}) if isinstance(content.get("data"), dict) else {}
        return "key refused" if viewer is None and "Authorization" in headers else "ready"
    except urllib.error.HTTPError as error:
        return "key refused" if error.code in (401, 403) else "no answer" if error.code >= 500 else "ready"
    except (OSError, ValueError, AttributeError) as error:
        certificate = isinstance(getattr(error, "reason", None), ssl.SSLError)  # the SDK may know the issuer
        return "ready" if certificate else "no answer"


def _key(host: str | None = None) -> str | None:
    """The API key for a server; of `host` None any that `wandb login` has written."""
    if key := os.environ.get("WANDB_API_KEY"):
        return key
    with contextlib.suppress(OSError, netrc.NetrcParseError, UnicodeDecodeError):
        known = netrc.netrc(str(_netrc_file())).hosts
        given = os.environ.get("WANDB_BASE_URL")
        host = host or (urlsplit(given).hostname if given else None)
        own = [name for name in known if name == host or (host is None and ("wandb" in name or "coreweave" in name))]
        return next((secret for name in own if (secret := known[name][2])), None)
    return None


def _netrc_file() -> Path:
    if named := os.environ.get("NETRC"):
        return Path(named).expanduser()
    return next((f for name in (".netrc", "_netrc") if (f := Path.home() / name).is_file()), Path.home() / ".netrc")
