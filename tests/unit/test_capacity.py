"""How many cells train at once on this machine: what `study.cells_at_once` means here."""

import dataclasses
import stat

import pytest

from vitlab.config import ConfigError
from vitlab.study import capacity as module
from vitlab.study import provenance
from vitlab.study.capacity import Capacity, capacity, idle_gpus, require_devices

UUIDS = [f"GPU-{i}f1e0000-1111-2222-3333-444455556666" for i in range(4)]


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """`nvidia_smi(rows, computing)`: put an nvidia-smi on the path that answers with these, as the real one does."""

    def write(rows: list[str], computing: str = "") -> None:
        (tmp_path / "gpus").write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
        (tmp_path / "apps").write_text(computing, encoding="utf-8")
        program = tmp_path / "nvidia-smi"
        program.write_text(
            f'#!/bin/sh\ncase "$1" in *compute-apps*) cat {tmp_path}/apps;; *) cat {tmp_path}/gpus;; esac\n',
            encoding="utf-8",
        )
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    return write


def rows(*used: tuple[str, int], name: str = "NVIDIA H100 80GB HBM3") -> list[str]:
    return [f"{i}, {UUIDS[i]}, {name}, {time}, {memory}, 81559" for i, (time, memory) in enumerate(used)]


def test_a_cpu_has_a_cell_for_each_threads_cores(compose_config, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(module, "usable_cores", lambda: 12)
    for words, cells in (([], 12), (["threads=4"], 3), (["threads=5"], 2), (["threads=64"], 1), (["devices=4"], 3)):
        found = capacity(compose_config("device=cpu", *words))
        assert (found.cells, found.gpus) == (cells, ())
    assert found.reason == "study.cells_at_once=auto: 12 CPU cores, threads=1, devices=4"
    given = capacity(compose_config("device=cpu", "study.cells_at_once=40"))
    assert (given.cells, given.reason) == (40, "study.cells_at_once=40")


def test_idle_gpus_have_a_cell_each(compose_config, monkeypatch, nvidia_smi):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    nvidia_smi(rows(("0", 4), ("97", 4), ("0", 4), ("0", 30_000)), computing="")
    found = capacity(compose_config())
    assert (found.cells, found.gpus) == (2, ("0", "2", "1", "3"))
    assert found.reason == "study.cells_at_once=auto: 2 of 4 GPUs idle"
    assert capacity(compose_config("devices=2")).cells == 1
    everything = capacity(compose_config("devices=4"))  # a cell waits for nobody: it shares the busy ones
    assert (everything.cells, everything.gpus) == (1, ("0", "2", "1", "3"))
    require_devices(compose_config("devices=4"), everything)


def test_gpus_with_a_process_on_them_are_not_idle(monkeypatch, nvidia_smi):
    nvidia_smi(rows(("0", 700), ("0", 4), ("[N/A]", 4)), computing=f"{UUIDS[0]}\n{UUIDS[0]}\n")
    assert idle_gpus(["0", "1", "2"]) == ["1", "2"]
    assert idle_gpus([UUIDS[1], UUIDS[0][:12]]) == [UUIDS[1]]
    assert idle_gpus(["MIG-a1b2"]) == ["MIG-a1b2"]


def test_an_index_says_nothing_of_unlike_gpus(monkeypatch, nvidia_smi):
    """CUDA numbers them by speed, nvidia-smi by bus, unless CUDA_DEVICE_ORDER says so."""
    nvidia_smi([*rows(("90", 4)), f"1, {UUIDS[1]}, NVIDIA T400, 0, 4, 2048"])
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    assert idle_gpus(["0", "1"]) == ["0", "1"] and idle_gpus([UUIDS[0], UUIDS[1]]) == [UUIDS[1]]
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert idle_gpus(["0", "1"]) == ["1"]


def test_without_nvidia_smi_every_visible_gpu_counts(tmp_path, monkeypatch, nvidia_smi):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert idle_gpus(["0", "1"]) == ["0", "1"]
    (tmp_path / "nvidia-smi").write_text(
        "#!/bin/sh\necho 'NVIDIA-SMI has failed because it could not talk'\nexit 9\n", encoding="utf-8"
    )
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert idle_gpus(["0", "1"]) == ["0", "1"]


def test_more_gpus_than_there_are_are_refused(compose_config, monkeypatch, nvidia_smi):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    nvidia_smi(rows(("0", 4), ("0", 4)))
    for words, message in (
        (["devices=4"], "devices: each cell needs 4 GPUs, and 2 are visible"),
        (["devices=2", "study.cells_at_once=2"], "study.cells_at_once: 2 cells on 2 devices each need 4 GPUs, and 2 "),
    ):
        config = compose_config(*words)
        with pytest.raises(ConfigError, match=message):
            require_devices(config, capacity(config))


def test_a_word_that_is_no_number_is_refused(compose_config):
    for word, said in (("two", r"got 'two', expected a whole number or auto"), ("0", "got 0, allowed: at least 1")):
        with pytest.raises(ConfigError, match=f"study.cells_at_once: {said}"):
            compose_config(f"study.cells_at_once={word}")
    assert dataclasses.asdict(compose_config().study)["cells_at_once"] == "auto"


def test_several_cells_on_each_device(compose_config, monkeypatch, nvidia_smi):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    nvidia_smi(rows(("0", 4), ("97", 4), ("0", 4), ("0", 30_000)), computing="")
    found = capacity(compose_config("study.cells_per_device=4"))
    assert (found.cells, found.per_device, found.gpus) == (8, 4, ("0", "2", "1", "3"))
    assert found.reason == "study.cells_per_device=4: 2 of 4 GPUs"
    fewer = capacity(compose_config("study.cells_per_device=4", "study.cells_at_once=6"))
    assert (fewer.cells, fewer.per_device) == (6, 4)
    pairs = capacity(compose_config("study.cells_per_device=3", "devices=2"))
    assert (pairs.cells, pairs.reason) == (3, "study.cells_per_device=3: 1 times 2 GPUs")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    one = capacity(compose_config("study.cells_per_device=3", "device=cpu"))
    assert (one.cells, one.gpus, one.reason) == (3, (), "study.cells_per_device=3: one device, the CPU")


@pytest.mark.parametrize(
    ("at_once", "each", "cells", "together"),
    [(8, 4, 99, 4), (8, 4, 3, 2), (8, 4, 1, 1), (1000, 1000, 3, 3), (2, 4, 9, 2), (6, 4, 9, 3), (4, 1, 9, 1)],
)  # fmt: skip
def test_cells_on_a_device_at_the_same_time(at_once, each, cells, together):
    found = Capacity(at_once, (), "", each)
    assert found.together(cells) == together
    places = [slot % -(-at_once // each) for slot in range(min(at_once, cells))]
    assert max(places.count(place) for place in places) == together


def test_more_cells_than_devices_hold_are_refused_with_what_is_accepted(compose_config, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    words = ("study.cells_per_device=3", "study.cells_at_once=4", "device=cpu")
    config = compose_config(*words)
    with pytest.raises(ConfigError, match=r"4 cells, 3 on a device, need 2 devices, and there is 1, the CPU") as raised:
        require_devices(config, capacity(config))
    for way in ("study.cells_at_once=3", "study.cells_per_device=4"):
        assert way in str(raised.value)
        accepted = compose_config(*words, way)
        require_devices(accepted, capacity(accepted))


def test_gpus_are_found_where_a_container_hides_the_drivers_files(tmp_path, monkeypatch):
    asked = []

    def answer(*command, seconds):
        asked.append(command)
        return answers.pop()

    answers = [None, "NVIDIA H200\nNVIDIA H200\n"]
    monkeypatch.setattr(provenance, "answer_of", answer)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert provenance.gpu_kinds(tmp_path / "hidden") == ("NVIDIA H200", "NVIDIA H200")
    assert provenance.gpu_kinds(tmp_path / "none") == () and asked[0][0] == "nvidia-smi"
    (tmp_path / "gpus" / "0000:01:00.0").mkdir(parents=True)
    (tmp_path / "gpus" / "0000:01:00.0" / "information").write_text("Model: \t NVIDIA A100\nIRQ: 4\n", encoding="utf-8")
    assert provenance.gpu_kinds(tmp_path / "gpus") == ("NVIDIA A100",) and len(asked) == 2
    monkeypatch.setattr(provenance, "gpu_kinds", lambda: ("NVIDIA H200",))
    assert provenance.visible_gpus() == ["0"] and provenance.device_kind.__wrapped__("auto") == "NVIDIA H200"
    monkeypatch.setattr(provenance, "gpu_kinds", tuple)
    assert provenance.visible_gpus() == [] and provenance.device_kind.__wrapped__("cuda").endswith(" CPU")
