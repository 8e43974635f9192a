"""Checksums of what kedit writes and reads again, so that a flipped bit is named and never applied.

SHA-256 of a file's bytes, of tensors, or of nested content. Where they are kept: docs/design.md, "Checksums".
"""

from __future__ import annotations

import hashlib
import json
import lzma
import pickle
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

UNREADABLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    lzma.LZMAError,
    pickle.PickleError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
"""What readers of zip files and of pickles raise when they are given damaged bytes."""

_PLAIN = (str, bytes, int, float, complex, type(None), torch.dtype, torch.device)


def of_file(path: Path) -> str:
    """That of a file's bytes, as `sha256sum` prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_content(value: Any) -> str:
    """That of tensors, numbers and texts, and of lists, tuples and dicts of them; the same after saving and loading."""
    digest = hashlib.sha256()
    _feed(digest, value)
    return digest.hexdigest()


def of_json(value: Mapping[str, Any]) -> str:
    """That of JSON, whatever its layout and the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def zip_damage(path: Path) -> str | None:
    """What a zip file is instead of whole, by the CRC-32 of every record of it; None where it is whole.

    Files of `torch.save` are such: this tells before anything of them is unpickled, which does not look at the CRCs.
    """
    try:
        if not zipfile.is_zipfile(path):
            return "truncated or no checkpoint"
        with zipfile.ZipFile(path) as file:
            bad = file.testzip()
    except UNREADABLE as error:
        return f"damaged: {first_line(error)}"
    return None if bad is None else f"damaged: the checksum of {bad[:80]!r} is wrong"


def first_line(error: BaseException) -> str:
    """The first line of an error's text, of 300 characters at most, or its kind where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def _feed(digest: Any, value: Any) -> None:
    """Types and lengths are fed too, so that different contents are never the same bytes."""
    if isinstance(value, Tensor):
        digest.update(f"tensor {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    elif isinstance(value, Mapping):
        digest.update(f"dict {len(value)} ".encode())
        for key, own in value.items():
            _feed(digest, key)
            _feed(digest, own)
    elif isinstance(value, list | tuple):
        digest.update(f"{'list' if isinstance(value, list) else 'tuple'} {len(value)} ".encode())
        for own in value:
            _feed(digest, own)
    else:
        data = repr(value).encode("utf-8", "surrogatepass") if isinstance(value, _PLAIN) else b""
        digest.update(f"{type(value).__name__} {len(data)} ".encode() + data)
