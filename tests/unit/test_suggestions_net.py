"""Every message of the source that suggests an override is typed again by a test, or is listed here with the reason."""

import ast
import re
from pathlib import Path

import pytest
from typed_commands import on_screen

from vitlab.cli.train_task import only_configuration
from vitlab.config import ModelConfig, build
from vitlab.core.metrics import figure
from vitlab.explain.options import parse_options
from vitlab.models.formats import as_overrides
from vitlab.study.preflight import resolved

ROOT = Path(__file__).parents[2]
SUGGESTS = re.compile(r"(?<![\w./{-])(?:[a-z_]+[./])*[a-z_]+=[^\s;,)=]+|(?:give|type|use|instance) [\w.{}]+=")

RETYPED = {
    "does not divide model.image_size": ("model.patch_size=5", "model.patch_size=5 model.image_size=15"),
    "does not divide model.embed_dim": ("model.num_heads=5", "model.num_heads=5 model.embed_dim=65"),
    "mixing pairs samples, so it must be even": (
        "augment=mixup augment.mix_group=7",
        "augment=mixup augment.mix_group=4",
    ),
    "does not divide recipe.batch_size": (
        "augment=mixup augment.mix_group=12",
        "augment=mixup augment.mix_group=8",
    ),
    "is more than recipe.epochs": ("recipe.epochs=1", "recipe.epochs=1 recipe.warmup_epochs=0"),
    "give it, or dataset.train_per_class": (
        "dataset.train_per_class=20 dataset.train_fraction=0.5", "dataset.train_per_class=20 dataset.train_fraction=1",
    ),
    "devices cannot share recipe.batch_size": ("devices=3", "devices=3 recipe.batch_size=33"),
    "a device's share of the batch, ": ("augment=cutmix devices=2", "augment=cutmix devices=2 augment.mix_group=16"),
    "it must divide a device's share": ("device_batch=5", "device_batch=4"),
    "and the pre-training keeps no average": (
        "pretrain=fractaldb_small pretrain.weights=ema", "pretrain=fractaldb_small pretrain.weights=raw",
    ),
    "W&B takes 1 to 128 characters": ("wandb.project=a/b", "wandb.project=vitlab"),
    "is none of these; for instance study.name=": ("study.name=a/b", "study.name=a_b"),
    "to ask for one: explain=relevance": (
        "task=explain explain=rollout explain.top_k=2", "task=explain explain=relevance explain.top_k=2",
    ),
    "shows one class, the most probable": (
        "task=explain explain=relevance explain.compare=true explain.top_k=2",
        "task=explain explain=relevance explain.compare=true explain.top_k=null",
    ),
    "has nothing to put side by side": (
        "task=explain explain=position explain.compare=true", "task=explain explain=relevance explain.compare=true",
    ),
    "only explain=faithfulness has a synthetic": (
        "task=explain explain=rollout explain.synthetic=true",
        "task=explain explain=faithfulness explain.synthetic=true",
    ),
    "does not read it (got": (
        "task=explain explain=position explain.start_layer=1", "task=explain explain=rollout explain.start_layer=1",
    ),
    "which is no whole path": (
        "dataset=imagenet1k dataset.stage=disk", "dataset=imagenet1k dataset.stage=$TMPDIR",
    ),
    "in place of augment=none,mixup type": (
        "task=preview augment=none,mixup", "task=preview preview.conditions='[none,mixup]'",
    ),
}  # fmt: skip
"""Part of a message → a command that it refuses, and the same command with what it suggests."""

LISTED = {
    "and {wrong}; for instance": "test_what_a_message_suggests_is_accepted",
    "names rows ({', '.join(spec.rows)})": "tells which table it is about, and suggests a key without a value",
    "which no cell has; choose another": "NAME: one of the tables that the user has",
    "no cell of the study is a row of": "tells which table it is about",
    "no log.txt in": "FILE_OR_FOLDER",
    "several studies are running or queued": "NAME: one of the studies that it lists",
    "{each} on a device, need {places} devices": "typed, on a CPU, in test_capacity.py",
    "which is about cells that this machine trains": "typed, on a Slurm cluster, in test_slurm_groups.py",
    "filters W&B's server applies": "NAME: the user's entity at W&B",
    "for instance margin=0.5": "test_the_suggestions_for_tables_are_accepted",
    "for instance metric=ema.top1": "test_the_suggestions_for_tables_are_accepted",
    "diff takes two identities": "c1… and c2…: identities of the user's cells",
    "no study in": "a whole command, which the end-to-end tests train",
    "has no images to evaluate on": "NAME",
    "name the data set that it was trained for": "FILE",
    "trains a model of its own and reads none": "tells which option it is about",
    "is not generated; give dataset=": "test_the_data_sets_that_messages_name_are_accepted",
    "give a folder for the pack": "FOLDER",
    "task=pack reads the images themselves": "tells which task it is about",
    "on a CPU there is only torch.compile to try": "test_values_that_messages_name_are_accepted",
    "there is nothing to try on the device": "test_values_that_messages_name_are_accepted",
    "leave such images out: dataset.bad_images=skip": "test_values_that_messages_name_are_accepted",
    "torchrun trains one cell": "… stands for the command, which is known to torchrun alone",
    "fractal options": "tells which kind it is about",
    "task=train takes none": "FILE",
    "task=evaluate reads one": "tells which task it is about",
    "pretrain=checkpoint needs a file": "FILE",
    "no manifest.json in": "a task, of which the pack's tests type the command",
    "is no manifest of a pack": "a task, of which the pack's tests type the command",
    "no module {name!r}": "mypackage.mymodule: a module that the user writes",
    "needs a key, and none is configured": "test_values_that_messages_name_are_accepted",
    "does not accept the key": "test_values_that_messages_name_are_accepted",
    "candidates and none among the last": "tells the value of now, which is to be lowered",
    "no Fashion-MNIST in": "a Python command, with download=True",
    "Give its parent folder; where": "a Python command, with download=True",
    "and nothing is recorded of": "FOLDER and FILE",
    "needs a folder that holds train/ and val/; give": "FOLDER",
    "one tree of {len(names)}": "test_values_that_messages_name_are_accepted",
    "holds parquet files, {": "FOLDER",
    "are a file each, which": "FOLDER",
    "was published without a split": "dataset.val_fraction, as conf/dataset/eurosat.yaml has it",
    "give the folder that the files named in": "FOLDER",
    "holds files, as a folder does": "a folder that is there (test_parquet_files.py)",
    "set images aside with dataset.val_fraction=0.1": "test_values_that_messages_name_are_accepted",
    "was packed with": "what the pack holds; its tests read such a pack",
    "no format says which value is white": "test_values_that_messages_name_are_accepted",
    "explain.method=attnlrp works on it": "test_methods_that_messages_name_are_accepted",
    "for which lrp has no rule": "test_methods_that_messages_name_are_accepted",
    "label needs images whose class is known": "test_methods_that_messages_name_are_accepted",
    "does not name its {self.count} classes": "NUMBER",
    "explain=features and explain=relevance work on it": "test_methods_that_messages_name_are_accepted",
    "explain.compare=true shows one class, got": "tells which option it is about",
    "goes down to the pixels": "tells which option it is about",
    "task=explain reads one or several": "tells which task it is about",
    "give its model: model.name=NAME": "NAME",
    "so it predicts nothing": "FILE",
    "export.format=timm writes any model": "test_the_formats_of_an_export_are_accepted",
    "export.format=transformers can": "test_the_formats_of_an_export_are_accepted",
    "task=export writes one": "tells which task it is about",
    "a folder is needed; give export.to=FOLDER": "FOLDER",
    "got {name!r}; {why}": "a name near the one typed (test_suggestions_accepted.py)",
    "has no residual branches to drop": "test_values_that_messages_name_are_accepted",
    "drops parts of an image, not whole samples": "test_values_that_messages_name_are_accepted",
    "has to see the whole batch of a step": "test_values_that_messages_name_are_accepted",
    "would see every batch twice": "test_values_that_messages_name_are_accepted",
    "does not tell its model": "test_values_that_messages_name_are_accepted",
    "the checkpoint tells the sizes": "NAME",
    "does not tell how its pictures were normalised": "FOLDER",
    "cannot be resized to the model's": "NAME",
    "give the model that the checkpoint is of": "test_the_model_that_a_message_names_is_accepted",
    "by the same command and study.part=pretraining": "test_values_that_messages_name_are_accepted",
    "have changed since it was begun": "the identity of the user's cell",
    "means other images in": "test_values_that_messages_name_are_accepted",
    "not of vitlab, or damaged": "the path of the user's file",
    "samples do not fit on the device": "test_values_that_messages_name_are_accepted",
    "was asked for and this machine has none": "test_values_that_messages_name_are_accepted",
    "the loss is not finite since step": "test_values_that_messages_name_are_accepted",
    "the data have changed: this record": "test_values_that_messages_name_are_accepted",
    "hand them over through /dev/shm": "test_values_that_messages_name_are_accepted",
    "most likely since /dev/shm has no more": "test_values_that_messages_name_are_accepted",
    "submitit_local gives nothing": "hydra/launcher=local, which is the default",
}
"""Part of a message, as it is in the source → what its suggestion holds that cannot be typed, or what tests it."""


def text_of(node: ast.AST) -> str:
    """The text that an expression makes, with the expressions in it in braces."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(map(text_of, node.values))
    if isinstance(node, ast.FormattedValue):
        conversion = f"!{chr(node.conversion)}" if node.conversion > 0 else ""
        return f"{{{ast.unparse(node.value)}{conversion}}}"
    if isinstance(node, ast.BinOp):
        return text_of(node.left) + text_of(node.right)
    if isinstance(node, ast.List | ast.Tuple):
        return " ".join(map(text_of, node.elts))
    return f"{{{ast.unparse(node)}}}"


def suggesting() -> dict[str, str]:
    """Each message of a user's mistake that holds an override → where it is."""
    found = {}
    for file in (*ROOT.glob("vitlab/**/*.py"), *ROOT.glob("hydra_plugins/*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Error"):
                text = " ".join(map(text_of, [*node.args, *(keyword.value for keyword in node.keywords)]))
                if SUGGESTS.search(text):
                    found[text] = f"{file.relative_to(ROOT)}:{node.lineno}"
    return found


def test_no_message_suggests_what_nobody_has_typed():
    messages = suggesting()
    known = {*RETYPED, *LISTED}
    assert [f"{place}: {text}" for text, place in messages.items() if not any(part in text for part in known)] == []
    assert [part for part in LISTED if not any(part in text for text in messages)] == []
    assert {reason for reason in LISTED.values() if reason.startswith("test_")} <= {*globals()}


def accepted_by(words: list[str]):
    """What stands in the place of the task: as far as it reads the command's values."""
    if "task=explain" in words:
        return lambda requests: [parse_options(only_configuration(requests).options)]
    return lambda requests: [only_configuration(requests)] if "task=" in words[0] else resolved(requests)


@pytest.mark.parametrize("part", RETYPED, ids=str)
def test_what_a_message_suggests_is_accepted(part):
    typed, retyped = (command.split() for command in RETYPED[part])
    line = on_screen(*typed, carry_out=accepted_by(typed))
    assert line is not None and part in line
    new = [word for word in retyped if word not in typed]
    assert all(word in line or word.replace("'", "") in line for word in new), line
    retyped = [word.replace("'", "") for word in retyped]  # as a shell does
    assert on_screen(*retyped, carry_out=accepted_by(retyped)) is None


@pytest.mark.parametrize(
    "words",
    [
        "dataset=imagenet1k dataset.bad_images=skip", "wandb.mode=offline", "dataset.val_fraction=0.1",
        "dataset=imagenet1k dataset.grey16=minmax", "dataset=imagenet1k dataset.eval_split=test",
        "dataset=imagenet1k dataset.num_eval=0",
        "device=auto", "device=cpu", "model=vit_tiny_16_224 recipe.epochs=2", "study.part=pretraining",
        "study.rerun=all",
        "model.grad_checkpointing=true", "model.grad_checkpointing=false", "recipe.drop_path=0", "device_batch=null",
        "recipe.clip_grad=1.0", "recipe.precision=fp32", "workers=0", "tune=false",
        "tune=true recipe.compile=true device=cpu",
    ],
    ids=str,
)  # fmt: skip
def test_values_that_messages_name_are_accepted(words):
    assert on_screen(*words.split()) is None


@pytest.mark.parametrize("words", ["export.format=timm", "export.format=transformers"])
def test_the_formats_of_an_export_are_accepted(words):
    from vitlab.cli.export_task import ExportConfig

    def read(requests):
        build(ExportConfig, only_configuration(requests).options, "export")

    assert on_screen("task=export", words, carry_out=read) is None


@pytest.mark.parametrize("words", ["dataset=fractaldb1k", "dataset=fractaldb60"])
def test_the_data_sets_that_messages_name_are_accepted(words):
    assert on_screen("task=fractaldb", words) is None


@pytest.mark.parametrize(
    "words",
    [
        "explain=relevance explain.method=attnlrp", "explain=relevance explain.method=generic", "explain=rollout",
        "explain=relevance", "explain=features", "explain=features explain.method=attnlrp",
        "explain=faithfulness explain.target=predicted",
    ],
    ids=str,
)  # fmt: skip
def test_methods_that_messages_name_are_accepted(words):
    typed = ["task=explain", *words.split()]
    assert on_screen(*typed, carry_out=accepted_by(typed)) is None


@pytest.mark.parametrize(
    "model",
    [
        ModelConfig("vit_small_patch14_dinov2", image_size=518),
        ModelConfig("vit_base_patch16_224", image_size=32, patch_size=8, embed_dim=128, depth=3, num_heads=2),
    ],
    ids=lambda model: model.name,
)
def test_the_model_that_a_message_names_is_accepted(model, compose_config):
    assert compose_config(*as_overrides(model).split()).cell.model == model


def test_the_suggestions_for_tables_are_accepted():
    assert on_screen("margin=0.5", "metric=ema.top1", root="analyze") is None
    assert figure("ema.top1").metric.decimals
