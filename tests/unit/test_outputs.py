"""Where commands may write: never among what they read, never into somebody else's folder; again into their own."""

import shlex

import numpy as np
import pytest
from PIL import Image

from vitlab.cli.analyze import analyze
from vitlab.cli.explain_task import run_explain
from vitlab.cli.fractal_task import run_fractaldb
from vitlab.cli.outputs import require_output_dir
from vitlab.cli.pack_task import run_pack
from vitlab.cli.preview_task import run_preview
from vitlab.config import ConfigError
from vitlab.core.picture_files import made_by_us, maker


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder with a data set in data/birds and photos in photos/."""
    for split in ("train", "val"):
        for name in "ab":
            folder = tmp_path / "data" / "birds" / split / name
            folder.mkdir(parents=True)
            for i in range(2):
                picture = np.random.default_rng(i).integers(0, 256, (16, 20, 3), dtype=np.uint8)
                Image.fromarray(picture).save(folder / f"{i}.png")
    (tmp_path / "photos").mkdir()
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "photos" / "cat.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VITLAB_CACHE", str(tmp_path / ".cache"))
    return tmp_path


def files(folder):
    return sorted((str(f), f.read_bytes()) for f in folder.rglob("*") if f.is_file() and ".cache" not in f.parts)


BIRDS = ["dataset=folder", "dataset.root=data/birds", "recipe.batch_size=4"]
PACK = ["task=pack", *BIRDS, "workers=0"]
FRACTAL = ["task=fractaldb", "dataset=fractaldb60", "dataset.fractal.categories=1", "dataset.fractal.instances=4",
           "recipe.batch_size=4"]  # fmt: skip
SHEET = ["task=preview", "preview.size=16", "preview.columns=2", "preview.pictures=0"]
ROLLOUT = ["task=explain", "explain=rollout"]
REFUSED = {
    "the data itself": (run_pack, [*PACK, "pack.path=data/birds"], "pack.path: 'data/birds' is dataset.root"),
    "inside the data": (run_pack, [*PACK, "pack.path=data/birds/pack"], "pack.path: .* lies in dataset.root"),
    "above the data": (run_pack, [*PACK, "pack.path=data"], "pack.path: 'data' is above dataset.root"),
    "another spelling": (run_pack, [*PACK, "pack.path=photos/../data/birds/train"], "lies in dataset.root"),
    "a linked folder": (run_pack, [*PACK, "pack.path=link"], "pack.path: 'link' is dataset.root"),
    "photos": (run_pack, [*PACK, "pack.path=photos"], r"holds something else \(cat.png\)"),
    "a file": (run_pack, [*PACK, "pack.path=photos/cat.png"], "is a file"),
    "an export among photos": (run_fractaldb, [*FRACTAL, "fractaldb.export=photos"], "export: .* something else"),
    "a contact sheet": (run_fractaldb, [*FRACTAL, "fractaldb.preview=photos/cat.png"], "preview: .* no picture"),
    "a sheet over a photo": (run_preview, [*SHEET, "preview.file=photos/cat.png"], "preview.file: .* no picture"),
    "a sheet in the data": (run_preview, [*SHEET, *BIRDS, "preview.file=data/birds/train/a/x.png"], "in dataset.root"),
    "figures among photos": (run_explain, [*ROLLOUT, "explain.output=photos"], "something else"),
    "figures in what is shown": (
        run_explain, [*ROLLOUT, "explain.images=photos", "explain.output=photos/out"], "lies in explain.images=photos",
    ),
    "records in the data": (require_output_dir, [*BIRDS, "output_dir=data/birds/runs"], "lies in dataset.root"),
    "records above": (require_output_dir, [*BIRDS, "output_dir=data"], "output_dir: 'data' is above dataset.root"),
    "records among photos": (require_output_dir, ["output_dir=photos"], "'photos' holds something else"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_place_is_refused_before_anything_is_written(here, compose_config, case):
    run, words, message = REFUSED[case]
    (here / "link").symlink_to(here / "data" / "birds")
    before = files(here)
    with pytest.raises(ConfigError, match=message) as raised:
        run(compose_config(*words))
    assert files(here) == before
    (suggestion,) = shlex.split(str(raised.value).rpartition("for instance ")[2])
    key = suggestion.partition("=")[0]
    kept = [word for word in words if not word.startswith(f"{key}=")]
    try:
        run(compose_config(*kept, suggestion))
    except ConfigError as error:  # the place is accepted; nothing can be explained without a checkpoint
        assert str(error).startswith("checkpoint")


def test_earlier_output_of_our_own_is_accepted_again(here, compose_config):
    for _ in range(2):
        run_pack(compose_config(*PACK, "pack.path=pack"))
        run_fractaldb(compose_config(*FRACTAL, "fractaldb.export=exported", "fractaldb.preview=sheet.png"))
        run_preview(compose_config(*SHEET, "preview.file=preview.jpg"))
        (here / "runs" / "c0123456789a").mkdir(parents=True, exist_ok=True)
        require_output_dir(compose_config("output_dir=runs"))
    (here / "pack" / "manifest.json").unlink()
    run_pack(compose_config(*PACK, "pack.path=pack"))  # an interrupted one


def test_an_empty_disk_is_nobodys(here, compose_config):
    (here / "disk" / "lost+found").mkdir(parents=True)
    (here / "disk" / ".Trash").mkdir()
    require_output_dir(compose_config("output_dir=disk"))


@pytest.mark.parametrize(("names", "ours"), [
    (["evaluate/x.json"], True), (["c0123456789a/config.yaml", "notes.txt"], True), (["studies/s.json"], True),
    (["wandb/latest", "code.py"], False), (["datasets/birds.json", "code.py"], False), (["studies/notes.md"], True),
    (["studies/notes.md", "code.py"], False),
])  # fmt: skip
def test_a_folder_of_records_is_told_from_a_project(here, compose_config, names, ours):
    for name in names:
        (here / "place" / name).parent.mkdir(parents=True, exist_ok=True)
        (here / "place" / name).write_text("x", encoding="utf-8")
    if ours:
        require_output_dir(compose_config("output_dir=place"))
    else:
        with pytest.raises(ConfigError, match=r"'place' holds something else .* output_dir=place/runs"):
            require_output_dir(compose_config("output_dir=place"))


def test_beside_the_data_is_fine(here, compose_config):
    """Also with a root that holds several data sets, of which one is read."""
    words = ["dataset=folder", "dataset.name=birds", "dataset.root=data", "recipe.batch_size=4"]
    require_output_dir(compose_config(*words, "output_dir=data/runs"))
    run_pack(compose_config("task=pack", "workers=0", *words, "pack.path=data/birds_pack"))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_a_picture_of_ours_is_known_again(tmp_path, suffix):
    Image.new("RGB", (8, 8)).save(tmp_path / f"ours{suffix}", exif=maker())
    Image.new("RGB", (8, 8)).save(tmp_path / f"other{suffix}")
    assert made_by_us(tmp_path / f"ours{suffix}") and not made_by_us(tmp_path / f"other{suffix}")
    assert not made_by_us(tmp_path / "none.png")


def test_tables_stay_out_of_records_and_of_other_peoples_folders(tmp_path, monkeypatch):
    from written_records import write_all

    write_all(tmp_path / "runs", {"none": [90.0, 91.0], "mixup": [91.0, 92.0]})
    (tmp_path / "paper").mkdir()
    (tmp_path / "paper" / "main.tex").write_text("x", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    cell = next((tmp_path / "runs").glob("c[0-9a-f]*")).name
    for place, message in (
        ("paper", r"tables_dir: 'paper' holds something else \(main.tex\); .* tables_dir=paper/tables"),
        ("runs", "tables_dir: 'runs' is where the records lie"),
        (f"runs/{cell}", "is where the records lie"),
        ("runs/studies/x", "is where the records lie"),
    ):
        with pytest.raises(ConfigError, match=message):
            analyze({"output_dir": "runs", "tables_dir": place}, None)
    for _ in range(2):
        analyze({"output_dir": "runs", "tables_dir": "runs/tables"}, None)
        analyze({"output_dir": "runs", "tables_dir": "paper/tables"}, None)
