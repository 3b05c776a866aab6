"""The sweeper: composing in place is composing in full, errors name the cell, stock launchers block dependents."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import OmegaConf

from hydra_plugins.vitlab_sweeper import StudySweeper, _Composer
from vitlab.cli.keys import typed_keys
from vitlab.config import ConfigError, parse, plain, register_schemas
from vitlab.study.identity import Request, identity
from vitlab.study.plan import build_plan
from vitlab.study.record import Record

ROOT = Path(__file__).parents[2]


@pytest.fixture()
def hydra():
    """Hydra's loader, the master configuration that a sweep starts from, and the overrides' parser."""
    register_schemas()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", overrides=[], run_mode=RunMode.MULTIRUN)
        yield loader, master, OverridesParser.create(config_loader=loader)


def in_full(hydra, overrides):
    loader, master, _ = hydra
    whole = loader.load_sweep_config(master, overrides)
    labels = {k: str(v) for k, v in whole.hydra.runtime.choices.items() if not k.startswith("hydra")}
    tree = OmegaConf.masked_copy(whole, [key for key in whole if key != "hydra"])
    typed = typed_keys(hydra[2].parse_overrides(overrides))
    return parse(OmegaConf.to_container(tree, resolve=True), labels, typed)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["augment=deit", "seed=3", "recipe.lr=0.1"],
        ["recipe.lr=0.1", "recipe.lr=0.2", "augment=mixup", "augment.mixup=0.5"],
        ["dataset.mean=[0.1,0.2,0.3]", "augment.auto_augment=null", "dataset.version='7'"],
        ["augment=deit", "augment.mix_group=16", "recipe=deit", "recipe.batch_size=64", "recipe.epochs=20"],
        ["pretrain=fractaldb_small", "pretrain.dataset.fractal.instances=50", "pretrain.recipe.epochs=3", "seed=2"],
        ["pretrain=fractaldb_small", "pretrain.recipe={epochs: 7, lr: 0.3}", "pretrain.recipe.lr=0.4"],
        ["dataset=fractaldb60", "dataset.fractal.categories=12", "dataset.fractal.image_size=32", "seed=1"],
        ["pretrain=fractaldb", "recipe@pretrain.recipe=book", "seed=4"],
        ["experiment=quick_table3_3", "seed=1", "recipe.epochs=5", "study.name=mine"],
        ["recipe.epochs=5", "output_dir=elsewhere", "recipe.warmup_epochs=${seed}", "seed=2"],
        ["study.cells=[a,b]", "wandb.tags=[x,y]", "study.cell_minutes=1.5", "device=cpu"],
        ["task=preview", "preview.columns=3", "augment=mixup"],
    ],
    ids=lambda o: " ".join(o) or "nothing",
)
def test_composing_in_place_is_composing(hydra, overrides):
    composer = _Composer(*hydra)
    composer.compose(["seed=9"])  # what is cached must not leak into the next
    ours, theirs = composer.compose(overrides), in_full(hydra, overrides)
    assert plain(ours) == plain(theirs) and identity(ours.cell) == identity(theirs.cell)
    assert plain(composer.compose(["seed=9"])) == plain(in_full(hydra, ["seed=9"]))


def test_values_cost_no_composition(hydra, monkeypatch):
    composer = _Composer(*hydra)
    composed = []
    load = hydra[0].load_sweep_config
    monkeypatch.setattr(hydra[0], "load_sweep_config", lambda *a: composed.append(a) or load(*a))
    seeds = [composer.compose([f"augment={a}", f"seed={s}"]) for a in ("none", "deit") for s in range(50)]
    assert len({identity(c.cell) for c in seeds}) == 100 and len(composed) == 2


def sweeper_of(hydra, launcher=None):
    sweeper = object.__new__(StudySweeper)  # Hydra loads its plugins again, after which super() in them fails here
    sweeper.params, sweeper.overrides = {}, None
    sweeper.config, sweeper.hydra_context = hydra[1], SimpleNamespace(config_loader=hydra[0])  # pyright: ignore
    sweeper.launcher = launcher
    return sweeper


def test_a_sweep_is_a_product_and_a_list(hydra):
    OmegaConf.set_readonly(hydra[1], False)
    hydra[1].study.cells = ["augment=mixup", "augment=none recipe.lr=0.1"]
    requests = sweeper_of(hydra).requests(["seed=0,1"])
    assert [r.overrides for r in requests] == [
        ("seed=0", "augment=mixup"), ("seed=0", "augment=none", "recipe.lr=0.1"),
        ("seed=1", "augment=mixup"), ("seed=1", "augment=none", "recipe.lr=0.1"),
    ]  # fmt: skip
    assert requests[3].config.cell.recipe.lr == 0.1 and requests[3].config.labels["augment"] == "none"


def test_an_impossible_cell_of_a_sweep_is_named(hydra):
    with pytest.raises(ConfigError, match=r"mix_group: got 7; .* \(in the cell augment=mixup\)"):
        sweeper_of(hydra).requests(["augment=none,mixup", "augment.mix_group=7"])
    with pytest.raises(ConfigError, match="in the cell seed=-1"):
        sweeper_of(hydra).requests(["seed=0,-1"])


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("augmnt=none", ["study.cells: augmnt: there is no such key", "augment=none", "(in 'augmnt=none')"]),
        ("recipe.lrr=3", ["study.cells: recipe.lrr: there is no such key", "recipe.lr=3"]),
        ("augment=nonne", ["study.cells: augment=nonne: there is no such choice", "augment=none"]),
        ("dataset=ImageNet", ["study.cells: dataset=ImageNet is dataset=imagenet1k here"]),
        ("foo", ["study.cells: foo: is no override; options are typed as key=value", "(in 'foo')"]),
        ("augment=[none,mixup]", ["study.cells: 'augment=[none,mixup]': one choice; a sweep is augment=none,mixup"]),
        ("seed=interval(0,1)", ["study.cells: 'seed=interval(0,1)': a study has a list of cells, not an interval"]),
        ("augment='none", ["study.cells:", "No closing quotation"]),
        ("augment=none,mixup seed=1", ["study.cells: 'augment=none,mixup' is a sweep", "an entry for each"]),
        ("seed=-1 augment=none", ["seed: got -1", "(in the cell seed=-1 augment=none)"]),
    ],
)
def test_a_mistake_in_a_list_of_cells_is_one_line_about_that_cell(hydra, cell, words):
    OmegaConf.set_readonly(hydra[1], False)
    hydra[1].study.cells = ["augment=mixup", cell]
    with pytest.raises(ConfigError) as error:
        sweeper_of(hydra).requests(["recipe.lr=0.1", "output_dir=elsewhere"])
    for word in words:
        assert word in str(error.value)
    assert "elsewhere" not in str(error.value), "what all cells have is not repeated"
    assert "\n" not in str(error.value) and "HYDRA" not in str(error.value)


def test_paths_and_other_scripts_in_a_list_of_cells(hydra, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    OmegaConf.set_readonly(hydra[1], False)
    hydra[1].study.cells = ["dataset=folder dataset.root=~/写真 seed=1"]
    (request,) = sweeper_of(hydra).requests([])
    assert request.config.cell.dataset.root == "/home/me/写真" and request.config.cell.seed == 1


def test_a_list_of_choices_in_an_experiments_file_is_refused(hydra):
    with pytest.raises(ConfigError, match="augment: a list of choices was given; a cell has one"):
        sweeper_of(hydra).requests(["augment=[none,mixup]"])


def test_params_of_an_experiment_are_checked(hydra):
    sweeper = sweeper_of(hydra)
    sweeper.params = {"seed": "interval(0,1)"}
    with pytest.raises(ConfigError, match=r"hydra.sweeper.params: 'seed=interval\(0,1\)': .* type seed=0,1"):
        sweeper.requests([])


def test_a_stock_launcher_blocks_what_has_no_pretraining(hydra, compose_config, tmp_path):
    launched = []

    class Launcher:
        def launch(self, overrides, initial_job_idx):
            launched.append(overrides)
            return [SimpleNamespace(return_value="?") for _ in overrides]

    GlobalHydra.instance().clear()
    configs = [compose_config(*w, f"output_dir={tmp_path}") for w in (["pretrain=fractaldb_small"], ["seed=1"])]
    plan = build_plan([Request((str(i),), c) for i, c in enumerate(configs)], "s")
    said = []
    view = SimpleNamespace(status=lambda *a: said.append(a), say=said.append)
    outcomes = sweeper_of(hydra, Launcher())._through_stock_launcher(plan, view)
    assert launched == [[["0", "study.part=pretraining"]], [["1"]]]
    fed = identity(configs[0].cell)
    assert outcomes[fed] == "blocked" and said[0][:2] == (fed, "blocked")
    assert Record(tmp_path / fed).state() == "missing"
