"""What `kedit fit --help` shows: kedit's own options first, of Lightning's trainer the few that matter here.

`kedit fit --help-trainer` shows every option of the trainer, and those alone.
"""

from __future__ import annotations

from argparse import SUPPRESS

from jsonargparse import ArgumentParser

USAGE = "kedit fit --config FILE [--OPTION VALUE ...]"
SHOWN = ("accelerator", "devices", "num_nodes", "max_epochs", "fast_dev_run", "logger")
TITLES = {
    "trainer": "Lightning's trainer; kedit fit --help-trainer lists all of its options",
    "ckpt_path": "To go on from a checkpoint of another folder",
}
CHECKPOINT = "Checkpoint that the run is resumed from; --run.resume finds the run's own."


def shorten(parser: ArgumentParser, trainer: bool) -> None:
    """Hide what a user seldom needs to read; every option can be given all the same.

    Args:
        parser: That of `kedit fit`, with all its options.
        trainer: Show the trainer's options, and those alone.
    """
    parser.usage = USAGE
    for group in parser._action_groups:
        names = [action.dest for action in group._group_actions]
        own = any(name.split(".")[0] == "trainer" for name in names)
        for action in group._group_actions:
            name = action.dest.removeprefix("trainer.").split(".")[0]
            hidden = (own and name not in SHOWN) or action.dest.endswith(".help")
            if trainer != own or (hidden and not trainer):
                action.help = SUPPRESS
            elif action.dest == "ckpt_path":
                action.help = CHECKPOINT
            elif action.help == "Path to a configuration file.":
                action.help = SUPPRESS
        if "trainer" in names:
            group.title = TITLES["trainer"] if not trainer else "Lightning's trainer"
        elif "ckpt_path" in names:
            group.title = TITLES["ckpt_path"]
    last = [group for group in parser._action_groups if any(a.dest == "trainer" for a in group._group_actions)]
    parser._action_groups = [group for group in parser._action_groups if group not in last] + last
