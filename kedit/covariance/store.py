"""Files of the statistics: safetensors whose header carries a JSON card, written whole or not at all.

A card holds the key of what is inside (which weights, module, text, how many tokens). A file whose key is
not the one wanted is refused by name, never used, and so is one whose checksum is wrong; nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kedit.covariance.matrix import RIDGE, Covariance, packed, unpacked
from kedit.covariance.null_space import Spectrum
from kedit.errors import KeditError, shown
from kedit.model.architecture import check_layers, weight
from kedit.model.lm import LM
from kedit.runtime import checksum
from kedit.runtime.file_modes import as_umask

FORMAT = "kedit statistics 2"
UNCHECKED = "kedit statistics 1"  # of an older kedit: without a checksum, used all the same, as it may have taken hours
VARIED = "In 1984 Zoë paid 3.50 €;  don't RETURN it_to\n\n\tΑθήνα, Москва or 東京's (naïve) café... 🙂 unbelievably!"

SPECTRUM = "eigenvectors of the statistics of %s, so that an edit leaves other texts alone: once, kept in the cache"

log = logging.getLogger(__name__)


def write(path: Path, tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> None:
    """Write beside `path`, then rename: a kill or a full disk leaves the old file or none.

    Raises:
        KeditError: The folder cannot be written to.
    """
    scratch = path.with_name(f"{path.name}.{os.getpid()}.part")
    text = json.dumps({"format": FORMAT, **card})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
        save_file(kept, scratch, {"kedit": text, "checksum": _sum(text, kept)})
        as_umask(scratch)
        os.replace(scratch, path)
    except (OSError, SafetensorError) as error:
        raise KeditError(f"{path}: cannot be written ({error}); set KEDIT_CACHE to a folder with room") from None
    finally:
        scratch.unlink(missing_ok=True)


def read(path: Path, device: torch.device | str = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and card of a file.

    Raises:
        KeditError: The file is missing, truncated, damaged or not one of kedit's.
    """
    if not path.is_file():
        raise KeditError(f"there is no statistics file {path}")
    try:
        with safe_open(path, "pt", device=str(device)) as file:
            header = file.metadata() or {}
            text = header.get("kedit", "{}")
            card = json.loads(text)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, *checksum.UNREADABLE) as error:
        why = checksum.first_line(error)
        raise KeditError(f"{path} is truncated or damaged ({why}); delete it, it will be made again") from None
    known = card.get("format") if isinstance(card, dict) else None
    if known not in (FORMAT, UNCHECKED) or not isinstance(card.get("key"), dict):
        raise KeditError(f"{path} is not a statistics file of this kedit ({FORMAT}); delete it or give another")
    if known == FORMAT or "checksum" in header:
        if header.get("checksum") != _sum(text, tensors):
            raise KeditError(f"{path} is damaged (its checksum is wrong); delete it, it will be made again")
    else:
        log.warning("%s was made by an older kedit and holds no checksum: its numbers are not checked", path)
    if not sound_convergence(card.get("convergence", [])):
        raise KeditError(f"{path} is damaged (its convergence); delete it, it will be made again")
    return tensors, card


def sound_convergence(found: Any) -> bool:
    """Whether it is what `collect` measures of a layer: figures by name, or such lists of several layers."""
    if not isinstance(found, list):
        return False
    if all(isinstance(mark, list) for mark in found):
        return all(sound_convergence(marks) for marks in found)
    return all(
        isinstance(mark, dict)
        and isinstance(mark.get("tokens"), int | float)
        and all(value is None or isinstance(value, int | float) for value in mark.values())
        and ("unseen" not in mark or isinstance(mark.get("change"), int | float))
        for mark in found
    )


def _sum(card: str, tensors: Mapping[str, Tensor]) -> str:
    return checksum.of_content([card, {name: tensors[name] for name in sorted(tensors)}])


def check(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse a file whose key differs from the one wanted.

    Raises:
        KeditError: Names both models where they differ, else every entry that does.
    """
    if found.get("fingerprint") != wanted["fingerprint"]:
        raise KeditError(
            f"{path} belongs to another model: it was made from {_model(found)}, this is {_model(wanted)}. "
            "Delete it or give the right file"
        )
    names = [name for name in wanted if name != "model" and found.get(name) != wanted[name]]
    if names:
        differs = ", ".join(f"{name} {_word(found.get(name))} instead of {_word(wanted[name])}" for name in names)
        raise KeditError(f"{path} is not what is wanted: {differs}. Delete it or give the right file")


def _model(key: Mapping[str, Any]) -> str:
    model, weights = key.get("model"), key.get("fingerprint")
    return f"{_word(model, 'an unknown model')} (weights {_word(weights, 'unknown')})"


def _word(value: Any, otherwise: str = "None") -> str:
    return otherwise if value is None else value if isinstance(value, str) and len(value) <= 80 else shown(value)


def folder(cache: Path, lm: LM) -> Path:
    """Where the statistics of a model lie: readable name and fingerprint of the weights.

    Weights and tokenizer count, the name does not: what was kept under another name is found. A folder says of which
    tokenizer it is by the empty file `marker`; one of before that has none, and is found under its name alone.
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(lm.name).name).strip("-.") or "model"
    own, mark = cache / "stats" / f"{name}-{lm.fingerprint}", marker(lm)
    for known in (own, *sorted(own.parent.glob(f"*-{lm.fingerprint}*"))):
        if (known / mark).exists():
            return known
    return own.with_name(f"{own.name}-{mark}") if any(own.glob("tokenizer-*")) else own


def marker(lm: LM) -> str:
    """Stands for what the tokenizer makes of texts: two that treat a varied text alike have the same."""
    made = [lm.tokenizer(VARIED)["input_ids"], lm.tokenizer.bos_token_id, lm.tokenizer.eos_token_id]
    return f"tokenizer-{hashlib.sha256(json.dumps(made).encode()).hexdigest()[:8]}"


def layer_path(base: Path, key: Mapping[str, Any]) -> Path:
    """File of one layer: everything in its key but the model is in the name, readable or as a digest."""
    length = f"{key['tokens']}x{key['sequence_length']}"
    return base / f"{key['corpus'][:8]}-{length}-{key['dtype']}" / f"{key['module']}.safetensors"


def save_covariance(path: Path, cov: Covariance) -> None:
    """Write one layer, the upper half of a symmetric C, which is all of it; `cov.card` must hold its key."""
    symmetric = torch.equal(cov.mean, cov.mean.T)
    content = {"upper": packed(cov.mean)} if symmetric else {"mean": cov.mean}
    write(path, content, {"kind": "covariance", **cov.card, "count": cov.count})


def load_covariance(path: str | Path, lm: LM, layer: int, ridge: float = RIDGE) -> Covariance:
    """Read a file that the user names, whatever its text, for `layer` of this very model.

    Args:
        path: A file that `covariances` wrote.
        lm: The unedited model.
        layer: Its layer.
        ridge: See `Covariance`.

    Raises:
        KeditError: The file is missing or damaged, or belongs to other weights or another layer.
    """
    check_layers(lm.arch, [layer], "layer")
    wanted = {"model": lm.name, "fingerprint": lm.fingerprint, "module": lm.arch.path("mlp_out", layer)}
    return read_covariance(Path(path), wanted, key_width(lm, layer), ridge)


def read_covariance(path: Path, wanted: Mapping[str, Any], d_in: int, ridge: float) -> Covariance:
    """Read one layer's file and hold it against the key `wanted`, or the part of one that is known."""
    tensors, card = read(path)
    check(path, card["key"], wanted)
    mean, upper, count = tensors.get("mean"), tensors.get("upper"), card.get("count")
    if upper is not None and tuple(upper.shape) == (d_in * (d_in + 1) // 2,):
        mean = unpacked(upper, d_in)
    whole = mean is not None and tuple(mean.shape) == (d_in, d_in) and mean.dtype in (torch.float32, torch.float64)
    if mean is None or not whole or type(count) is not int or count < 1:
        raise KeditError(f"{path} holds no covariance of width {d_in}; delete it, it will be made again")
    if not bool(mean.isfinite().all()):
        raise KeditError(f"{path} holds NaN or infinity; delete it, it will be made again")
    return Covariance(mean, count, ridge, card, partial(spectrum_beside, path, card["key"]))


def spectrum_beside(path: Path, key: Mapping[str, Any], mean: Tensor) -> Spectrum:
    """Eigenvalues and eigenvectors of the covariance in `path`, from the file beside it; computed where there is none.

    Other processes that need the same wait for the one that computes it.

    Args:
        path: A layer's file. The one beside it ends in `.eigenvectors.safetensors`.
        key: The layer's key.
        mean: C, on the device where it should be computed.

    Raises:
        KeditError: The file beside it is damaged, of another key or of another C, or cannot be written.
    """
    file = path.with_suffix(f".eigenvectors{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{file}.lock")
        with lock:
            if file.exists():
                return _read_spectrum(file, key, mean)
            log.info(SPECTRUM, key["module"])
            found = Spectrum.of(mean)
            card = {"kind": "eigenvectors", "key": dict(key), "of": checksum.of_content(mean)}
            write(file, {"values": found.values, "vectors": found.vectors}, card)
            return found
    except OSError as error:
        raise KeditError(f"{file}: cannot be written ({error}); set KEDIT_CACHE to another folder") from None


def _read_spectrum(file: Path, key: Mapping[str, Any], mean: Tensor) -> Spectrum:
    tensors, card = read(file)
    check(file, card["key"], key)
    if card.get("of") != checksum.of_content(mean):
        raise KeditError(f"{file} is of another covariance than the one beside it; delete it, it will be made again")
    values, vectors, d_in = tensors.get("values"), tensors.get("vectors"), len(mean)
    shapes = [None if t is None or t.dtype != torch.float64 else tuple(t.shape) for t in (values, vectors)]
    if values is None or vectors is None or shapes != [(d_in,), (d_in, d_in)]:
        raise KeditError(f"{file} holds no eigenvectors of width {d_in}; delete it, it will be made again")
    if not bool(values.isfinite().all() and vectors.isfinite().all()):
        raise KeditError(f"{file} holds NaN or infinity; delete it, it will be made again")
    return Spectrum(values, vectors).to(mean.device)


def key_width(lm: LM, layer: int) -> int:
    """d_in of a layer's keys."""
    return weight(lm.arch.module(lm.model, "mlp_out", layer)).shape[1]
