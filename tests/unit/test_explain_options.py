"""The keys of explain: one schema, contradictions named, nothing heavy imported."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from vitlab.config import ConfigError
from vitlab.explain.options import ExplainConfig, parse_options

CONF = Path(__file__).parents[2] / "conf" / "explain"


def test_the_base_file_says_what_the_schema_says():
    written = yaml.safe_load((CONF / "base.yaml").read_text(encoding="utf-8"))
    fields = {f.name: f.default for f in dataclasses.fields(ExplainConfig) if f.name != "kind"}
    assert written.pop("kind") == "???"
    assert {k: tuple(v) if isinstance(v, list) else v for k, v in written.items()} == fields


@pytest.mark.parametrize("name", ["position", "rollout", "features", "relevance", "faithfulness"])
def test_each_choice_composes(name, compose_config):
    config = compose_config("task=explain", f"explain={name}")
    assert config.task == "explain" and parse_options(config.options).kind == name
    assert config.cell.model.name == "from_checkpoint"


def test_relevance_is_the_default(compose_config):
    assert parse_options(compose_config("task=explain", "explain.class_index=[1,2]").options).class_index == (1, 2)


MISTAKES = {
    "unknown key": ({"klass": 3}, "explain.klass: no such key"),
    "rollout with a class": ({"kind": "rollout", "class_index": 3}, "knows no class.*explain=relevance"),
    "position with a class": ({"kind": "position", "class_name": "cat"}, "takes no class"),
    "two ways to name a class": ({"class_index": 3, "top_k": 2}, "one of class_index, class_name and top_k"),
    "unknown method": ({"method": "gradcam"}, "explain.method: got 'gradcam', allowed: lrp, generic, attnlrp"),
    "unknown fusion": ({"kind": "rollout", "head_fusion": "sum"}, "explain.head_fusion"),
    "everything discarded": ({"kind": "rollout", "discard_ratio": 1.0}, "explain.discard_ratio: got 1.0"),
    "a negative class": ({"class_index": -1}, "explain.class_index: got -1"),
    "no best": ({"top_k": 0}, "explain.top_k"),
    "start layer of attnlrp": ({"method": "attnlrp", "start_layer": 2}, "explain.start_layer"),
    "a position to compare": ({"kind": "position", "compare": True}, "nothing to put side by side"),
    "several classes to compare": ({"compare": True, "class_index": [1, 2]}, "shows one class"),
    "best classes to compare": ({"compare": True, "top_k": 2}, "explain.top_k: explain.compare=true shows one class"),
    "no method": ({"kind": "faithfulness", "methods": []}, "explain.methods"),
    "a method twice": ({"kind": "faithfulness", "methods": ["lrp", "lrp"]}, "each once"),
    "labels for others": ({"labels": ["a", "b"]}, "2 labels for 1 checkpoints"),
    "no class at all": ({"class_index": []}, "explain.class_index: the list is empty"),
    "a method that rollout ignores": (
        {"kind": "rollout", "method": "generic"},
        "explain.method: explain=rollout does not read it.*for explain=relevance",
    ),
    "one method to measure": ({"kind": "faithfulness", "method": "attnlrp"}, "explain=faithfulness does not read it"),
    "fused heads of relevance": ({"head_fusion": "max"}, "explain.head_fusion.*explain=rollout"),
    "methods without comparing": ({"methods": ["lrp"]}, "explain.methods.*explain.compare=true"),
    "pictures of scenes": ({"kind": "faithfulness", "synthetic": True, "images": "a.jpg"}, "explain.images"),
    "a synthetic rollout": ({"kind": "rollout", "synthetic": True}, "explain.synthetic"),
}


@pytest.mark.parametrize(("given", "words"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_name_the_key(given, words):
    with pytest.raises(ConfigError, match=words):
        parse_options({"kind": "relevance"} | given, num_checkpoints=1)


@pytest.mark.parametrize(
    "given",
    [
        {"compare": True, "head_fusion": "max", "methods": ["rollout", "lrp"]},
        {"kind": "rollout", "compare": True, "discard_ratio": 0.5, "start_layer": 1},
        {"kind": "faithfulness", "methods": ["rollout"], "head_fusion": "min", "num_images": 7, "target": "label"},
        {"kind": "faithfulness", "synthetic": True, "synthetic_steps": 9, "methods": ["generic"]},
        {"kind": "features", "method": "attnlrp", "head_fusion": "max", "start_layer": 1},
        {"kind": "position", "images": "a.jpg", "batch": 2, "output": "there"},
        {"method": "generic", "start_layer": 1, "top_k": 3},
    ],
)
def test_what_a_kind_reads_is_accepted(given):
    parsed = parse_options({"kind": "relevance"} | given)
    assert all(getattr(parsed, k) == (tuple(v) if isinstance(v, list) else v) for k, v in given.items())


def test_class_names_may_look_like_numbers():
    assert parse_options({"kind": "relevance", "class_name": 7}).chosen_classes == ("7",)
    assert parse_options({"kind": "relevance", "class_index": 7}).chosen_classes == (7,)


def test_options_need_no_torch():
    heavy = "{'torch', 'timm', 'numpy'} & set(sys.modules)"
    code = f"import sys, vitlab.explain.options, vitlab.cli.explain_task; assert not {heavy}"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
