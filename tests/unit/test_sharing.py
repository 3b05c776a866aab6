"""Cells that start together and what they share: which they are, who replaces whom, what the view shows."""

import io
import signal
from types import SimpleNamespace

import pytest

from vitlab.config import ConfigError
from vitlab.core.device import free_memory
from vitlab.data.ring import FREE, STATE
from vitlab.study import sharing as module
from vitlab.study.capacity import Capacity
from vitlab.study.plan import build_plan
from vitlab.study.progress import View
from vitlab.study.sharing import (
    Sharing,
    crops_shared_by,
    evaluation_sets,
    groups_of,
    require_shared_memory,
    window_words,
)

FOLDER = (
    "dataset=folder", "dataset.name=pets", "dataset.num_classes=2", "dataset.num_train=640", "dataset.num_eval=40",
    "recipe.batch_size=32", "device=cpu", "model.image_size=32",
)  # fmt: skip


@pytest.fixture
def planned(requests_for):
    def made(*cells, shared=()):
        return build_plan(requests_for(*cells, shared=(*FOLDER, *shared)), "s")

    return made


class Process:
    """A process that never runs."""

    def __init__(self, target, args, name):
        self.args, self.exitcode = args, None

    def start(self):
        pass

    def join(self, *_):
        pass

    def kill(self):
        self.exitcode = -signal.SIGKILL


def view_of(plan, said):
    return SimpleNamespace(
        say=said.append, cells={c.id: SimpleNamespace(step=0, total_steps=100) for c in plan.cells},
        loader=lambda key, mark: said.append((key, mark)),
    )  # fmt: skip


SIX = [[f"augment={a}", f"seed={s}"] for a in ("none", "mixup", "erase") for s in (0, 1)]


def test_cells_of_a_seed_and_size_share_whatever_comes_after_the_crop(planned):
    plan = planned(*SIX, ["seed=0", "dataset.crop_scale=[0.5,1]"], ["seed=0", "recipe.lr=0.5", "recipe.epochs=3"])
    groups = [[c.name.split("/")[0] for c in group] for group in groups_of(plan.cells)]
    assert [len(g) for g in groups] == [4, 3]
    assert crops_shared_by(planned(["seed=0"], shared=("study.share_loader=false",)).cells[0]) is None
    assert window_words(plan.cells[:2]) == "1,024 images, 3.1 MB"


def test_data_in_memory_need_no_loader(requests_for):
    plan = build_plan(requests_for(["augment=none"], ["augment=mixup"]), "s")
    assert groups_of(plan.cells) == [] and crops_shared_by(plan.cells[0]) is None


def test_groups_start_together_and_wait_for_the_end_of_the_one_before(planned):
    plan, said = planned(*SIX), []
    view = view_of(plan, said)
    with Sharing(plan, SimpleNamespace(Process=Process), view) as sharing:
        names = [[c.name for c in group] for group in sharing.choose(plan.todo, 4, view.cells)]
        assert names == [["none/s0", "mixup/s0", "erase/s0"], ["none/s1"]], "the rest of the slots for the next seed"
        first = sharing.choose(plan.todo, 2, view.cells)[0]
        given = sharing.begin(first)
        assert [g.member for g in given] == [0, 1] and given[0].ring is given[1].ring is not None
        assert said == ["none/s0, mixup/s0: one loader, a window of 1,024 images, 3.1 MB [a]"]
        left = [c for c in plan.todo if c not in first]
        sharing.end(first[0])
        assert sharing.groups[0].ring.members[0, STATE] == FREE
        assert sharing.choose(left, 1, view.cells), "the other has long to go"
        view.cells[first[1].id].step = 95
        assert sharing.choose(left, 1, view.cells) == [], "both slots will be free in a moment"
        sharing.end(first[1])
        assert sharing.groups == [] and len(sharing.choose(left, 2, view.cells)[0]) == 2


@pytest.mark.parametrize(("epochs", "together"), [(2, True), (3, False)])
def test_cells_further_apart_than_their_window_is_long_do_not_start_together(planned, epochs, together):
    plan = planned(*SIX[::2])  # 1,024 images, of epochs of 640
    record = plan.record(plan.cells[1])
    record.write("config.yaml", {})
    for epoch in range(epochs):
        record.append_row({"epoch": epoch + 1, "step": 20 * (epoch + 1)})
    apart = [["none/s0", "erase/s0"], ["mixup/s0"]]
    with Sharing(plan, None, view_of(plan, [])) as sharing:
        groups = [[c.name for c in g] for g in sharing.choose(plan.todo, 3, {})]
        assert groups == ([["none/s0", "mixup/s0", "erase/s0"]] if together else apart)


@pytest.mark.parametrize(("workers", "cores", "readers"), [(0, 2, 2), (0, 16, 3), (1, 16, 3), (4, 16, 12), (8, 16, 16)])
def test_a_loader_has_the_workers_of_its_cells_but_not_more_than_there_are_cores(
    planned, monkeypatch, workers, cores, readers
):
    plan = planned(*SIX[::2], shared=(f"workers={workers}",))
    monkeypatch.setattr(module, "usable_cores", lambda: cores)
    with Sharing(plan, SimpleNamespace(Process=Process), view_of(plan, [])) as sharing:
        sharing.begin(plan.todo)
        assert sharing.groups[0].reader.args[2] == readers


def test_shared_memory_has_to_do_for_all_that_read_for_themselves(planned, monkeypatch):
    """A window has memory of its own: cells that share a loader take none of /dev/shm."""
    monkeypatch.setattr("vitlab.data.order.shared_memory", lambda: (2_000_000, 2_000_000))
    plan = planned(*SIX[::2], shared=("workers=4",))
    plan.__dict__["capacity"] = Capacity(6, (), "")
    with pytest.raises(
        ConfigError, match=r"workers: .* 666.7 KB are free for each of 3 trainings at once; 4 need 983.0 KB"
    ):
        require_shared_memory(plan)
    with Sharing(plan, SimpleNamespace(Process=Process), view_of(plan, [])) as sharing:
        assert sharing.begin(plan.todo[:1])[0].at_once == 3
    plan.__dict__["capacity"] = Capacity(3, (), "", per_device=3)
    require_shared_memory(plan)
    with Sharing(plan, SimpleNamespace(Process=Process), view_of(plan, [])) as sharing:
        assert [given.at_once for given in sharing.begin(plan.todo)] == [1, 1, 1]


def test_a_dead_reading_process_is_replaced_ten_times(planned):
    plan, said = planned(*SIX[:3:2]), []
    view = view_of(plan, said)
    with Sharing(plan, SimpleNamespace(Process=Process), view) as sharing:
        sharing.begin(plan.todo)
        for _ in range(15):
            sharing.groups[0].reader.exitcode = -signal.SIGKILL
            sharing.watch()
        replaced = [line for line in said if "takes its place" in line]
        assert len(replaced) == 9 and "the loader [a] ended (SIGKILL, " in replaced[0]
        assert (plan.cells[0].id, "own") in said


def test_without_memory_each_reads_for_itself(planned, monkeypatch):
    plan, said = planned(*SIX[:3:2], shared=("study.keep_evaluation=true",)), []
    monkeypatch.setattr(module, "free_memory", lambda: 1000)
    with Sharing(plan, SimpleNamespace(Process=Process), view_of(plan, said)) as sharing:
        assert all(g.ring is None and not g.evaluation for g in sharing.begin(plan.todo))
    assert (
        "no memory (122.9 KB are needed, 1.0 KB are free)" in said[0]
        and "cannot be (1.0 KB of memory are free)" in said[1]
    )


def test_free_memory_is_the_least_of_the_machines_and_the_groups(tmp_path):
    assert free_memory() > 1 << 20
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    2000 kB\n", encoding="utf-8")
    assert free_memory(tmp_path) == 2_048_000
    (tmp_path / "proc/self/cgroup").write_text("0::/job\n", encoding="utf-8")
    (tmp_path / "sys/fs/cgroup/job").mkdir(parents=True)
    for name, text in (("memory.max", "500000"), ("memory.current", "200000")):
        (tmp_path / "sys/fs/cgroup/job" / name).write_text(text, encoding="utf-8")
    assert free_memory(tmp_path) == 300_000
    (tmp_path / "sys/fs/cgroup/job/memory.max").write_text("max", encoding="utf-8")
    assert free_memory(tmp_path) == 2_048_000
    assert free_memory(tmp_path / "nowhere") == 1 << 62


def test_images_to_evaluate_on_are_kept_once_for_all_cells(planned):
    plan = planned(*SIX, shared=("study.keep_evaluation=true",))
    assert list(evaluation_sets(plan.cells).values()) == [40]
    held_out = planned(*SIX, shared=("study.keep_evaluation=true", "dataset.val_fraction=0.1"))
    assert list(evaluation_sets(held_out.cells).values()) == [64]
    assert evaluation_sets(planned(*SIX).cells) == {}
    with Sharing(plan, None, view_of(plan, [])) as sharing:
        assert [m.images.shape for m in sharing.evaluation] == [(40, 3, 32, 32)]


def test_slots_of_a_device_are_not_neighbours():
    found = Capacity(4, ("0", "1", "2"), "", per_device=2)
    assert [found.devices_of(slot, 1) for slot in range(4)] == [("0",), ("1",), ("0",), ("1",)]
    assert [Capacity(2, ("0", "1", "2", "3"), "").devices_of(s, 2) for s in range(2)] == [("0", "1"), ("2", "3")]
    assert Capacity(3, (), "", per_device=3).devices_of(2, 1) == ()


def test_cells_know_how_many_train_on_their_device(planned):
    plan = planned(*SIX[:3:2], shared=("study.cells_per_device=2",))
    plan.__dict__["capacity"] = Capacity(4, ("0", "1"), "", per_device=2)
    with Sharing(plan, SimpleNamespace(Process=Process), view_of(plan, [])) as sharing:
        given = sharing.begin(plan.todo)[0]
        assert given.present is not None
        sharing.count([0, 1, 2])
        assert given.present.cells.tolist() == [2, 1], "slots 0 and 2 are on the first"
        sharing.count([3])
        assert given.present.cells.tolist() == [0, 1]
    with Sharing(planned(*SIX[:3:2]), SimpleNamespace(Process=Process), view_of(plan, [])) as sharing:
        sharing.count([0, 1])
        assert sharing.begin(plan.todo)[0].present is None, "each cell has devices of its own"


def test_the_view_shows_which_cells_share(planned):
    plan = planned(*SIX[:3:2])
    view = View(plan, io.StringIO())
    assert "loader" not in drawn(view)
    for cell, mark in zip(plan.cells, ("a", "own"), strict=True):
        view.status(cell.id, "running")
        view.loader(cell.id, mark)
    lines = drawn(view).splitlines()
    assert "loader" in lines[1] and " a " in lines[2] and " own " in lines[3]
    assert max(map(len, lines)) <= 80


def drawn(view):
    from rich.console import Console

    stream = io.StringIO()
    Console(file=stream, width=80).print(view.table(80))
    return stream.getvalue()
