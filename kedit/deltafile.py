"""A delta on disk: a folder with `delta.safetensors` and a JSON card that says what it is.

Nothing is unpickled. The card names the base model by the fingerprint of its weights, and a delta is not
given out for another model unless the caller says so.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from kedit.delta import Delta, Factors
from kedit.errors import KeditError
from kedit.lm import LM
from kedit.pathway import Pathway

FORMAT = 1


def save_delta(folder: Path | str, delta: Delta, card: dict[str, Any]) -> Path:
    """Write `delta` and its card, each file replaced in one step.

    Args:
        folder: Created if it does not exist.
        delta: What to write.
        card: JSON-able; must have `model_fingerprint`, and should say method, requests, protocol, results.

    Returns:
        The folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for path, factors in delta.changes.items():
        tensors[f"{path}/left"] = factors.left.cpu().contiguous()
        tensors[f"{path}/right"] = factors.right.cpu().contiguous()
    for path, pathways in delta.pathways.items():
        for i, pathway in enumerate(pathways):
            for name, tensor in pathway.tensors().items():
                tensors[f"{path}/{i}/{name}"] = tensor.cpu().contiguous()
    partial = folder / f".delta.{os.getpid()}.safetensors"
    save_file(tensors, partial)
    os.replace(partial, folder / "delta.safetensors")
    partial = folder / f".card.{os.getpid()}.json"
    partial.write_text(json.dumps({"format": FORMAT, **card}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, folder / "card.json")
    return folder


def load_delta(folder: Path | str, lm: LM | None = None) -> tuple[Delta, dict[str, Any]]:
    """Read a delta and its card.

    Args:
        folder: What `save_delta` wrote.
        lm: The model it will be applied to; None skips the check.

    Returns:
        The delta, on the CPU, and the card.

    Raises:
        KeditError: Missing, truncated or foreign files, or a delta of another model.
    """
    folder = Path(folder)
    for name in ("card.json", "delta.safetensors"):
        if not (folder / name).is_file():
            raise KeditError(f"{folder} holds no {name}: it is not a delta that kedit saved")
    try:
        card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "delta.safetensors")
    except (json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
        raise KeditError(f"{folder}: a file of this delta is damaged ({error})") from None
    if card.get("format") != FORMAT:
        raise KeditError(f"{folder}: delta format {card.get('format')!r}; this kedit reads format {FORMAT}")
    if lm is not None and card.get("model_fingerprint") != lm.fingerprint:
        raise KeditError(
            f"{folder}: this delta is of another model, {card.get('model')} ({card.get('model_fingerprint')}); "
            f"here it is {lm.name} ({lm.fingerprint})"
        )
    return _assemble(tensors), card


def _assemble(tensors: dict[str, Tensor]) -> Delta:
    """Factors are kept as PATH/left and PATH/right, pathways as PATH/NUMBER/NAME."""
    changes: dict[str, Factors] = {}
    pathways: dict[str, dict[int, dict[str, Tensor]]] = {}
    for key, tensor in tensors.items():
        path, *number, name = key.split("/")
        if number:
            pathways.setdefault(path, {}).setdefault(int(number[0]), {})[name] = tensor
        elif name == "left":
            changes[path] = Factors(tensor, tensors[f"{path}/right"])
    lined_up = {path: tuple(Pathway(**parts[i]) for i in sorted(parts)) for path, parts in pathways.items()}
    return Delta(changes, lined_up)
