"""What the messages about a command line suggest is typed again, in the place of the mistake, and is accepted."""

import re
import shlex

import pytest
from typed_commands import on_screen

MISTAKES = [
    "epochs=5", "lr=1e-3", "batch_size=64", "optimizer=sgd", "precision=bf16", "mixup=0.8", "batch=64", "name=mine",
    "image_size=32", "recipe.epoch=3", "datset=digits", "wandb=offline", "study=mine", "wandb.modee=offline",
    "augment=mixupp", "augment=", "augment=none,", "augment=[none,autoaug]", "recipe=[quick,book]", "model=[vit_micro]",
    "augment=cutmix+mixup", "augment=autoaug+randaug", "augment=interval(0,1)", "augment=None", "seed=interval(0,1)",
    "seed=0..4", "seed=0..99", "seed=None", "seed=null", "seed=[0,1]", "seed=(0,1)", "seed={0,1}", "seed==3", "seed=0,",
    "recipe.lr=interval(1e-4,1e-2)", "recipe.epochs=5.0", "recipe.clip_grad=None", "recipe.optimizer=admaw",
    "recipe.precision=BF16", "device_batch=none", "dataset.mean=0.5", "dataset.mean=0.1,0.2,0.3", "wandb.tags=paper",
    "dataset.mean=(0.1,0.2,0.3)", "study.dry_run=yes", "study.cells='augment=none seed=1'", "mixup", "dry_run",
    "evaluate_every=2 recipe.lr=0.1", "quick_table3_3", "++augment=mixup",
]  # fmt: skip
"""Commands with one mistake; the suggestion takes the place of the first word."""
SUGGESTS = re.compile(r"(?:; type |; give |Did you mean |a sweep is |in one cell are )(.*?)(?=\?|; |, or | \(|$)")


def suggestions(line: str) -> list[list[str]]:
    """The overrides that a message suggests, each as the words that a shell would make of them."""
    found = [shlex.split(text.split(", or ")[0].split(", with ")[0]) for text in SUGGESTS.findall(line)]
    return [words for words in found if words and all("=" in word for word in words)]


@pytest.mark.parametrize("typed", MISTAKES, ids=str)
def test_what_is_suggested_is_accepted(typed):
    words = shlex.split(typed) if "'" in typed else typed.split()
    line = on_screen(*words)
    assert line is not None
    whole = [shlex.split(c)[2:] for c in re.findall(r"python run\.py [^;]*?(?=, or |$)", line)]
    found = whole or [[*given, *words[1:]] for given in suggestions(line)]
    assert found, line
    for given in found:
        assert on_screen(*given) is None, (line, given)
