"""Parsing group by group gives what PyYAML gives, for every layout."""

import copy

import pytest
import yaml

from vitlab.config import choice, plain
from vitlab.core.integrity import parse_yaml

CELL = {"model": plain(choice("model", "vit_micro")), "augment": plain(choice("augment", "deit")), "seed": 3}
FILES = {
    "a cell": {
        "cell": CELL,
        "labels": {"augment": "deit", "dataset": "digits"},
        "schema_version": 1,
        "digest": "0f" * 32,
    },
    "odd values": {
        "cell": {"no": "yes", "x": None, "empty": {}, "list": [1, {"a": [2.5, "b: c"]}]},
        "1": {"2": 3},
        "-x": {"-y": 1},
        "- z": 1,
    },
    "long texts": {"cell": {"text": "two words " * 40, "other": "foo: " * 30}, "title": "ends in a colon: " * 12},
    "lines": {"cell": {"text": "one\ntwo:\n  b: c"}, "title": "one:\n  b: c", "after": {"x": 1}},
    "letters": {"猫": {"名": "前"}, "cell": {"hånd": "# no comment", "quote": "it's", "star": "*x", "bang": "!y"}},
    "a list": {"cell": {"a": 1}, "cells": [{"a": 1}, {"b": 2}]},
    "numbers as keys": {7: {2: 3}, True: {"on": 4}, "cell": {"a": 1e-3, "b": "1e-3", "c": "2026-11-28"}},
}


@pytest.mark.parametrize("options", [{}, {"sort_keys": False, "allow_unicode": True}, {"width": 30}, {"indent": 4}])
@pytest.mark.parametrize("name", FILES)
def test_what_pyyaml_writes(name, options):
    text = yaml.safe_dump(FILES[name], **options)
    assert parse_yaml(text) == yaml.safe_load(text) == FILES[name]


@pytest.mark.parametrize(
    "text",
    [
        "cell:\n  a: 1\n  a: 2\ncell:\n  b: 3\n",
        "cell:\n  - a\n  - b\n",
        "cell:\n   a: 1\n   b: 2\n",
        "title: 'one:\n  b: c'\n",
        "title: one\n  two: \n",
        "cell: &x\n  a: 1\nother: *x\n",
        "cell:\n  a: |\n    one\n    b: 2\n",
        "cell:\n  # a comment\n  a: 1\n",
        "---\ncell:\n  a: 1\n",
        "{cell: {a: 1},\n  b: 2}\n",
        "yes:\n  no: 1\n",
        "'quoted: key':\n  a: 1\n",
        "cell:\n  a: 1\n-x: 1\n",
        "cell:\n  a: 1\n  -x: 1\n'y':\n  'z': 1\n",
        "cell:\n  a: 1\n? b\n: c\n",
        "cell:\n  a: [1,\n  2]\n",
        "",
        "cell:\n",
        "cell:\r\n  a: 1\r\n",
    ],
)
def test_what_others_write(text):
    try:
        expected = yaml.safe_load(text)
    except yaml.YAMLError:
        with pytest.raises(yaml.YAMLError):
            parse_yaml(text)
    else:
        assert (parse_yaml(text) or None) == expected


def test_what_is_shared_is_not_what_is_returned():
    text = yaml.safe_dump({"cell": {"a": {"x": 1}, "b": 2}})
    first = parse_yaml(text)
    before = copy.deepcopy(first)
    first["cell"]["b"] = 3
    first["more"] = 4
    assert parse_yaml(text) == before
