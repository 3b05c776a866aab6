"""Commands as a user types them, each in a process of its own that finds the libraries loaded.

A start of run.py imports torch, timm, SciPy and more: 8 s of processor time, for tests that need one. Here one process
imports the libraries, none of vitlab, and every command is a fork of it: with its own words, folder, environment,
streams, signals and end. Where nobody serves (`served`), and for `cold=True`, a command is a new interpreter. The
workers of pytest-xdist are forks of the same process (`WORKER`).
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[2]
PLACE = "VITLAB_COMMANDS"
"""The variable that says at which socket commands are served."""
LIBRARIES = (
    "torch", "torch._dynamo", "torch.distributed", "torch.utils.data", "timm", "torchvision.transforms.v2",
    "hydra.main", "hydra._internal.hydra", "scipy.stats", "scipy.optimize", "pandas", "sklearn.datasets",
    "matplotlib.figure", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_pdf", "PIL.Image",
    "wandb", "safetensors.torch",
)  # fmt: skip
WORKER = f"popen//python={sys.executable} -I -S {__file__}"
"""A worker of pytest-xdist, as execnet specifies it, which finds the libraries loaded."""
REWRITTEN = ("hydra", "anyio")
"""Libraries that are plugins of pytest, which wants to import them itself."""
END_SECONDS = 60.0
"""How long commands that still run may hold up the end of `served`."""
ASK = 1 << 20
"""No request has as many bytes."""


class Command:
    """A command that runs, with what tests need of `subprocess.Popen`."""

    def __init__(self, script: str, words: tuple[str, ...], cwd: Path, environment: dict[str, str],
                 merged: bool, own_session: bool) -> None:  # fmt: skip
        out, its_out = os.pipe()
        err, its_err = os.pipe() if not merged else (None, its_out)
        about = {"script": str(ROOT / script), "words": words, "cwd": str(cwd), "environment": environment,
                 "own_session": own_session}  # fmt: skip
        self.args = [script, *words]
        self._about_it = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._about_it.connect(os.environ[PLACE])
        with open(os.devnull, encoding="utf-8") as nothing:
            socket.send_fds(self._about_it, [json.dumps(about).encode()], [nothing.fileno(), its_out, its_err])
        for file in {its_out, its_err}:
            os.close(file)
        self.stdout = os.fdopen(out, encoding="utf-8")
        self.stderr = None if err is None else os.fdopen(err, encoding="utf-8")
        self.pid = int(self._about_it.recv(ASK))
        self.returncode: int | None = None

    def poll(self, seconds: float | None = 0) -> int | None:
        if self.returncode is None and select.select([self._about_it], [], [], seconds)[0]:
            self.returncode = os.waitstatus_to_exitcode(int(self._about_it.recv(ASK)))
            self._about_it.close()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.poll(timeout) is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str | None]:
        streams = [stream for stream in (self.stdout, self.stderr) if stream is not None]
        read: list[str] = [""] * len(streams)
        end = None if timeout is None else time.monotonic() + timeout

        def take(place: int) -> None:
            read[place] = streams[place].read()
            streams[place].close()

        threads = [threading.Thread(target=take, args=(place,), daemon=True) for place in range(len(streams))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(None if end is None else max(0, end - time.monotonic()))
            if thread.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
        self.wait(None if end is None else max(0, end - time.monotonic()))
        return read[0], read[1] if self.stderr is not None else None

    def __del__(self) -> None:
        self._about_it.close()


def start(
    script: str, *words: str, cwd: Path, merged: bool = False, own_session: bool = False, cold: bool = False,
    **environment: str,
) -> Any:  # fmt: skip
    """`python script words` in `cwd`, started; `merged`: its errors come through `stdout`. A Popen or a `Command`."""
    variables = os.environ | environment
    variables.pop(PLACE, None)
    if PLACE in os.environ and not cold:
        return Command(script, words, cwd, variables, merged, own_session)
    return subprocess.Popen(
        [sys.executable, str(ROOT / script), *words], cwd=cwd, env=variables, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT if merged else subprocess.PIPE, encoding="utf-8",
        start_new_session=own_session,
    )  # fmt: skip


def run(
    script: str, *words: str, cwd: Path, seconds: float = 300, cold: bool = False, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`python script words` in `cwd`, ended."""
    process = start(script, *words, cwd=cwd, cold=cold, **environment)
    try:
        output, errors = process.communicate(timeout=seconds)
    except BaseException:
        process.kill()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


@contextlib.contextmanager
def served() -> Iterator[None]:
    """Inside, commands are forks of a process, which loads the libraries when the first command is asked for."""
    with (
        tempfile.TemporaryDirectory(prefix="vitlab-") as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
    ):
        listener.bind(f"{folder}/commands")
        listener.listen(64)
        server = subprocess.Popen(
            [sys.executable, __file__, str(listener.fileno())], pass_fds=[listener.fileno()], start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        os.environ[PLACE] = f"{folder}/commands"
        try:
            yield
        finally:
            del os.environ[PLACE]
            assert server.stdin is not None
            server.stdin.close()
            try:
                server.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def relay(words: list[str]) -> int:
    """`python words` of execnet, as a fork of the process that serves; what it ends with."""
    about = {"code": words[-1], "cwd": os.getcwd(), "environment": dict(os.environ)}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asking:
        asking.connect(os.environ[PLACE])
        socket.send_fds(asking, [json.dumps(about).encode()], [0, 1, 2])
        for file in (0, 1):
            os.close(file)  # the worker's alone, so that each side sees the other's end
        asking.recv(ASK)
        return os.waitstatus_to_exitcode(int(asking.recv(ASK)))


def serve(listener: socket.socket) -> None:
    """Fork for every request, until the standard input ends. Returns in the command's process, ready for its script."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the processes that wait for the commands
    loaded = False
    while listener in select.select([listener, sys.stdin], [], [])[0]:
        asking = listener.accept()[0]
        if not loaded:
            for name in LIBRARIES:
                importlib.import_module(name)
            gc.collect()
            gc.freeze()
            loaded = True
        request, files, _, _ = socket.recv_fds(asking, ASK, 3)
        if not os.fork():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            if not (command := os.fork()):
                for place, file in enumerate(files):
                    os.dup2(file, place)
                about = json.loads(request)
                return become_worker(about) if "code" in about else become(about)
            for file in (0, 1, 2, *files):
                os.close(file)
            asking.send(str(command).encode())
            with contextlib.suppress(BrokenPipeError):
                asking.send(str(os.waitpid(command, 0)[1]).encode())
            os._exit(0)
        for file in (asking.fileno(), *files):
            os.close(asking.detach() if file == asking.fileno() else file)
    os._exit(0)


def become(request: dict[str, Any]) -> None:
    """Make this process what a new interpreter would be, and run the script in it."""
    os.closerange(3, 1 << 12)
    if request["own_session"]:
        os.setsid()
    os.chdir(request["cwd"])
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if not (waiting := os.fork()):
        ours.close()
        return become_fork_server(its)
    its.close()
    begin(request["environment"], [str(Path(request["script"]).parent)])
    sys.argv = [request["script"], *request["words"]]
    give_fork_server(ours, waiting)
    code: Any = 0
    try:
        runpy.run_path(request["script"], run_name="__main__")
    except SystemExit as end:
        code = end.code
    leave(code)


def leave(code: Any) -> None:
    """End as an interpreter does, but for its last step: to take every library apart takes half a second."""
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:  # nobody reads the output: the interpreter has its own way of saying so
        sys.exit(code)
    os._exit(code or 0)


def become_worker(about: dict[str, Any]) -> None:
    """Make this process what `python -c code` would be."""
    os.closerange(3, 1 << 12)
    os.chdir(about["cwd"])
    for name in list(sys.modules):
        if name.partition(".")[0] in REWRITTEN:
            del sys.modules[name]
    begin(about["environment"], [""])
    sys.argv = ["-c"]
    sys.modules["__main__"] = main = ModuleType("__main__")
    exec(about["code"], vars(main))


def begin(environment: dict[str, str], first: list[str]) -> None:
    """The variables, the folders of modules (`first` before others) and the streams of a new interpreter."""
    os.environ.clear()
    os.environ.update(environment)
    named = [entry for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry]
    sys.path[:] = [*first, *named, *(entry for entry in sys.path if entry not in (str(Path(__file__).parent), ""))]
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
    sys.path_importer_cache.clear()
    if any((Path(entry) / "sitecustomize.py").exists() for entry in named):
        sys.modules.pop("sitecustomize", None)
        importlib.import_module("sitecustomize")


def give_fork_server(channel: socket.socket, waiting: int) -> None:
    """Let `multiprocessing` take the process `waiting` where it would start a new interpreter as its fork server."""
    from multiprocessing import util

    spawn, left = util.spawnv_passfds, [waiting]

    def start_process(path: Any, arguments: list[Any], files: list[int]) -> int:
        code = os.fsdecode(arguments[-1])
        if not left or not code.startswith("from multiprocessing.forkserver import main"):
            return spawn(path, arguments, files)
        blocked = [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())]
        about = {"code": code, "files": list(files), "environment": dict(os.environ), "cwd": os.getcwd(),
                 "blocked": blocked}  # fmt: skip
        socket.send_fds(channel, [json.dumps(about).encode()], list(files))
        channel.close()
        return left.pop()

    util.spawnv_passfds = start_process


def become_fork_server(channel: socket.socket) -> None:
    """Wait until this process is needed, and be the fork server that `give_fork_server` was asked for."""
    handlers = {number: signal.signal(number, signal.SIG_IGN)
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP)}  # fmt: skip
    request, files, _, _ = socket.recv_fds(channel, ASK, 8)
    if not request:
        os._exit(0)
    about = json.loads(request)
    channel.close()
    from fcntl import F_DUPFD, fcntl

    high = [fcntl(file, F_DUPFD, 1 << 9) for file in files]
    os.closerange(3, 1 << 9)
    for file, place in zip(high, about["files"], strict=True):
        os.dup2(file, place)
    os.closerange(1 << 9, 1 << 12)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, about["blocked"])
    os.chdir(about["cwd"])
    begin(about["environment"], [])
    sys.argv = ["-c"]
    sys.modules["__main__"] = main = ModuleType("__main__")
    exec(about["code"], vars(main))


if __name__ == "__main__":
    if len(sys.argv) > 2:
        raise SystemExit(relay(sys.argv[1:]))
    serve(socket.socket(fileno=int(sys.argv[1])))
