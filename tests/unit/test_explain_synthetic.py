"""The two-object test: class relevance finds the asked-for object, nothing else does."""

import pytest
import torch

from vitlab.explain import perturbation_curves, random_maps, relevance, rollout_map
from vitlab.explain.synthetic import build_scene_model, draw_scenes, pointing, scene_accuracy, train_scene_model


@pytest.mark.slow
def test_relevance_finds_the_object_it_is_asked_for():
    model = train_scene_model(seed=0)
    generator = torch.Generator().manual_seed(99)
    one, two = draw_scenes(192, 1, generator), draw_scenes(192, 2, generator)
    assert scene_accuracy(model, one, 1) > 0.98 and scene_accuracy(model, two, 2) > 0.95

    lrp = pointing(lambda x, c: relevance(model, x, c, method="lrp"), two)
    assert lrp.mass >= 0.9 and lrp.swap >= 0.8
    attnlrp = pointing(lambda x, c: relevance(model, x, c, method="attnlrp"), two)
    assert attnlrp.mass >= 0.9 and attnlrp.swap >= 0.8
    generic = pointing(lambda x, c: relevance(model, x, c, method="generic"), two)
    assert generic.mass >= 0.6 and generic.swap >= 0.5
    agnostic = pointing(lambda x, c: rollout_map(model, x), two)
    assert agnostic.mass < 0.3 and agnostic.swap == 0

    untrained = build_scene_model(100).eval()
    for method in ("lrp", "generic", "attnlrp"):
        noise = pointing(lambda x, c, m=method: relevance(untrained, x, c, method=m), two)
        assert abs(noise.mass - 4 / 36) < 0.04 and abs(noise.swap) < 0.04

    classes = one.classes[:, 0]
    areas = {
        "lrp": relevance(model, one.images, classes),
        "rollout": rollout_map(model, one.images),
        "random": random_maps(192, (6, 6)),
    }
    scores = {k: perturbation_curves(model, one.images, classes, v).scores()["positive"][0] for k, v in areas.items()}
    assert scores["lrp"] < scores["rollout"] < scores["random"]
