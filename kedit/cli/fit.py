"""`kedit fit`: LightningCLI with kedit's callbacks, a folder per run, and no option that would be ignored."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from kedit.callbacks import EditCheckpoint, EditMetrics, EditProgress, ResultsWriter, ResultTable
from kedit.data import EditData
from kedit.methods import EditingModule
from kedit.runfolder import CHECKPOINT, run_folder


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
    """LightningCLI for one subcommand, `fit`."""

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
        parser.add_lightning_class_args(ResultTable, "table")

    def before_instantiate_classes(self) -> None:
        """Chooses the run's folder, and the checkpoint to resume from."""
        config = self.config[self.subcommand]
        trainer = config.trainer
        name = config.run.name or _name(config)
        folder = run_folder(config.run.root, name, config.run.resume)
        trainer.default_root_dir = str(folder)
        checkpoint = folder / CHECKPOINT
        if config.run.resume and config.ckpt_path is None and checkpoint.exists():
            config.ckpt_path = str(checkpoint)
        if trainer.logger is None:
            logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(folder)}}
            trainer.logger = logger | {"init_args": logger["init_args"] | {"name": "logs"}}

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Without the default progress bar's summary lines: `EditProgress` shows what is going on."""
        return super().instantiate_trainer(**kwargs)

    def _run_subcommand(self, subcommand: str) -> None:
        self.trainer.fit(
            self.model, datamodule=self.datamodule, ckpt_path=self._get(self.config_init, "ckpt_path"), weights_only=True
        )


class SaveConfig(SaveConfigCallback):
    """Saves the configuration as it was parsed into the run's folder (`config.yaml`)."""

    def save_config(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """One file; a resumed run has the same configuration."""
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self.parser.save(self.config, str(folder / "config.yaml"), skip_none=False, overwrite=True)


TRAINER_DEFAULTS = {
    "devices": 1,
    "reload_dataloaders_every_n_epochs": 1,  # every epoch has its own edit batch
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 1,
    "enable_progress_bar": False,  # kedit's own shows edits
    "enable_model_summary": False,
    "use_distributed_sampler": False,
}


def fit(words: list[str]) -> None:
    """Parse `words`, edit and measure."""
    KeditCLI(
        EditingModule,
        EditData,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_callback=SaveConfig,
        save_config_kwargs={"save_to_log_dir": False},
        trainer_defaults=dict(TRAINER_DEFAULTS),
        seed_everything_default=0,
        auto_configure_optimizers=False,
        parser_kwargs={"exit_on_error": False, "fit": {"exit_on_error": False}},
        args=["fit", *words],
    )


def _name(config: Any) -> str:
    """method-model-data-regime-seed, from what the user wrote."""
    model, data = config.model, config.data
    method = str(model.class_path).rpartition(".")[2].lower()
    lm = Path(str(model.init_args.lm.name)).name.lower()
    what = str(data.class_path).rpartition(".")[2].lower()
    args = data.init_args
    part = args.get("split") or Path(str(args.get("path") or "")).stem
    name = "-".join(str(x) for x in (method, lm, what, part, model.init_args.regime, f"seed{model.init_args.seed}") if x)
    return name + ("-dev" if config.trainer.fast_dev_run else "")
