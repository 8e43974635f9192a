"""`SentenceEncoder`: a transformers folder on this machine that turns texts into vectors. Nothing is downloaded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from kedit.errors import KeditError
from kedit.model.fingerprint import fingerprint
from kedit.model.pretrained import quiet_transformers

BATCH = 64  # texts in one forward pass


class SentenceEncoder:
    """Embeds texts by the mean of the last hidden states, of unit length. It is read when it is first asked.

    Args:
        folder: A Hugging Face folder with safetensors, e.g. of a MiniLM.
        wanted: The fingerprint of its weights, where it must be the one that was used before.
    """

    def __init__(self, folder: str, wanted: str | None = None) -> None:
        self.folder, self._wanted = folder, wanted

    @property
    def fingerprint(self) -> str:
        """Content hash of its weights."""
        return self._wanted or self._parts[2]

    @cached_property
    def _parts(self) -> tuple[Any, Any, str]:
        """Model, tokenizer, and fingerprint of the weights.

        Raises:
            KeditError: The folder is missing or cannot be read, or holds another encoder than it did.
        """
        path = Path(os.path.expanduser(self.folder))
        if not (path / "config.json").is_file():
            raise KeditError(f"model.encoder: {self.folder} is no Hugging Face folder here (it has no config.json)")
        try:
            with quiet_transformers():
                model = AutoModel.from_pretrained(path, local_files_only=True, use_safetensors=True)
                tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise KeditError(f"model.encoder: {self.folder} cannot be loaded: {why}") from None
        model = model.float().eval().requires_grad_(False)
        found = fingerprint(model)
        if self._wanted not in (None, found):
            raise KeditError(f"model.encoder: {self.folder} is not the encoder {self._wanted} that was used before")
        return model, tokenizer, found

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Vectors `[n, d]`, float32 on the CPU, each of unit length."""
        model, tokenizer, _ = self._parts
        longest = min(tokenizer.model_max_length, int(getattr(model.config, "max_position_embeddings", 512)))
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        found: list[Tensor] = []
        for start in range(0, len(texts), BATCH):
            part = list(texts[start : start + BATCH])
            tokens = tokenizer(part, padding=True, truncation=True, max_length=longest, return_tensors="pt")
            with torch.no_grad():
                out = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
            hidden = out.last_hidden_state  # [b, T, d]
            real = tokens["attention_mask"][..., None].to(hidden.dtype)
            mean = (hidden * real).sum(1) / real.sum(1).clamp(min=1)
            found.append(torch.nn.functional.normalize(mean, dim=-1))
        return torch.cat(found)
