"""The book's names and flags, typed where ours are expected."""

import argparse

import pytest
from hydra._internal.utils import get_args_parser

from vitlab.cli.flags import NAMES, hint_for, hint_for_flag, hints_for_flags, mistakes_in_flags, split_command
from vitlab.config import options


def test_every_hint_names_a_choice_that_exists():
    for group, names in NAMES.items():
        assert set(names.values()) <= set(options(group)), group
        assert not set(names) & set(options(group)), f"a choice of {group} is taken for a mistake"


@pytest.mark.parametrize(
    ("group", "name", "ours"),
    [
        ("dataset", "ImageNet", "imagenet1k"),
        ("dataset", "CIFAR10", "cifar10"),
        ("dataset", "FractalDB-1k", "fractaldb1k"),
        ("dataset", "imagenet-1k", "imagenet1k"),
        ("model", "vit_tiny_patch16_224", "vit_tiny_16_224"),
        ("augment", "original", "autoaug"),
    ],
)
def test_the_books_names(group, name, ours):
    hint = hint_for(group, name)
    assert hint and f"{group}={ours}" in hint and "docs/from_the_book.md" in hint


def test_our_own_names_need_no_hint():
    assert hints_for_flags(["-m", "seed=0,1,2", "--cfg", "job", "--multirun"]) == []
    assert hint_for("dataset", "mine") is None and hint_for_flag("--help") is None


def test_a_whole_command_of_the_book():
    command = (
        "--batch-size 512 --data-path /d --data-set ImageNet --model vit_tiny_16_224 --no-aug --mixup=0 --cutmix 0"
    )
    hints = mistakes_in_flags(command.split(), "config")
    assert [hint.split(":")[0] for hint in hints] == [
        "--batch-size", "--data-path", "--data-set", "--model", "--no-aug", "--mixup", "--cutmix",
    ]  # fmt: skip


def test_a_flag_that_only_leaves_its_value_open_is_answered_with_it():
    assert hint_for_flag("--mixup=0.2") == "--mixup: type augment.mixup=0.2 (docs/from_the_book.md)"
    assert hint_for_flag("--output_dir=my runs") == "--output_dir: type 'output_dir=my runs' (docs/from_the_book.md)"
    assert "recipe.batch_size=N, of all devices together" in (hint_for_flag("--batch-size=512") or "")


def test_hydras_parser_is_made_where_help_texts_are_checked(monkeypatch):
    """As argparse does since Python 3.14: `'%' in help` of an object that only becomes a text when it is shown."""

    def check(self, action):
        if "%" not in (action.help or ""):
            return

    monkeypatch.setattr(argparse.ArgumentParser, "_check_help", check, raising=False)
    add = argparse.ArgumentParser.add_argument

    def add_checked(self, *names, **options):
        action = add(self, *names, **options)
        self._check_help(action)
        return action

    monkeypatch.setattr(argparse.ArgumentParser, "add_argument", add_checked)
    with pytest.raises((TypeError, ValueError)):
        get_args_parser()
    assert split_command(["-m", "seed=0,1"]) == (["-m"], ["seed=0,1"])
    assert argparse.ArgumentParser._check_help is check
