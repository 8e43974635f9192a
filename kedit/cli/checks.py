"""What `kedit fit` checks of a parsed configuration and of a checkpoint, and how it names a run."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from jsonargparse import Namespace

from kedit.checkpointfile import read_checkpoint
from kedit.checksum import first_line as first_line
from kedit.cli.messages import of_kedit
from kedit.errors import KeditError
from kedit.runfolder import CHECKPOINT


@contextmanager
def placed(model: Namespace) -> Iterator[None]:
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


def check_groups(config: Namespace) -> None:
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


TYPES = {"bf16-true": "bfloat16", "16-true": "float16"}


def check_precision(config: Namespace) -> None:
    """A `trainer.precision` that would change the type of the weights, which the model is loaded with."""
    chosen = str(config.trainer.precision)
    if not (chosen.endswith("-true") or chosen.startswith(("64", "transformer"))) or chosen == "32-true":
        return
    option = "model.lm.dtype" if config.model.init_args.get("editor") is None else "model.editor.lm.dtype"
    raise KeditError(
        f"trainer.precision: {chosen} would change the type of the weights; {option} chooses it: "
        f"give --{option} {TYPES.get(chosen, 'float32, bfloat16 or float16')} instead"
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
