"""Files of weights that declare more than they hold take no memory."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from vitlab.core.errors import UserError
from vitlab.core.integrity import DamagedError
from vitlab.models.weights import read_checkpoint

UNREADABLE = (DamagedError, UserError)


def saved(content, file: Path) -> Path:
    torch.save(content, file)
    return file


def test_declared_sizes_are_checked_before_memory_is_taken(tmp_path):
    spread = saved({"patch_embed.proj.weight": torch.zeros(1).expand(10**7, 3, 16, 16)}, tmp_path / "spread.pth")
    with pytest.raises(UNREADABLE, match=r"declared as \(10000000, 3, 16, 16\) and only 4 bytes"):
        read_checkpoint(spread)
    bomb = tmp_path / "bomb.npz"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", b"\0" * 10**7)
    with pytest.raises(UNREADABLE, match=r"declares 10,000,000, as no file of weights does"):
        read_checkpoint(bomb)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**9, 1000)})
    liar = tmp_path / "liar.npz"
    with zipfile.ZipFile(liar, "w") as archive:
        archive.writestr("a.npy", header.getvalue() + b"\0" * 64)
    with pytest.raises(UNREADABLE, match=r"a\.npy declares 4,000,000,000,\d+ bytes and has 192"):
        read_checkpoint(liar)
    objects = tmp_path / "objects.npz"
    np.savez(objects, a=np.array([{"x": 1}], dtype=object))
    with pytest.raises(UNREADABLE, match="holds Python objects"):
        read_checkpoint(objects)
    (tmp_path / "text.npz").write_bytes(b"hello")
    with pytest.raises(UNREADABLE, match=r"not an \.npz file"):
        read_checkpoint(tmp_path / "text.npz")


def test_a_storage_that_is_shorter_than_declared(tmp_path):
    """A pickle that declares more than the archive holds for it."""
    file = saved({"patch_embed.proj.weight": torch.zeros(64, 3, 4, 4)}, tmp_path / "m.pth")
    with zipfile.ZipFile(file) as archive:
        entries = {entry: archive.read(entry) for entry in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "cut.pth", "w") as archive:
        for entry, content in entries.items():
            archive.writestr(entry, content[:64] if entry.endswith("data/0") else content)
    with pytest.raises(UNREADABLE, match=r"cut\.pth"):
        read_checkpoint(tmp_path / "cut.pth")
