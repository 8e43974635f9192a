"""`kedit fit`: LightningCLI with kedit's callbacks, a folder per run, and no option that would be ignored."""

from __future__ import annotations

import importlib
import logging
import os
import pickle
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import torch
from jsonargparse import Namespace
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from kedit import launched
from kedit.callbacks import (
    EditCheckpoint,
    EditMetrics,
    EditProgress,
    LatentFigures,
    PathImportance,
    ResultsWriter,
    ResultTable,
    Robustness,
    StopAtSignal,
    Texts,
    WhitenedSimilarity,
)
from kedit.cli.messages import Interrupted, of_kedit
from kedit.cli.quiet import quiet_lightning
from kedit.data import EditData
from kedit.errors import CannotWrite, KeditError, cannot_write
from kedit.methods import EditingModule
from kedit.runfolder import CHECKPOINT, finished, make_folder, run_folder, writing
from kedit.stopping import Stopped, Stopper
from kedit.strategy import ShardedEdits

log = logging.getLogger(__name__)


@dataclass
class RunConfig:
    """Where a run is kept.

    Args:
        root: Folder of all runs.
        name: Name of this one; null makes one of method, model, data, regime and seed.
        resume: Go on in the newest unfinished run of that name instead of starting a new one.
    """

    root: str = "runs"
    name: str | None = None
    resume: bool = False


class KeditCLI(LightningCLI):
    """LightningCLI for one subcommand, `fit`.

    Args:
        stopper: What hears the signals that end a run.
    """

    def __init__(self, *args: Any, stopper: Stopper, **kwargs: Any) -> None:
        self.stopper = stopper
        super().__init__(*args, **kwargs)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Only `fit`; what it is given otherwise comes from the configuration."""
        return {"fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule", "weights_only"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """kedit's own callbacks are always there, and are configured at the top level."""
        parser.add_class_arguments(RunConfig, "run")
        parser.add_lightning_class_args(EditMetrics, "metrics")
        parser.add_lightning_class_args(ResultsWriter, "results")
        parser.add_lightning_class_args(EditProgress, "progress")
        parser.add_lightning_class_args(EditCheckpoint, "checkpoint")
        parser.add_lightning_class_args(Robustness, "robustness")  # reads what ResultsWriter wrote
        parser.add_lightning_class_args(Texts, "texts")  # these too
        parser.add_lightning_class_args(WhitenedSimilarity, "similarity")
        parser.add_lightning_class_args(PathImportance, "importance")
        parser.add_lightning_class_args(LatentFigures, "latent")
        parser.add_lightning_class_args(ResultTable, "table")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses what `fit` was given, wherever that came from."""
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        """Checkpoints of kedit hold no hyperparameters to be merged into the configuration."""

    def before_instantiate_classes(self) -> None:
        """Chooses the run's folder, and the checkpoint to resume from."""
        config = self.config[str(self.subcommand)]
        _check_groups(config)
        root = Path(config.run.root)

        def decide() -> dict[str, Any]:
            folder = run_folder(config.run.root, config.run.name or _name(config), config.run.resume)
            return {"folder": str(folder), "finished": config.run.resume and finished(folder)}

        decided = launched.agree(decide, root)
        self.folder = Path(decided["folder"])
        if decided["finished"]:
            log.info("this run has finished, nothing is left to do: %s", self.folder)
            raise SystemExit(0)
        last = self.folder / CHECKPOINT
        self.checkpoint = config.ckpt_path
        if config.run.resume and self.checkpoint is None and last.exists():
            self.checkpoint = str(last)
        if self.checkpoint is not None:
            _check_checkpoint(Path(self.checkpoint))
        log.info("run folder: %s%s", self.folder, ", resumed" if self.folder.exists() else "")
        if config.trainer.fast_dev_run:
            log.info("fast_dev_run: one edit batch, one optimiser step; the numbers mean nothing")

    def instantiate_classes(self) -> None:
        """Everything that the configuration describes."""
        with _placed(self.config[str(self.subcommand)].model):
            super().instantiate_classes()

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
        except (MisconfigurationException, ValueError) as error:
            raise KeditError(f"trainer: {_first_line(error)}") from error
        trainer.callbacks.insert(0, StopAtSignal(self.stopper))  # type: ignore[attr-defined]
        return trainer

    def _run_subcommand(self, subcommand: str) -> None:
        given = {"datamodule": self.datamodule, "ckpt_path": self.checkpoint, "weights_only": True}
        try:
            with _placed(self.config[subcommand].model):
                self.trainer.fit(self.model, **given)
        except MisconfigurationException as error:
            raise KeditError(f"trainer: {_first_line(error)}") from error
        except (OSError, CannotWrite) as error:
            if (message := cannot_write(error, self.folder)) is None:
                raise
            kept = f"{_edits_kept(self.folder)} edit batches are done and kept"
            raise KeditError(f"{message}\n{kept}; to go on, the same command with --run.resume true") from error
        except SystemExit as stop:
            if isinstance(stop, Stopped):
                status = 128 + stop.number
            elif isinstance(stop.__context__, KeyboardInterrupt):  # Lightning makes a SystemExit of it
                status = 130
            else:
                raise
            kept = f"{_edits_kept(self.folder)} edit batches are done and kept in {self.folder}."
            how = "To go on: the same command with --run.resume true"
            raise Interrupted(f"{kept}\n{how}", status) from None
        except RuntimeError as error:
            if any(process.poll() for process in self._others()):  # it was waited for in vain
                raise KeditError("another process of this run has failed; what it said is above") from error
            raise
        finally:
            for process in self._others():
                if sys.exception() is not None:
                    process.kill()  # it would wait for this one
            launched.forget(Path(self.config[subcommand].run.root))

    def _others(self) -> list[subprocess.Popen[bytes]]:
        """The processes of the run that this one has started."""
        launcher = self.trainer.strategy.launcher
        return launcher.procs if isinstance(launcher, _SubprocessScriptLauncher) else []


def _alone_in_slurm() -> bool:
    """Whether Slurm has started one task, as for an element of a sweep: it starts its run's other processes itself."""
    return os.environ.get("SLURM_NTASKS") == "1"


def _processes(options: Mapping[str, Any]) -> int:
    """Of the run that these options of the trainer describe."""
    names = ("accelerator", "devices", "num_nodes", "strategy", "plugins")
    given = {name: options[name] for name in names}
    return Trainer(**given, logger=False, enable_checkpointing=False, enable_progress_bar=False).world_size


class SaveConfig(SaveConfigCallback):
    """Saves the configuration as it was parsed into the run's folder (`config.yaml`)."""

    def save_config(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """One file; a resumed run has the same configuration."""
        folder = Path(trainer.default_root_dir)
        make_folder(folder, "run.root")
        with writing(folder / "config.yaml"):
            self.parser.save(self.config, str(folder / "config.yaml"), skip_none=False, overwrite=True)


TRAINER_DEFAULTS = {
    "devices": 1,
    "reload_dataloaders_every_n_epochs": 1,  # every epoch has its own edit batch
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 1,
    "max_epochs": -1,  # as many as there are edit batches
    "enable_progress_bar": False,  # kedit's own shows edits
    "enable_model_summary": False,
    "use_distributed_sampler": False,
}


def fit(words: list[str]) -> None:
    """Parse `words`, edit and measure."""
    with quiet_lightning(), Stopper() as stopper:
        try:
            _cli(KeditCLI, words, stopper)
        except Stopped as stop:
            raise Interrupted("the run had not begun: the same command begins it", 128 + stop.number) from None


def parsed(words: list[str]) -> Namespace:
    """What `fit` would make of `words`; nothing is loaded or written.

    Raises:
        KeditError, jsonargparse.ArgumentError: As `fit` would, where that needs no model and no data.
    """
    with quiet_lightning():
        return _cli(_Parsing, words, Stopper()).config["fit"]


class _Parsing(KeditCLI):
    """Stops after parsing."""

    def before_instantiate_classes(self) -> None:
        _check_groups(self.config[str(self.subcommand)])

    def instantiate_classes(self) -> None:
        pass

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def _cli(cls: type[KeditCLI], words: list[str], stopper: Stopper) -> KeditCLI:
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
        args=["fit", *words],
        stopper=stopper,
    )


@contextmanager
def _placed(model: Namespace) -> Iterator[None]:
    """Inside, `model.layer: ...` becomes `model.editor.layer: ...` where that option is of the method's editor.

    A method does not know whether the configuration has it at `model` or, below REP, at `model.editor`.
    """
    try:
        yield
    except (KeditError, TypeError, ValueError) as error:
        message, editor = of_kedit(error) or "", model.init_args.get("editor")
        option = re.match(r"model\.(\w+)(?=[: ])", message)
        if editor is None or option is None or option[1] not in editor.init_args:
            raise
        raise KeditError(message.replace("model.", "model.editor.", 1)) from error


def _check_groups(config: Namespace) -> None:
    """A plain value where a group of options belongs (`lm: gpt2`), which the parser lets pass."""
    more = ("robustness", "texts", "similarity", "importance", "latent")
    options = ("run", "metrics", "results", "progress", "checkpoint", *more)
    groups = {name: config[name] for name in options}
    parts = {"model": config.model, "data": config.data}
    if config.model.init_args.get("editor") is not None:
        parts["model.init_args.editor"] = config.model.init_args.editor
    for part, chosen in parts.items():
        module, _, cls = str(chosen.class_path).rpartition(".")
        bases = [c for c in getattr(importlib.import_module(module), cls).__mro__ if c.__module__.startswith("kedit.")]
        hints = {name: hint for base in bases for name, hint in get_type_hints(base.__init__).items()}
        args = chosen.init_args
        names = [name for name, hint in hints.items() if is_dataclass(hint) and name in args]
        groups |= {f"{part}.{name}": args[name] for name in names}
    for option, value in groups.items():
        if not isinstance(value, Namespace):
            raise KeditError(f"{option}: wants options of its own below it, not {value!r}")


def _check_checkpoint(path: Path) -> None:
    """Whether kedit wrote it; what it holds is checked by the method."""
    if not path.is_file():
        raise KeditError(f"ckpt_path: there is no file {path}")
    try:
        if not zipfile.is_zipfile(path):
            raise KeditError(f"ckpt_path: {path} is truncated or no checkpoint")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise KeditError(f"ckpt_path: {path} is damaged: {_first_line(error)}") from None
    if not isinstance(checkpoint, dict) or "kedit" not in checkpoint:
        raise KeditError(f"ckpt_path: {path} was not written by kedit")


def _edits_kept(folder: Path) -> int:
    """Edit batches that a resumed run need not do again."""
    last = folder / CHECKPOINT
    if not last.exists():
        return 0
    return torch.load(last, map_location="cpu", weights_only=True, mmap=True)["kedit"]["edits_done"]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _name(config: Any) -> str:
    """method-model-data-regime-seed, from what the user wrote."""
    model, data = config.model, config.data
    method = str(model.class_path).rpartition(".")[2].lower()
    editor = model.init_args.get("editor")  # of a method that adds to another
    if editor is not None:
        method = f"{str(editor.class_path).rpartition('.')[2].lower()}-{method}"
        model = editor
    lm = Path(str(model.init_args.lm.name)).name.lower()
    what = str(data.class_path).rpartition(".")[2].lower()
    args = data.init_args
    part = args.get("split") or Path(str(args.get("path") or "")).stem
    parts = (method, lm, what, part, model.init_args.regime, f"seed{model.init_args.seed}")
    return "-".join(str(part) for part in parts if part) + ("-dev" if config.trainer.fast_dev_run else "")
