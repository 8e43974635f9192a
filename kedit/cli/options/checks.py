"""What `kedit fit` checks of a parsed configuration and of a checkpoint, and how it names a run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from kedit.cli.options.messages import of_kedit
from kedit.errors import KeditError, at_least, shown
from kedit.runtime.checkpoint_file import read_checkpoint
from kedit.runtime.checksum import first_line as first_line
from kedit.runtime.option_groups import class_of, editors
from kedit.runtime.option_values import check_path, check_text, check_values
from kedit.runtime.run_folder import CHECKPOINT

NAME = 200
"""The most bytes of a run's name: folders take 255, and a second run of the name gets a number behind it."""


@contextmanager
def placed(model: Namespace) -> Iterator[None]:
    """Inside, `model.layer: ...` becomes `model.editor.layer: ...` where that option is of the method's editor.

    A method does not know whether the configuration has it at `model` or, below REP, at `model.editor`.
    """
    try:
        yield
    except (KeditError, TypeError, ValueError) as error:
        message = of_kedit(error) or ""
        option = re.match(r"model\.(\w+)(?=[: ])", message)
        having = [name for name, editor in editors(model) if option is not None and option[1] in editor.init_args]
        if not having or (option is not None and option[1] == "editor"):
            raise
        raise KeditError(message.replace("model.", f"{having[-1]}.", 1)) from error


def check_options(config: Namespace) -> None:
    """What would be found out late, or not at all: values that no option means, and runs that could not be kept.

    Raises:
        KeditError: Names the option.
    """
    check_values(config)
    trainer = config.trainer
    for name in ("max_epochs", "max_steps"):
        value = trainer[name]
        if value is not None and value != -1 and value < 1:
            raise KeditError(f"trainer.{name}: {value} edits nothing; give 1 or more, or -1 for all")
    for name in ("log_every_n_steps", "min_epochs", "min_steps", "num_sanity_val_steps"):
        if name != "num_sanity_val_steps" or trainer[name] != -1:
            at_least(f"trainer.{name}", trainer[name], 0)
    check_path("run.root", config.run.root)
    if config.run.name is not None:
        check_name(config.run.name)


def check_name(name: str) -> None:
    """Whether a run can be called so: it is the name of one folder.

    Raises:
        KeditError: It is empty, has a separator or a character that does not print, is `.` or `..`, or too long.
    """
    check_text("run.name", name)
    if not name.strip() or name in (".", "..") or "/" in name or "\\" in name or not name.isprintable():
        raise KeditError(
            f"run.name: {shown(name)} is no name of a folder below run.root; use letters, digits, '-', '_'"
        )
    if len(name.encode()) > NAME:
        raise KeditError(f"run.name: {shown(name)} is too long, {len(name.encode())} bytes; at most {NAME}")


TYPES = {"bf16-true": "bfloat16", "16-true": "float16"}


def check_precision(config: Namespace) -> None:
    """A `trainer.precision` that would change the type of the weights, which the model is loaded with."""
    chosen = str(config.trainer.precision)
    if not (chosen.endswith("-true") or chosen.startswith(("64", "transformer"))) or chosen == "32-true":
        return
    raise KeditError(
        f"trainer.precision: {chosen} would change the type of the weights; lm.dtype chooses it: "
        f"give --lm.dtype {TYPES.get(chosen, 'float32, bfloat16 or float16')} instead"
    )


def check_checkpoint(path: Path, resumed: bool) -> None:
    """Whether kedit wrote it, and it is whole; what it holds of the method is checked by the method.

    Args:
        path: The checkpoint.
        resumed: It is the run's own; otherwise one that the user named.
    """
    try:
        read_checkpoint(path)
    except KeditError as error:
        how = "\nTo begin the run anew in its folder, move this file away" if resumed else ""
        raise KeditError(f"{'run.resume' if resumed else 'ckpt_path'}: {error}{how}") from None


def edits_kept(folder: Path) -> int:
    """Edit batches that a resumed run need not do again."""
    try:
        return read_checkpoint(folder / CHECKPOINT)["kedit"]["edits_done"]
    except KeditError:  # there is none, or none that can be used
        return 0


def run_name(config: Any) -> str:
    """method-model-data-regime-seed, from what the user wrote."""
    model, data = config.model, config.data
    method = str(model.class_path).rpartition(".")[2].lower()
    for _, editor in editors(model):  # of a method that adds to another
        method = f"{str(editor.class_path).rpartition('.')[2].lower()}-{method}"
        model = editor
    regime = config.edit.regime or class_of(model).usual_regime
    lm = Path(str(config.lm.name)).name.lower()
    what = str(data.class_path).rpartition(".")[2].lower()
    args = data.init_args
    part = args.get("split") or Path(str(args.get("path") or "")).stem
    chat = "chat" if args.get("chat") else None
    parts = (method, lm, what, part, chat, regime, config.protocol, f"seed{config.edit.seed}")
    name = "-".join(str(part) for part in parts if part) + ("-dev" if config.trainer.fast_dev_run else "")
    name = "".join(c if c.isprintable() and c not in "/\\" else "_" for c in name)
    return name if len(name.encode()) <= NAME else name.encode()[-NAME:].decode(errors="ignore").lstrip("-.")


def data_missing(question: str) -> KeditError:
    """The error of a command that was given no data set; it names those there are.

    Args:
        question: What the data are for, e.g. `"which facts are traced?"`.
    """
    from kedit.data import datasets_index

    return KeditError(f"--data missing: {question} There are {', '.join(name for name, _, _ in datasets_index())}")
