"""Figures: that what should be on them is on them."""

import numpy as np
import pytest
import torch

from vitlab.explain.faithfulness import Curves
from vitlab.explain.figures import (
    FINE,
    Tile,
    draw_distance,
    draw_filters,
    draw_perturbation_curves,
    draw_similarity,
    draw_tiles,
    enlarged,
    overlay,
    save,
    scaled,
)


def pixels(figure) -> np.ndarray:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def test_maps_are_scaled_from_least_to_greatest():
    np.testing.assert_allclose(scaled(np.array([[2.0, 4.0], [3.0, 4.0]])), [[0, 1], [0.5, 1]])
    np.testing.assert_allclose(scaled(np.array([[-2.0, 4.0]])), [[0, 1]])  # what speaks against is not shown
    assert scaled(np.zeros((2, 2))).max() == 0 and scaled(np.full((2, 2), -1.0)).max() == 0


def test_overlay_is_hot_where_the_map_is():
    picture = np.full((64, 32, 3), 128, np.uint8)
    heat = np.zeros((4, 2))
    heat[3, 1] = 1e-11  # LayerScale at its start makes maps as small as this
    shown = overlay(picture, heat)
    assert shown.shape == (192, 96, 3) and shown.min() >= 0 and shown.max() <= 1
    assert shown[-10, -10].sum() > shown[10, 10].sum() + 0.5
    assert enlarged(scaled(heat), (64, 32)).shape == (64, 32)


def test_each_filter_is_drawn():
    filters = np.ones((9, 3, 4, 4)) * np.linspace(0, 1, 9)[:, None, None, None]
    figure = draw_filters(filters, title="filters")
    assert sum(len(axis.images) for axis in figure.axes) == 9
    reds = np.zeros((1, 3, 4, 4))
    reds[:, 0] = 1
    red = pixels(draw_filters(reds, title=""))
    assert ((red[..., 0] > 200) & (red[..., 1] < 50)).mean() > 0.2


def test_similarity_has_one_scale_and_all_patches():
    figure = draw_similarity(np.random.default_rng(0).uniform(-1, 1, (2, 3, 2, 3)), title="similarity")
    (image,) = figure.axes[0].images
    assert image.get_clim() == (-1, 1)
    sheet = np.ma.filled(image.get_array(), np.nan)
    assert np.isfinite(sheet).sum() == 36 * FINE**2
    gaps = np.isnan(sheet).all(0).sum() / sheet.shape[1]
    assert 0 < gaps < 0.1  # narrow, even where a map is a few patches wide


def test_tiles_have_titles_rows_and_one_bar():
    picture = np.zeros((16, 16, 3), np.uint8)
    rows = [
        [Tile("input", picture), Tile("map", heat=np.eye(4)), Tile("cat", picture, np.eye(4))],
        [Tile("input", picture)],
    ]
    figure = draw_tiles(rows, title="method\ncheckpoint", row_labels=["one", "two"])
    assert [axis.get_title() for axis in figure.axes[:3]] == ["input", "map", "cat"]
    assert figure.axes[0].get_ylabel() == "one" and len(figure.axes) == 7
    assert figure.axes[-1].get_ylim() == (0, 1)


@pytest.mark.parametrize("height", [1, 2])
def test_no_text_leaves_the_figure(height):
    names = ["input", "map", "sulphur-crested cock…, p < 0.01"]
    figure = draw_tiles([[Tile(n, heat=np.eye(4)) for n in names]] * height, title="t", row_labels=["picture"] * height)
    pixels(figure)  # lays it out
    inside = figure.bbox.padded(1)
    for axis in figure.axes:
        for text in (axis.title, axis.yaxis.label):
            box = text.get_window_extent()
            assert inside.contains(box.x0, box.y0) and inside.contains(box.x1, box.y1), text
    assert len({axis.title.get_fontsize() for axis in figure.axes[: 3 * height]}) == 1


def test_the_key_of_the_curves_hides_none():
    values = torch.linspace(0, 1, 11)[:, None].expand(-1, 3)
    curves = {m: Curves(torch.linspace(0, 1, 11), *[values] * 4) for m in ("lrp", "random")}
    figure = draw_perturbation_curves(curves, title="t")
    pixels(figure)
    (key,) = figure.legends
    assert [t.get_text() for t in key.get_texts()] == ["Transformer LRP", "random"]
    box = key.get_window_extent()
    assert not any(axis.get_window_extent().overlaps(box) for axis in figure.axes)
    assert figure.bbox.padded(1).contains(box.x1, box.y1)


def test_distances_of_many_checkpoints_stay_at_their_layer():
    values = {f"cell {i}": np.full((3, 2), 5.0 + i) for i in range(9)}
    figure = draw_distance(values, title="distance", uniform=8.0)
    places = np.concatenate([line.get_xdata() for line in figure.axes[0].lines if len(line.get_xdata()) == 3])
    assert np.abs(places - places.round()).max() <= 0.31
    assert len(figure.axes[0].get_legend().get_texts()) == 9


@pytest.mark.parametrize("kind", ["png", "pdf"])
def test_files_repeat_byte_for_byte(kind, tmp_path):
    for name in ("a", "b"):
        save(draw_tiles([[Tile("t", heat=np.eye(3))]], title="x"), tmp_path / f"{name}.1")
    assert (tmp_path / f"a.1.{kind}").read_bytes() == (tmp_path / f"b.1.{kind}").read_bytes()
