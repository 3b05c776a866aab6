"""Perturbation curves on a model whose only clue is known."""

import pytest
import torch

from vitlab.explain import perturbation_curves, random_maps
from vitlab.explain.faithfulness import STEPS, score_table
from vitlab.explain.synthetic import CLASSES, GRID, draw_scenes, mass_on, pointing


class Corner(torch.nn.Module):
    """Says class 1 as long as the upper left patch (of 2 x 5 pixels) is bright."""

    def forward(self, images):
        bright = images[:, :, :2, :5].mean((1, 2, 3))
        return torch.stack([torch.full_like(bright, 0.5), bright], 1) * 20


@pytest.fixture
def setting():
    images = torch.ones(3, 3, 10, 10)
    clue = torch.zeros(3, 5, 2)
    clue[:, 0, 0] = 1
    return Corner(), images, torch.ones(3, dtype=torch.long), clue


def test_the_only_clue_decides(setting):
    model, images, targets, clue = setting
    curves = perturbation_curves(model, images, targets, clue, batch=2)
    assert curves.share.tolist() == pytest.approx(list(STEPS))
    assert curves.most_first[:, 0].tolist() == [1] + [0] * 10
    assert curves.least_first[:, 0].tolist() == [1] * 10 + [0]
    scores = curves.scores()
    assert scores["positive"][0] == pytest.approx(100 * 0.5 / 9)
    assert scores["negative"][0] == pytest.approx(100)
    assert scores["deletion"][0] < 10 and scores["insertion"][0] > 90
    assert scores["positive"][1] == 0


def test_a_map_that_points_elsewhere_scores_the_other_way(setting):
    model, images, targets, clue = setting
    scores = perturbation_curves(model, images, targets, -clue).scores()
    assert scores["positive"][0] == pytest.approx(100) and scores["insertion"][0] < 10


def test_removed_patches_take_the_filling(setting):
    model, images, targets, clue = setting
    curves = perturbation_curves(model, images, targets, clue, fill=torch.ones(3, 1, 1))
    assert curves.most_first.min() == 1


def test_random_maps_repeat_and_the_table_names_its_columns(setting):
    model, images, targets, clue = setting
    torch.testing.assert_close(random_maps(3, (5, 2)), random_maps(3, (5, 2)))
    curves = {"lrp": perturbation_curves(model, images, targets, clue)}
    header, rows = score_table(curves)
    assert header == ["method", "positive pert. ↓", "negative pert. ↑", "deletion ↓", "insertion ↑"]
    assert rows[0][:2] == ["lrp", "5.6 ± 0.0"]


def test_scenes_are_what_they_say():
    scenes = draw_scenes(50, 2, torch.Generator().manual_seed(0))
    assert scenes.images.shape == (50, 3, 48, 48) and scenes.classes.max() < CLASSES
    assert (scenes.classes[:, 0] != scenes.classes[:, 1]).all()
    assert (scenes.patches.sum((2, 3)) == 4).all() and not (scenes.patches[:, 0] & scenes.patches[:, 1]).any()
    again = draw_scenes(50, 2, torch.Generator().manual_seed(0))
    torch.testing.assert_close(scenes.images, again.images)
    energy = torch.nn.functional.avg_pool2d(scenes.images.square().mean(1, keepdim=True), 8)[:, 0]
    assert energy[scenes.patches[:, 0]].mean() > 1.3 * energy[~scenes.patches.any(1)].mean()


def test_pointing_of_perfect_and_of_blind_maps():
    scenes = draw_scenes(20, 2, torch.Generator().manual_seed(0))
    places = {tuple(c.tolist()): p for c, p in zip(scenes.classes, scenes.patches, strict=True)}

    def perfect(images, classes):
        rows = [
            places[tuple(pair.tolist())][(pair == c).nonzero()[0, 0]]
            for pair, c in zip(scenes.classes, classes, strict=True)
        ]
        return torch.stack(rows).float()

    right = pointing(perfect, scenes)
    assert right.mass == pytest.approx(1) and right.swap == pytest.approx(1)
    blind = pointing(lambda images, classes: torch.ones(len(images), GRID, GRID), scenes)
    assert blind.mass == pytest.approx(4 / 36) and blind.swap == 0
    assert mass_on(torch.zeros(1, 6, 6), scenes.patches[:1, 0]).item() == 0
