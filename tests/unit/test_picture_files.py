"""Figures with letters that matplotlib's own font lacks: drawn with an installed font, or boxes and a line."""

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from vitlab.core import picture_files
from vitlab.core.picture_files import save_figure

STIX = "\u1d8d"
"""A letter that STIX has, which matplotlib brings, and DejaVu has not."""


@pytest.fixture(autouse=True)
def nothing_said():
    picture_files._said.clear()


def drawn(text: str, folder) -> np.ndarray:
    with mpl.rc_context({"pdf.fonttype": 42}):
        figure = Figure(figsize=(2, 1))
        figure.suptitle(text)
        png, pdf = save_figure(figure, folder / "figure")
    assert pdf.stat().st_size > 1000
    return imread(png)


def test_an_installed_font_steps_in_for_what_is_lacking(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(picture_files, "FURTHER", ("No Such Font", "STIXGeneral"))
    found = drawn(f"a {STIX}", tmp_path)
    assert capfd.readouterr().err == ""
    monkeypatch.setattr(picture_files, "FURTHER", ())
    box = drawn(f"a {STIX}", tmp_path)
    assert not np.array_equal(found, box)
    said = capfd.readouterr().err
    assert said.startswith(f"note: no font that is known here has {STIX} for the figures") and said.count("\n") == 1


def test_other_figures_stay_as_they_are(tmp_path, capfd):
    figure = Figure(figsize=(2, 1))
    title = figure.suptitle("Δ ± 95 % – café, Ω")
    family = title.get_fontfamily()
    picture_files.fit_fonts(figure)
    assert title.get_fontfamily() == family and capfd.readouterr().err == ""


def test_it_is_said_once_and_briefly(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(picture_files, "FURTHER", ())
    drawn("いろはにほへとちり", tmp_path)
    drawn("犬", tmp_path)
    assert capfd.readouterr().err.count("note: ") == 1 and len(picture_files._said[0]) == 9
