"""What a configuration describes, made without loading or writing anything."""

from __future__ import annotations

from typing import Any

from kedit.cli.commands.fit import Parsing, made_of
from kedit.cli.options.checks import placed
from kedit.cli.options.moved import check_moved_words
from kedit.cli.options.quiet import quiet_lightning
from kedit.data import EditData
from kedit.methods import EditingModule
from kedit.model.lm import LMConfig
from kedit.runtime.claim import Claim
from kedit.runtime.signals import Stopper


def planned(words: list[str]) -> tuple[EditingModule, LMConfig, EditData, Any, Any]:
    """What `fit` would run: the method, configured, its model, its data, and what measures; nothing is loaded.

    Raises:
        KeditError, jsonargparse.ArgumentError: As `kedit.cli.commands.fit.parsed`.
    """
    check_moved_words(words)
    with quiet_lightning():
        cli = made_of(_Planning, words, Stopper(), Claim())
    made = cli.config_init["fit"]
    method = made["model"].configure(made["lm"], made["edit"])
    return method, made["lm"], made["data"], made["metrics"], made["perplexity"]


class _Planning(Parsing):
    """Makes what the configuration describes, but no trainer."""

    def instantiate_classes(self) -> None:
        with placed(self.config[str(self.subcommand)].model):
            self.config_init = self.parser.instantiate_classes(self.config)
