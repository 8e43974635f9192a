"""A delta on disk: a folder with `delta.safetensors` and a JSON card that says what it is.

Nothing is unpickled. The card names the base model by the fingerprint of its weights, and a delta is not
given out for another model unless the caller says so. It also has the checksums of `delta.safetensors` and of itself:
a folder with a flipped bit is refused.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from kedit.delta.change import Change, WeightChange
from kedit.delta.delta import Delta
from kedit.delta.kinds import KINDS, in_order
from kedit.errors import KeditError
from kedit.model.lm import LM
from kedit.runtime import checksum
from kedit.runtime.file_modes import as_umask
from kedit.runtime.files import write_json, writing

TENSORS, CARD = "delta.safetensors", "card.json"
FORMAT = 3
READABLE = (1, 2, 3)  # 1: no slices, no biases; 1 and 2: no checksums

log = logging.getLogger(__name__)


def save_delta(folder: Path | str, delta: Delta, card: dict[str, Any]) -> Path:
    """Write `delta` and its card, each file replaced in one step.

    Args:
        folder: Created if it does not exist.
        delta: What to write.
        card: JSON-able; must have `model_fingerprint`, and should say method, requests, protocol, results.

    Returns:
        The folder.

    Raises:
        CannotWrite: The disk is full, or the folder cannot be written.
    """
    folder = Path(folder)
    # cloned: safetensors refuses tensors that share memory, as one index of many slices does
    tensors = {k: t.cpu().clone(memory_format=torch.contiguous_format) for k, t in _named(delta).items()}
    target = folder / TENSORS
    partial = folder / ".delta.partial"
    with writing(target, partial):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            save_file(tensors, partial)
        except SafetensorError as error:  # its only trouble with these tensors is the disk
            raise OSError(str(error)) from error
        as_umask(partial)
        sums = {"tensors": checksum.of_file(partial)}
        os.replace(partial, target)
    whole = {"format": FORMAT, **card, "checksums": sums}
    sums["card"] = checksum.of_json(_as_read(whole))
    write_json(folder / CARD, whole)
    return folder


def load_delta(
    folder: Path | str, lm: LM | None = None, kinds: Sequence[type[Change]] = KINDS
) -> tuple[Delta, dict[str, Any]]:
    """Read a delta and its card.

    Args:
        folder: What `save_delta` wrote.
        lm: The model it will be applied to; None skips the check.
        kinds: The kinds of changes that it may hold.

    Returns:
        The delta, on the CPU, and the card.

    Raises:
        KeditError: Missing, truncated or foreign files, or a delta of another model.
    """
    folder = Path(folder)
    card = _read_card(folder)
    if lm is not None and card.get("model_fingerprint") != lm.fingerprint:
        raise KeditError(
            f"{folder}: this delta is of another model, {str(card.get('model'))[:80]} "
            f"({str(card.get('model_fingerprint'))[:80]}); "
            f"here it is {lm.name} ({lm.fingerprint})"
        )
    try:
        if "checksums" not in card:
            log.warning("%s was saved by an older kedit and holds no checksums: its numbers are not checked", folder)
        elif card["checksums"]["tensors"] != checksum.of_file(folder / TENSORS):
            raise ValueError(f"the checksum of {TENSORS} is wrong")
        return _checked(_assemble(load_file(folder / TENSORS), kinds)), card
    except (*checksum.UNREADABLE, SafetensorError) as error:
        raise KeditError(f"{folder}: a file of this delta is damaged ({checksum.first_line(error)})") from None


def _read_card(folder: Path) -> dict[str, Any]:
    """The card of a delta, with the right checksum where it has one.

    Raises:
        KeditError: It is missing, damaged, not kedit's, or of a format that is not known here.
    """
    for name in (CARD, TENSORS):
        if not (folder / name).is_file():
            raise KeditError(f"{folder} holds no {name}: it is not a delta that kedit saved")
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise KeditError(f"{folder}: a file of this delta is damaged ({checksum.first_line(error)})") from None
    if not isinstance(card, dict):
        raise KeditError(
            f"{folder}: a file of this delta is damaged ({CARD} is a {type(card).__name__}, not an object)"
        )
    known = card.get("format")
    if type(known) is not int or known not in READABLE:
        raise KeditError(f"{folder}: delta format {str(known)[:40]}; this kedit reads formats up to {FORMAT}")
    if known < 3 and "checksums" not in card:
        return card
    sums = card.get("checksums")
    if not isinstance(sums, dict) or sums.keys() != {"tensors", "card"}:
        raise KeditError(f"{folder}: a file of this delta is damaged (there are no checksums in {CARD})")
    if sums["card"] != checksum.of_json(card | {"checksums": {"tensors": sums["tensors"]}}):
        raise KeditError(f"{folder}: a file of this delta is damaged (the checksum of {CARD} is wrong: it was altered)")
    return card


def _as_read(card: dict[str, Any]) -> dict[str, Any]:
    """A card as JSON gives it back: keys become texts, tuples lists."""
    return json.loads(json.dumps(card, ensure_ascii=False))


def _named(delta: Delta) -> dict[str, Tensor]:
    """The tensors of a file: PATH/NAME, where NAME is what the kind of change says."""
    return {
        f"{path}/{name}": tensor
        for path, changes in delta.items()
        for change in changes
        for name, tensor in change.tensors().items()
    }


def _assemble(tensors: dict[str, Tensor], kinds: Sequence[type[Change]]) -> Delta:
    """What `_named` took apart.

    Raises:
        KeyError, TypeError, ValueError: Tensors are missing, unknown, or do not fit together.
    """
    modules: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        path, _, name = key.partition("/")
        modules.setdefault(path, {})[name] = tensor
    found: list[dict[str, Change]] = []
    for path, named in modules.items():
        try:
            found += [{path: change} for kind in kinds if (change := kind.of_tensors(named)) is not None]
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    delta = Delta(*found)
    if left_over := tensors.keys() ^ _named(delta).keys():
        raise ValueError(f"tensors without their counterpart: {', '.join(sorted(left_over))}")
    return delta


def _checked(delta: Delta) -> Delta:
    """A delta from a file, which it gives back.

    Raises:
        ValueError: A tensor is not float32 or holds NaN or infinity, or two changes of one matrix have different
            shapes.
    """
    for path, tensor in delta.numbers():
        if tensor.dtype != torch.float32:
            raise ValueError(f"a tensor of {path} is {tensor.dtype}, not float32")
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"a tensor of {path} holds NaN or infinity")
    for path, changes in delta.items():
        if len({tuple(change.shape) for change in changes if isinstance(change, WeightChange)}) > 1:
            raise ValueError(f"the changes of {path} are of different matrices")
    return delta


def pack(delta: Delta) -> dict[str, Any]:
    """A delta as a checkpoint holds it: for each kind of change what it says, by module path, on the CPU."""
    delta = delta.to("cpu")
    return {
        kind.kind: {path: change.pack() for path, change in delta.of_kind(kind).items()}
        for kind in in_order([*KINDS, *delta.kinds])
    }


def unpack(packed: dict[str, Any], kinds: Sequence[type[Change]] = KINDS) -> Delta:
    """What `pack` made, also that of older checkpoints, which knew fewer kinds.

    Raises:
        AttributeError, KeyError, TypeError, ValueError: It is something else, or of other `kinds`.
    """
    if not packed or packed.keys() - {kind.kind for kind in kinds}:
        raise ValueError(f"changes of kinds that are not known here: {', '.join(map(str, packed))}")
    by_kind = {kind: packed.get(kind.kind, {}) for kind in kinds}
    return _checked(
        Delta(*({path: kind.unpack(own) for path, own in parts.items()} for kind, parts in by_kind.items()))
    )
