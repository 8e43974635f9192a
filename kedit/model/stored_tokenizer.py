"""The tokenizer of a model that is already on this machine, for reading tokens: nothing is loaded or fetched besides.

Without PyTorch and transformers, so that it costs a fraction of a second.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from tokenizers import Tokenizer

from kedit.runtime.cache import cache_dir

FILE = "tokenizer.json"


def stored_decoder(name: str) -> Callable[[Sequence[int]], str] | None:
    """What turns token ids into text, as the model's tokenizer does.

    Args:
        name: Of the model, as `lm.name` has it.

    Returns:
        The function, which gives `?` for ids that the tokenizer does not know; None where no tokenizer of that name is
        here, or its file cannot be read.
    """
    for path in _places(name):
        if path.is_file():
            try:
                tokenizer = Tokenizer.from_file(str(path))
            except Exception:  # noqa: BLE001 (the library raises Exception itself)
                return None
            return lambda ids: tokenizer.decode(list(ids), skip_special_tokens=False) or "?"
    return None


def _places(name: str) -> list[Path]:
    """Where its file may be: a folder, kedit's cache of aliases, the hub's cache."""
    places = [Path(os.path.expanduser(name)) / FILE]
    if "/" not in name:
        places += sorted((cache_dir() / "models").glob(f"{glob.escape(name)}-????????/{FILE}"))
    try:
        stored = try_to_load_from_cache(name, FILE)
    except HFValidationError:
        return places
    return [*places, Path(stored)] if isinstance(stored, str) else places
