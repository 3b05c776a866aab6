"""Ways in which a file may be damaged, for the fuzz of what reads records."""

import io
import json
import math
import shutil

import numpy as np
import torch
import yaml


def truncated(file, rng, other):
    data = file.read_bytes()
    file.write_bytes(data[: rng.randrange(len(data))])


def emptied(file, rng, other):
    file.write_bytes(b"")


def removed(file, rng, other):
    file.unlink()


def bits_flipped(file, rng, other):
    data = bytearray(file.read_bytes())
    for _ in range(rng.choice([1, 1, 8])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(bytes(data))


def digit_changed(file, rng, other):
    """One digit of a text by another; of a binary file one byte."""
    data = bytearray(file.read_bytes())
    digits = [i for i, byte in enumerate(data) if 48 <= byte <= 57]
    at = rng.choice(digits or range(len(data)))
    data[at] = rng.choice([byte for byte in range(48, 58) if byte != data[at]])
    file.write_bytes(bytes(data))


def other_encoding(file, rng, other):
    text = file.read_bytes().decode("latin-1")
    file.write_bytes(text.encode(rng.choice(["utf-16", "utf-32", "cp037"])))


def nonsense(file, rng, other):
    file.write_bytes(rng.choice([b"null\n", b"[1]\n", b"\x00" * 500, b"3", b'"x"', b"[" * 5000, b"9" * 6000, b"{}\n"]))


def swapped(file, rng, other):
    """With the file of the same name of another cell (study, data set)."""
    mine, theirs = file.read_bytes(), other.read_bytes()
    file.write_bytes(theirs)
    other.write_bytes(mine)


def copied_over(file, rng, other):
    shutil.copyfile(other, file)


def a_folder(file, rng, other):
    file.unlink()
    file.mkdir()


def wrong_type(file, rng, other):
    _edit(file, rng, lambda value: rng.choice([v for v in (None, "x", 3, [1], {"a": 1}, True) if v != value]))


def not_a_number(file, rng, other):
    _edit(file, rng, lambda value: rng.choice([math.nan, math.inf]), numbers=True)


def key_dropped(file, rng, other):
    _edit(file, rng, None)


def line_gone(file, rng, other):
    lines = file.read_bytes().splitlines(keepends=True)
    del lines[rng.randrange(len(lines))]
    file.write_bytes(b"".join(lines))


def line_added(file, rng, other):
    lines = file.read_bytes().splitlines(keepends=True)
    lines.insert(rng.randrange(len(lines) + 1), rng.choice([b"null\n", b"\n", lines[0], b'{"epoch": "2"}\n']))
    file.write_bytes(b"".join(lines))


KINDS = [
    truncated, emptied, removed, bits_flipped, digit_changed, other_encoding, nonsense, swapped, copied_over, a_folder,
    wrong_type, not_a_number, key_dropped, line_gone, line_added,
]  # fmt: skip


def _edit(file, rng, change, numbers=False):
    """Change or drop one value of a file that holds a tree of values, and write it in the same format."""
    suffix = file.suffix
    if suffix == ".jsonl":
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        _edit_tree(lines, rng, change, numbers)
        file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    elif suffix == ".yaml":
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
        _edit_tree(tree, rng, change, numbers)
        file.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    elif suffix == ".json":
        tree = json.loads(file.read_text(encoding="utf-8"))
        _edit_tree(tree, rng, change, numbers)
        file.write_text(json.dumps(tree, indent=1), encoding="utf-8")
    elif suffix == ".npz":
        with np.load(file) as content:
            arrays = {name: content[name] for name in content}
        name = rng.choice(list(arrays))
        array = arrays.pop(name)
        if change is not None:
            changed = array.astype(float) * math.nan if numbers else rng.choice([array[:3], array.astype(str)])
            arrays[name] = changed
        np.savez(file, **arrays)
    elif suffix == ".pt":
        state = torch.load(file, weights_only=True)
        name = rng.choice(list(state))
        value = state.pop(name)
        if change is not None:
            state[name] = change(value)
        buffer = io.BytesIO()
        torch.save(state, buffer)
        file.write_bytes(buffer.getvalue())


def _edit_tree(tree, rng, change, numbers):
    places = [place for place in _places(tree) if not numbers or type(place[0][place[1]]) in (int, float)]
    if places:
        node, key = rng.choice(places)
        if change is None:
            del node[key]
        else:
            node[key] = change(node[key])


def _places(node):
    """(container, key) of everything below a node."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield node, key
        yield from _places(value)
