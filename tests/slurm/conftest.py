"""A real Slurm of two nodes on this machine, with accounting and fake GPUs, that ends with the tests."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from lab import Lab

PROGRAMS = ("slurmctld", "slurmd", "slurmdbd", "sbatch", "sacct", "munged", "mariadbd", "mariadb-install-db")
PARTITIONS = """PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def until(true, seconds: float = 60, what: str = "") -> None:
    """Wait until `true()`; raises AssertionError after `seconds`."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"waited {seconds} s for {what or true}"
        time.sleep(0.1)


class Cluster:
    """The daemons below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.daemons: list[subprocess.Popen] = []
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}

    def start(self) -> None:
        for name in ("state", "log", "spool", "dev", "munge"):
            (self.folder / name).mkdir()
        self.folder.chmod(0o755)
        self._start_munge()
        self._start_database()
        self._write_configuration()
        self._run("slurmdbd", "-D")
        until(lambda: _listens(self.ports[1]), 30, "slurmdbd")
        self.ask("sacctmgr", "-i", "add", "cluster", "lab")
        self._run("slurmctld", "-D", "-c")
        for number in (1, 2):
            self._run("slurmd", "-D", "-N", f"n{number}")
        until(
            lambda: self.ask("sinfo", "-h", "-N", "-p", "main", "-t", "idle", "-o", "%N").count("n") == 2, 30, "nodes"
        )

    def _run(self, *words: str, user: str | None = None) -> None:
        with (self.folder / "log" / f"{words[0]}{len(self.daemons)}.out").open("w", encoding="utf-8") as log:
            self.daemons.append(subprocess.Popen(
                words, env=self.environment, stdout=log, stderr=log, start_new_session=True, user=user,
            ))  # fmt: skip

    def _start_munge(self) -> None:
        key = self.folder / "munge" / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        key.parent.chmod(0o700)
        socket_ = self.folder / "munge.sock"
        self._run("munged", "--foreground", "--force", f"--socket={socket_}", f"--key-file={key}",
                  f"--pid-file={self.folder}/munged.pid", f"--log-file={self.folder}/log/munged.log",
                  f"--seed-file={self.folder}/munge/seed")  # fmt: skip
        until(socket_.exists, 10, "munged")

    def _start_database(self) -> None:
        data, place = self.folder / "db", self.folder / "dbrun"
        for made in (data, place):
            made.mkdir()
            shutil.chown(made, "mysql")
        subprocess.run(["mariadb-install-db", "--no-defaults", "--user=mysql", f"--datadir={data}",
                        "--auth-root-authentication-method=normal", "--skip-test-db"],
                       check=True, capture_output=True)  # fmt: skip
        self.ports = _free_ports(5)
        self._run("mariadbd", "--no-defaults", "--user=mysql", f"--datadir={data}", f"--socket={place}/s.sock",
                  f"--pid-file={place}/pid", "--bind-address=127.0.0.1", f"--port={self.ports[0]}",
                  "--innodb-buffer-pool-size=64M", "--innodb-lock-wait-timeout=900",
                  "--innodb-flush-log-at-trx-commit=0", "--skip-name-resolve")  # fmt: skip
        client = ["mariadb", "--no-defaults", "-uroot", "-S", f"{place}/s.sock", "-e"]
        until(lambda: subprocess.run([*client, "select 1"], capture_output=True).returncode == 0, 60, "mariadbd")
        subprocess.run([*client, "create database acct; create user slurm@'127.0.0.1' identified by 'slurm'; "
                        "grant all on acct.* to slurm@'127.0.0.1'"], check=True)  # fmt: skip

    def _write_configuration(self) -> None:
        here, host = self.folder, socket.gethostname().partition(".")[0]
        auth = f"AuthType=auth/munge\nAuthInfo=socket={here}/munge.sock,cred_expire=5\n"
        database = here / "slurmdbd.conf"
        database.write_text(
            f"{auth}DbdHost={host}\nDbdAddr=127.0.0.1\nDbdPort={self.ports[1]}\nSlurmUser=root\n"
            f"StorageType=accounting_storage/mysql\nStorageHost=127.0.0.1\nStoragePort={self.ports[0]}\n"
            f"StorageUser=slurm\nStoragePass=slurm\nStorageLoc=acct\nLogFile={here}/log/slurmdbd.log\n"
            f"PidFile={here}/slurmdbd.pid\n",
            encoding="utf-8",
        )
        database.chmod(0o600)
        settings = {
            "ClusterName": "lab", "SlurmctldHost": f"{host}(127.0.0.1)", "SlurmctldPort": self.ports[2],
            "SlurmUser": "root", "SlurmdUser": "root", "CredType": "cred/munge", "StateSaveLocation": here / "state",
            "SlurmdSpoolDir": here / "spool/%n", "SlurmctldPidFile": here / "ctld.pid",
            "SlurmdPidFile": here / "slurmd-%n.pid", "SlurmctldLogFile": here / "log/slurmctld.log",
            "SlurmdLogFile": here / "log/slurmd-%n.log", "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none", "AccountingStorageType": "accounting_storage/slurmdbd",
            "AccountingStorageHost": "127.0.0.1", "AccountingStoragePort": self.ports[1],
            "AccountingStoragePass": here / "munge.sock", "JobAcctGatherType": "jobacct_gather/none",
            "MpiDefault": "none", "SwitchType": "switch/none", "ReturnToService": 2, "SchedulerType": "sched/backfill",
            "SchedulerParameters": "sched_interval=1,bf_interval=1,batch_sched_delay=0,requeue_delay=1",
            "SelectType": "select/cons_tres", "SelectTypeParameters": "CR_CPU",
            "PreemptType": "preempt/partition_prio", "PreemptMode": "REQUEUE", "GresTypes": "gpu",
            "SlurmdParameters": "config_overrides", "KillWait": 20, "InactiveLimit": 0, "MaxArraySize": 11,
            "AccountingStorageEnforce": "associations,limits",
        }  # fmt: skip
        nodes = "".join(
            f"NodeName=n{n} NodeHostname={host} NodeAddr=127.0.0.1 Port={self.ports[2 + n]} CPUs=4 RealMemory=4000 "
            "Gres=gpu:2 State=UNKNOWN\n" for n in (1, 2)
        )  # fmt: skip
        text = auth + "".join(f"{key}={value}\n" for key, value in settings.items()) + nodes + PARTITIONS
        (here / "slurm.conf").write_text(text, encoding="utf-8")
        for number in (0, 1):  # null devices: Slurm counts them and sets CUDA_VISIBLE_DEVICES
            os.mknod(here / "dev" / f"nvidia{number}", 0o20666, os.makedev(1, 3))
        (here / "gres.conf").write_text(
            f"NodeName=n[1-2] Name=gpu File={here}/dev/nvidia[0-1] Flags=nvidia_gpu_env\n", encoding="utf-8"
        )

    def ask(self, *words: str) -> str:
        """What a command of Slurm prints."""
        return subprocess.run(
            words, env=self.environment, capture_output=True, text=True, timeout=120, encoding="utf-8"
        ).stdout

    def clear(self) -> None:
        """End every job and wait until they are gone."""
        self.ask("scancel", "--full", "--signal=KILL", "--user=root")
        self.ask("scancel", "--user=root")
        with contextlib.suppress(AssertionError):
            until(lambda: not self.ask("squeue", "-h"), 30)

    def stop(self) -> None:
        """End what was started, in the reverse order; jobs first."""
        self.clear()
        for daemon in reversed(self.daemons):
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="session")
def cluster():
    """A started `Cluster`. Where Slurm is absent the tests are skipped, in CI they fail."""
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    os.environ["PATH"] = path
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    reason = f"needs {', '.join(absent)}: .ci/install-slurm" if absent else "" if os.getuid() == 0 else "needs root"
    if reason:
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="vitlab-slurm-"))
    started = Cluster(folder)
    try:
        started.start()
        yield started
    finally:
        started.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def lab(cluster, tmp_path, train_here):
    made = Lab(cluster, tmp_path, train_here)
    yield made
    made.close()
