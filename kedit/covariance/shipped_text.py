"""Text that a model wrote and that ships with kedit, so that nobody has to wait until it is written again.

A file holds the token ids that sampling gives for `stats.corpus: self` with the default options, on the machine where
`benchmarks/shipped_corpus.py` made it. It stands for one model in one dtype, by the fingerprint of the weights.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kedit.covariance import store
from kedit.errors import KeditError
from kedit.model.lm import LM

log = logging.getLogger(__name__)

FOLDER = Path(__file__).with_name("texts")
KIND = "shipped text"


def shipped_ids(lm: LM, corpus: str, tokens: int) -> Tensor | None:
    """The ids `[tokens]` int64 that ship for this model and this text; None where none do.

    Args:
        lm: The unedited model.
        corpus: Fingerprint of the text: of the weights and of all that sampling depends on.
        tokens: Length of the text.
    """
    wanted = key_of(lm, corpus)
    for path in sorted(FOLDER.glob(f"*-{lm.fingerprint}.safetensors")):
        try:
            return _read(path, wanted, tokens, lm.vocab_size)
        except KeditError as error:
            log.warning("%s. It is not used: %s writes the text itself", _reason(error), lm.name)
    return None


def key_of(lm: LM, corpus: str) -> dict[str, Any]:
    """What a shipped text must be of: the weights, the sampling, and the tokenizer that its ids are of."""
    return {"model": lm.name, "fingerprint": lm.fingerprint, "corpus": corpus, "tokenizer": store.marker(lm)}


def ship(path: Path, ids: Tensor, lm: LM, corpus: str, sampling: Mapping[str, Any]) -> None:
    """Write a file that `shipped_ids` reads.

    Args:
        path: Named `MODEL-FINGERPRINT.safetensors`.
        ids: The text, `[n]`, of a vocabulary of at most 65,536 tokens.
        lm: The model that wrote it.
        corpus: Fingerprint of the text.
        sampling: How it was sampled, for readers.

    Raises:
        KeditError: The vocabulary is too large, or the file cannot be written.
    """
    if lm.vocab_size > 1 << 16:
        raise KeditError(f"{lm.name} has {lm.vocab_size} tokens; a shipped text holds 65,536 different ones at most")
    card = {"kind": KIND, "key": key_of(lm, corpus), "sampling": dict(sampling), "tokens": len(ids)}
    store.write(path, {"ids": ids.to(torch.uint16)}, card)


def _read(path: Path, wanted: Mapping[str, Any], tokens: int, vocabulary: int) -> Tensor | None:
    """Its ids; None where it is of other options of sampling, which is no fault."""
    tensors, card = store.read(path)
    found = card["key"]
    if card.get("kind") != KIND or any(found.get(name) != wanted[name] for name in wanted if name != "model"):
        return None
    ids = tensors.get("ids")
    if ids is None or ids.dtype != torch.uint16 or ids.ndim != 1 or len(ids) != tokens:
        raise KeditError(f"{path} holds no text of {tokens} tokens")
    text = ids.long()
    if not bool((text < vocabulary).all()):
        raise KeditError(f"{path} holds tokens that the model does not have")
    return text


def _reason(error: KeditError) -> str:
    """Without the advice of the cache, which writes its files again."""
    return str(error).partition("; delete it")[0]
