"""What `kedit fit --help` shows: kedit's own options first, of Lightning's trainer the few that matter here.

`kedit fit --help-trainer` shows every option of the trainer, and those alone.
"""

from __future__ import annotations

from argparse import SUPPRESS
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal

from jsonargparse import ArgumentParser

Help = Literal["own", "trainer"]

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
        "model": "The method (options of one: kedit fit --model.help ROME)",
        "data": "The data (options of a data set: kedit fit --data.help Facts)",
        "ckpt_path": "A checkpoint by its path",
        "trainer": "Lightning's trainer (all of its options: kedit fit --help-trainer)",
    }
)
GROUP = "Path to a configuration file."
"""What the option parser says of every group of options."""

CHECKPOINT = "Checkpoint that the run is resumed from; --run.resume true finds the run's own."


def asked_for(words: Sequence[str]) -> Help | None:
    """Which help the words of `kedit fit` ask for, if any."""
    if "--help-trainer" in words:
        return "trainer"
    return "own" if "-h" in words or "--help" in words else None


def shorten(parser: ArgumentParser, asked: Help) -> None:
    """Leave out of the help what a user seldom needs to read, and put the trainer's options last.

    Args:
        parser: That of `kedit fit`, with all its options.
        asked: `own`: kedit's options, and few of the trainer's. `trainer`: the trainer's alone.
    """
    parser.usage = USAGE
    last = []
    for group in parser._action_groups:
        names = [action.dest for action in group._group_actions]
        of_trainer = "trainer" in names
        for action in group._group_actions:
            name = action.dest.removeprefix("trainer.")
            few = of_trainer and asked == "own"
            if action.help == GROUP or (of_trainer != (asked == "trainer") and not (few and name in SHOWN)):
                action.help = SUPPRESS
            elif few:
                action.help = SHOWN[name]
            elif name == "ckpt_path":
                action.help = CHECKPOINT
        group.title = next((TITLES[name] for name in names if name in TITLES), group.title)
        last += [group] * of_trainer
    parser._action_groups = [group for group in parser._action_groups if group not in last] + last
