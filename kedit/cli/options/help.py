"""What `kedit fit --help` shows: a page of what people use, and by a topic the options that the parser knows.

The page (`kedit/cli/options/fit_help.txt`) needs nothing imported. A topic is `all`, a group of options (`metrics`),
the trainer, or a method or data set (`ROME`).
"""

from __future__ import annotations

import re
from argparse import SUPPRESS
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType

from jsonargparse import ArgumentParser

from kedit.cli.options.signatures import ROOT, classes_in, groups
from kedit.errors import KeditError, shown

PAGE = Path(__file__).with_name("fit_help.txt")
ALL, TRAINER = "all", "trainer"
CLASSES: Mapping[str, str] = MappingProxyType({"model": "methods", "data": "data"})
"""The groups whose class a user chooses, and where kedit's own are."""

BASES = frozenset({"EditingModule", "EditData"})

USAGE = "kedit fit --config FILE [--OPTION VALUE ...]"
SHOWN: Mapping[str, str] = MappingProxyType(
    {
        "accelerator": "auto, cpu, gpu or mps.",
        "devices": "GPUs, or processes on a CPU, that share out the edits.",
        "num_nodes": "Machines of that many devices.",
        "max_epochs": "Stop after so many edit batches; -1: all.",
        "fast_dev_run": "One edit batch, one optimiser step, measured and saved: a test of the set-up.",
    }
)
"""Options of the trainer that are listed with kedit's own, and what they do here."""

TITLES: Mapping[str, str] = MappingProxyType(
    {
        "model": "The method (options of one: kedit fit --help ROME)",
        "data": "The data (options of a data set: kedit fit --help Facts)",
        "ckpt_path": "A checkpoint by its path",
        "trainer": "Lightning's trainer (all of its options: kedit fit --help trainer)",
    }
)
GROUP = "Path to a configuration file."
"""What the option parser says of every group of options."""

CHECKPOINT = "Checkpoint that the run is resumed from; --run.resume true finds the run's own."


def topic_of(words: Sequence[str]) -> str | None:
    """What the words of `kedit fit` ask for help on.

    Args:
        words: What stands after `kedit fit`.

    Returns:
        The topic; empty where none is named; None where no help is asked for.

    Raises:
        KeditError: There is no such topic.
    """
    if "--help-trainer" in words:
        return TRAINER
    for i, word in enumerate(words):
        name, equals, topic = word.partition("=")
        if name in ("-h", "--help"):
            if not equals and i + 1 < len(words) and not words[i + 1].startswith("-"):
                topic = words[i + 1]
            return _known(topic)
    return None


def words_for(topic: str) -> list[str]:
    """What the option parser must be given for the help on a topic."""
    part = next((part for part in CLASSES if topic in _classes(part)), None)
    return ["--help"] if part is None else [f"--{part}.help", topic]


def shorten(parser: ArgumentParser, topic: str) -> None:
    """Leave out of the help what is not of a topic, and put the trainer's options last.

    Args:
        parser: That of `kedit fit`, with all its options.
        topic: `all`: every option of kedit, and few of the trainer's. `trainer`: the trainer's alone. Else a group.
    """
    parser.usage = USAGE
    last = []
    for group in parser._action_groups:
        names = [action.dest for action in group._group_actions]
        of_trainer = TRAINER in names
        for action in group._group_actions:
            name = action.dest.removeprefix("trainer.")
            few = of_trainer and topic == ALL
            if topic not in (ALL, TRAINER):
                left_out = action.dest.split(".")[0] != topic
            else:
                left_out = of_trainer != (topic == TRAINER) and not (few and name in SHOWN)
            if action.help == GROUP or left_out:
                action.help = SUPPRESS
            elif few:
                action.help = SHOWN[name]
            elif name == "ckpt_path":
                action.help = CHECKPOINT
        group.title = next((TITLES[name] for name in names if name in TITLES), group.title)
        last += [group] * of_trainer
    parser._action_groups = [group for group in parser._action_groups if group not in last] + last


def _known(topic: str) -> str:
    parts = [*groups(ROOT / "cli" / "options" / "parts.py"), *CLASSES, TRAINER, ALL]
    named = [*parts, *(name for part in CLASSES for name in _classes(part))]
    if topic and topic not in named:
        folded = {name.lower(): name for name in named}
        close = get_close_matches(topic.lower(), folded, n=1)
        others = f"there are {', '.join(parts)}, and every method and data set"
        hint = f"did you mean {folded[close[0]]}?" if close else others
        raise KeditError(f"--help: there is nothing on {shown(topic)}; {hint}")
    return topic


def _classes(part: str) -> list[str]:
    """Names of the classes that `--model` or `--data` may name, read off their source: those that the package gives."""
    folder = ROOT / CLASSES[part]
    given = set(re.findall(r'"(\w+)"', (folder / "__init__.py").read_text(encoding="utf-8").partition("__all__")[2]))
    return [name for name in classes_in(folder) if name in given - BASES]
