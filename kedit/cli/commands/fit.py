"""`kedit fit`: LightningCLI with kedit's callbacks, a folder per run, and no option that would be ignored."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from kedit.callbacks import NamedProtocol, StopAtSignal
from kedit.callbacks.protocol import check_data
from kedit.cli.options.checks import (
    check_checkpoint,
    check_options,
    check_precision,
    edits_kept,
    first_line,
    placed,
    run_name,
)
from kedit.cli.options.found import found_configs
from kedit.cli.options.help import shorten, topic_of, words_for
from kedit.cli.options.layers import begin_anew, class_first
from kedit.cli.options.messages import Interrupted
from kedit.cli.options.moved import check_moved_words
from kedit.cli.options.parts import CALLBACKS, TOP, TRAINER_DEFAULTS, RunConfig
from kedit.cli.options.protocol import add_protocol, asked_by, in_force
from kedit.cli.options.quiet import quiet_lightning
from kedit.data import EditData
from kedit.errors import CannotWrite, KeditError, cannot_write
from kedit.methods import EditingModule
from kedit.methods.base.edit_config import EditConfig
from kedit.model.lm import LMConfig
from kedit.runtime import launcher
from kedit.runtime.claim import Claim, begun, numbered
from kedit.runtime.files import check_writable, make_folder, writing
from kedit.runtime.option_groups import check_groups
from kedit.runtime.protocols import protocol
from kedit.runtime.run_folder import CHECKPOINT, finished
from kedit.runtime.signals import Stopped, Stopper
from kedit.runtime.strategy import ShardedEdits

log = logging.getLogger(__name__)


class KeditCLI(LightningCLI):
    """LightningCLI for one subcommand, `fit`.

    Args:
        stopper: What hears the signals that end a run.
        claim: What makes and locks the run's folder.
    """

    def __init__(self, *args: Any, stopper: Stopper, claim: Claim, **kwargs: Any) -> None:
        self.stopper, self.claim = stopper, claim
        super().__init__(*args, **kwargs)

    help: str | None = None
    """What a help is on; None where none is shown, as options without help are written nowhere else."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Only `fit`; what it is given otherwise comes from the configuration."""
        return {"fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule", "weights_only"}}

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The model and how it is edited, the method, the data; kedit's own callbacks, which are always there."""
        add_protocol(parser)
        parser.add_class_arguments(LMConfig, "lm")
        parser.add_class_arguments(EditConfig, "edit")
        parser.add_lightning_class_args(EditingModule, "model", subclass_mode=True)
        parser.add_lightning_class_args(EditData, "data", subclass_mode=True)
        parser.add_class_arguments(RunConfig, "run")
        for name, cls in CALLBACKS.items():
            parser.add_lightning_class_args(cls, name)
        parser.add_lightning_class_args(Trainer, "trainer")
        parser.set_defaults({f"trainer.{name}": value for name, value in TRAINER_DEFAULTS.items()})
        begin_anew(parser)

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """The parser of `fit`."""
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if self.help is not None:
            shorten(parser, self.help)
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses what `fit` was given, wherever that came from."""
        self.config = in_force(parser, args)
        check_groups(self.config["fit"], TOP)
        check_options(self.config["fit"])
        check_precision(self.config["fit"])

    def _parse_ckpt_path(self) -> None:
        """Checkpoints of kedit hold no hyperparameters to be merged into the configuration."""

    def before_instantiate_classes(self) -> None:
        """Chooses the run's folder, and the checkpoint to resume from."""
        config = self.config[str(self.subcommand)]
        root, name = Path(config.run.root), config.run.name or run_name(config)
        check_writable(root, "run.root")

        def decide() -> dict[str, Any]:
            number = self.claim.take(root, name, config.run.resume)
            folder = numbered(root, name, number)
            return {"number": number, "begun": begun(folder), "finished": config.run.resume and finished(folder)}

        decided = launcher.agree(decide, root)
        self.folder = numbered(root, name, int(decided["number"]))
        if decided["finished"]:
            log.info("this run has finished, nothing is left to do: %s", self.folder)
            raise SystemExit(0)
        last = self.folder / CHECKPOINT
        self.checkpoint = config.ckpt_path
        if config.run.resume and self.checkpoint is None and last.exists():
            self.checkpoint = str(last)
        if self.checkpoint is not None:
            check_checkpoint(Path(self.checkpoint), resumed=config.ckpt_path is None)
        log.info("run folder: %s%s", self.folder, ", resumed" if decided["begun"] else "")
        if config.trainer.fast_dev_run:
            log.info("fast_dev_run: one edit batch, one optimiser step; the numbers mean nothing")

    def instantiate_classes(self) -> None:
        """Everything that the configuration describes."""
        with placed(self.config[str(self.subcommand)].model):
            super().instantiate_classes()
            with asked_by(self.config[str(self.subcommand)].protocol):
                self.model.configure(self._get(self.config_init, "lm"), self._get(self.config_init, "edit"))
        if (name := self.config[str(self.subcommand)].protocol) is not None:
            check_data(protocol(name), self.datamodule)

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """The trainer, with the run's folder and a CSV log in it unless another logger is given.

        Raises:
            KeditError: Lightning refuses an option, or there is no such device.
        """
        kwargs["default_root_dir"] = str(self.folder)
        if self._get(self.config_init, "trainer")["logger"] is None:
            kwargs["logger"] = CSVLogger(self.folder, name="logs")
        options = dict(self._get(self.config_init, "trainer"))
        if _alone_in_slurm():
            kwargs["plugins"] = options["plugins"] or LightningEnvironment()
        try:
            if _processes(options | kwargs) > 1:
                if options["strategy"] not in ("auto", "ddp"):
                    raise KeditError(
                        f"trainer.strategy: {options['strategy']} splits models or gradients; processes of kedit share "
                        "out the edits, each with the whole model: use auto"
                    )
                kwargs["strategy"] = ShardedEdits()
            trainer = super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ImportError, ValueError) as error:
            raise KeditError(f"trainer: {first_line(error)}") from error
        if (name := self.config[str(self.subcommand)].protocol) is not None:
            trainer.callbacks.insert(0, NamedProtocol(protocol(name)))  # type: ignore[attr-defined]
        trainer.callbacks.insert(0, StopAtSignal(self.stopper))  # type: ignore[attr-defined]
        return trainer

    def _run_subcommand(self, subcommand: str) -> None:
        given = {"datamodule": self.datamodule, "ckpt_path": self.checkpoint, "weights_only": True}
        try:
            with placed(self.config[subcommand].model), asked_by(self.config[subcommand].protocol):
                self.trainer.fit(self.model, **given)
        except MisconfigurationException as error:
            raise KeditError(f"trainer: {first_line(error)}") from error
        except (OSError, CannotWrite) as error:
            if (message := cannot_write(error, self.folder)) is None:
                raise
            kept = f"{edits_kept(self.folder)} edit batches are done and kept"
            raise KeditError(f"{message}\n{kept}; to go on, the same command with --run.resume true") from error
        except SystemExit as stop:
            if isinstance(stop, Stopped):
                status = 128 + stop.number
            elif isinstance(stop.__context__, KeyboardInterrupt):  # Lightning makes a SystemExit of it
                status = 130
            else:
                raise
            kept = f"{edits_kept(self.folder)} edit batches are done and kept in {self.folder}."
            how = "To go on: the same command with --run.resume true"
            self.claim.keep()
            raise Interrupted(f"{kept}\n{how}", status) from None
        except RuntimeError as error:
            if any(process.poll() for process in self._others()):  # it was waited for in vain
                raise KeditError("another process of this run has failed; what it said is above") from error
            raise
        finally:
            for process in self._others():
                if sys.exception() is not None:
                    process.kill()  # it would wait for this one
            launcher.forget(Path(self.config[subcommand].run.root))

    def _others(self) -> list[subprocess.Popen[bytes]]:
        """The processes of the run that this one has started."""
        starter = self.trainer.strategy.launcher
        return starter.procs if isinstance(starter, _SubprocessScriptLauncher) else []


def _alone_in_slurm() -> bool:
    """Whether Slurm has started one task, as for an element of a sweep: it starts its run's other processes itself."""
    return os.environ.get("SLURM_NTASKS") == "1"


def _processes(options: Mapping[str, Any]) -> int:
    """Of the run that these options of the trainer describe."""
    names = ("accelerator", "devices", "num_nodes", "strategy", "plugins")
    given = {name: options[name] for name in names}
    try:
        return Trainer(**given, logger=False, enable_checkpointing=False, enable_progress_bar=False).world_size
    except TypeError as error:  # as for `devices: nan`
        raise KeditError(f"trainer: {first_line(error)}") from error


class SaveConfig(SaveConfigCallback):
    """Saves the configuration as it was parsed into the run's folder (`config.yaml`)."""

    def save_config(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """One file; a resumed run has the same configuration."""
        folder = Path(trainer.default_root_dir)
        make_folder(folder, "run.root")
        with writing(folder / "config.yaml"):
            self.parser.save(self.config, str(folder / "config.yaml"), skip_none=False, overwrite=True)


def fit(words: list[str]) -> None:
    """Parse `words`, edit and measure; `first_look` has passed them."""
    if topic := topic_of(words):
        made_of(type("Help", (KeditCLI,), {"help": topic}), words_for(topic), Stopper(), Claim())
    with quiet_lightning(), Stopper() as stopper:
        try:
            with Claim() as claim:
                made_of(KeditCLI, words, stopper, claim)
        except Stopped as stop:
            raise Interrupted("the run had not begun: the same command begins it", 128 + stop.number) from None


def parsed(words: list[str]) -> Namespace:
    """What `fit` would make of `words`; nothing is loaded or written.

    Raises:
        KeditError, jsonargparse.ArgumentError: As `fit` would, where that needs no model and no data.
    """
    words = found_configs(words, say=False)
    check_moved_words(words)
    with quiet_lightning():
        return made_of(Parsing, words, Stopper(), Claim()).config["fit"]


class Parsing(KeditCLI):
    """Stops after parsing."""

    def before_instantiate_classes(self) -> None:
        pass

    def instantiate_classes(self) -> None:
        pass

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def made_of(cls: type[KeditCLI], words: list[str], stopper: Stopper, claim: Claim) -> KeditCLI:
    about = "Edit facts in a language model and measure what the edits did."
    return cls(
        EditingModule,
        EditData,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_callback=SaveConfig,
        save_config_kwargs={"save_to_log_dir": False},
        trainer_defaults=dict(TRAINER_DEFAULTS),
        seed_everything_default=0,
        auto_configure_optimizers=False,
        parser_kwargs={
            "prog": "kedit",
            "exit_on_error": False,
            "fit": {"description": about, "exit_on_error": False},
        },
        args=["fit", *class_first(words)],
        stopper=stopper,
        claim=claim,
    )
