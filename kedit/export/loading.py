"""Loading what was kept: a merged folder, a folder with a delta beside its model, or a delta of a named model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from kedit.delta.apply import Weights
from kedit.delta.delta import Delta
from kedit.delta.prompts import prompt_for
from kedit.delta.serialization import CARD, TENSORS, load_delta
from kedit.errors import KeditError
from kedit.export.folder import RECORD
from kedit.export.requests import check_same_model
from kedit.forward.binding import load_lm, wrap_lm
from kedit.model.lm import LM, LMConfig
from kedit.model.loading import read_model
from kedit.runtime import checksum

CARRIED = "kedit"
"""Subfolder of a model folder with a delta that is no weight."""


class EditedLM(LM):
    """A model that carries an edit for good: generating with `.model` uses it.

    Texts before prompts are no part of a model: ask for the whole prompt with `prompt`.

    Args:
        lm: The unedited model; the delta is put into it and stays.
        delta: What it carries; None where it is in the weights already.
        card: What was edited.
        checksum: Of the delta, for the fingerprint.

    Raises:
        KeditError: The delta does not fit the model.
    """

    def __init__(self, lm: LM, delta: Delta | None, card: dict[str, Any], checksum: str = "") -> None:
        super().__init__(lm.model, lm.tokenizer, lm.name)
        self.delta, self.card = delta, card
        self._edited: str | None = None
        if delta is not None:
            base = lm.fingerprint
            Weights(lm.model).add(delta)
            self._edited = hashlib.sha256(f"{base} {checksum}".encode()).hexdigest()[:20]

    @property
    def fingerprint(self) -> str:  # type: ignore[override]
        """Hash of the weights, and of what they carry: never that of the unedited model."""
        return super().fingerprint if self._edited is None else self._edited

    def prompt(self, text: str, room: int = 64) -> str:
        """A prompt, with the facts that the edit puts before it (Retrieval, IKE); unchanged where there are none.

        Args:
            text: The prompt.
            room: Tokens that must have a place behind it.
        """
        return prompt_for(self, None, -1, text, room)


def load_edited(folder: Path | str, model: str | None = None, device: str | torch.device = "cpu") -> EditedLM:
    """Load an edited model that kedit kept.

    Args:
        folder: What `export_hf` wrote, or a delta folder (`save_delta`, `deltas/CASE_ID` of a run).
        model: Of a delta folder, the model that it changes: an alias, a folder or a hub id; None: the one that its card
            names.
        device: Where the model is put.

    Returns:
        The edited model, in the type in which it was written; of a delta folder, in which it was edited.

    Raises:
        KeditError: The folder is none of these or damaged, or the delta's model is not to be had.
    """
    folder = Path(folder)
    if (folder / CARD).is_file() and (folder / TENSORS).is_file():
        delta, card = load_delta(folder)
        lm = base_model(folder, card, model, device)
        check_same_model(card, lm)
        return EditedLM(lm, delta, card, checksum.of_file(folder / TENSORS))
    if not (folder / "config.json").is_file():
        raise KeditError(f"{folder}: {_instead(folder)}")
    if model is not None:
        raise KeditError(f"model: {folder} is a whole model; leave the option out")
    weights, tokenizer = read_model(LMConfig(str(folder), dtype=_dtype(folder)))
    lm = wrap_lm(weights.to(device), tokenizer, str(folder))  # type: ignore[arg-type]
    if (beside := folder / CARRIED).is_dir():
        delta, card = load_delta(beside, lm)
        return EditedLM(lm, delta, card, checksum.of_file(beside / TENSORS))
    return EditedLM(lm, None, record_of(folder).get("card", {}))


def base_model(
    folder: Path, card: Mapping[str, Any], model: str | None = None, device: str | torch.device = "cpu"
) -> LM:
    """The model that a delta changes, unedited.

    Args:
        folder: Of the delta, for messages.
        card: The delta's card.
        model: Its name here; None: the one that the card names.
        device: Where it is put.

    Raises:
        KeditError: There is no such model here.
    """
    name, dtype = model or card.get("model"), card.get("dtype", "float32")
    if not isinstance(name, str) or not name or dtype not in ("float32", "bfloat16", "float16"):
        raise KeditError(
            f"{folder}: its card names no model; say which it changes (--model NAME, load_edited(model=...))"
        )
    try:
        return load_lm(LMConfig(name, dtype=dtype), device)
    except KeditError as error:
        if model is not None:
            raise KeditError(str(error).replace("lm.name:", "model:", 1)) from None
        raise KeditError(
            f"{folder}: its model is not to be had here: {error}\n"
            "Say where it is: --model NAME, or load_edited(folder, model=NAME)"
        ) from None


def _instead(folder: Path) -> str:
    if not folder.is_dir():
        return "there is no such folder"
    if (folder / "adapter_config.json").is_file():
        return "a PEFT adapter: load it with PeftModel.from_pretrained(base, folder)"
    return "neither a model folder nor a delta that kedit saved"


def _dtype(folder: Path) -> Any:
    """The type of the weights in a model folder, by its config."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        found = config.get("dtype") or config.get("torch_dtype")
    except (OSError, ValueError, AttributeError) as error:
        raise KeditError(f"{folder}: its config.json cannot be read ({checksum.first_line(error)})") from None
    return found if found in ("float32", "bfloat16", "float16") else "float32"


def record_of(folder: Path) -> dict[str, Any]:
    """What was exported, as `edit_card.json` says it; nothing where the folder is not of kedit.

    Raises:
        KeditError: The file is damaged.
    """
    file = folder / RECORD
    if not file.is_file():
        return {}
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise KeditError(f"{folder}: {RECORD} is damaged ({checksum.first_line(error)})") from None
    return record if isinstance(record, dict) else {}
