"""Names that become files: what is refused, before anything is computed, and what is suggested instead."""

import os

import pytest

from vitlab.config import ConfigError
from vitlab.core.names import MOST_BYTES, clean_name, require_name, text_of

GOOD = ["birds", "手の写真", "हिन्दी", "คำ", "e\u0301te\u0301", "a b", "007", "v1.2_x-3", "x" * 100, "手" * 33, ".a"]
BAD = {
    "a/b": "'/' is none of these; for instance study.name=a_b",
    "..": "that is a folder; for instance study.name=new",
    ".": "that is a folder",
    "": "it is empty",
    "   ": "it is empty",
    " a": "it begins or ends with a space; for instance study.name=a",
    "x" * 300: "it has 300 bytes",
    "手" * 34: "it has 102 bytes",
    "../../evil": "for instance study.name=evil",
    "a\0b": r"'\\x00' is none of these",
    "a\nb": r"'\\n' is none of these",
    "a:b": "':' is none of these",
    "💥": "'💥' is none of these; for instance study.name=new",
    "/null": "for instance study.name=new",
    "7/7": "for instance study.name=new",
    "\udce9t": "is none of these",
}


@pytest.mark.parametrize("name", GOOD)
def test_names_of_any_script_are_accepted(name):
    require_name("study.name", name)
    assert clean_name(name) == name


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_a_file_everywhere_is_refused(name):
    with pytest.raises(ConfigError, match=rf"study\.name: got .*{BAD[name]}"):
        require_name("study.name", name)


@pytest.mark.parametrize("name", [*GOOD, *BAD, "///", ". .", "x/" * 200])
def test_a_cleaned_name_is_accepted(name):
    require_name("study.name", clean_name(name))


def test_long_names_that_begin_alike_stay_apart():
    first, second = (clean_name("x" * 200 + end) for end in "ab")
    assert first != second and len(first.encode()) <= MOST_BYTES


@pytest.mark.parametrize("key", ["study.name", "study.table", "dataset.name", "pretrain.dataset.name"])
@pytest.mark.parametrize("name", ["a/b", "..", "../../evil", "x" * 300])
def test_every_key_refuses_them_and_its_suggestion_is_accepted(compose_config, key, name):
    words = ["pretrain=fractaldb"] if key.startswith("pretrain") else []
    with pytest.raises(ConfigError) as raised:
        compose_config(*words, f"{key}='{name}'")
    error = str(raised.value)
    assert error.startswith(f"{key}: got")
    compose_config(*words, error.rpartition("for instance ")[2])


@pytest.mark.parametrize("key", ["project", "entity"])
@pytest.mark.parametrize("name", ["a/b", "", "x" * 129, "50%"])
def test_names_that_wandb_refuses(compose_config, key, name):
    with pytest.raises(ConfigError, match=rf"wandb\.{key}: got .* for instance wandb\.{key}=vitlab"):
        compose_config(f"wandb.{key}='{name}'")


def test_a_folder_of_any_name_gives_a_data_set_one(compose_config, tmp_path):
    (tmp_path / "birds (1) + more").mkdir()
    found = compose_config("dataset=folder", f"dataset.root='{tmp_path}/birds (1) + more'")
    assert found.cell.dataset.name == "birds _1_ _ more"


def test_a_long_sweep_gets_a_short_name(requests_for):
    from vitlab.study.plan import study_name

    keys = [
        "recipe.weight_decay",
        "recipe.warmup_epochs",
        "recipe.warmup_lr",
        "augment.color_jitter",
        "augment.smoothing",
    ]
    keys += ["recipe.repeated_augmentation", "dataset.train_per_class", "dataset.val_fraction", "recipe.lr_base_batch"]
    lists = [[f"{key}={value}" for key, value in zip(keys, values, strict=True)]
             for values in ((0, 1, 0.1, 0, 0, 1, 20, 0, 256), (0.1, 2, 0.2, 0.1, 0.1, 2, 30, 0.1, 512))]  # fmt: skip
    requests = requests_for(*lists)
    require_name("study.name", study_name(requests[0].config, requests))


def test_names_of_files_become_text():
    assert text_of("手") == "手" and text_of(os.fsdecode(b"h\xe5nd")) == "h\\xe5nd"
    assert text_of("手", "ascii") == "\\xe6\\x89\\x8b"
