"""Text and JSON files that a user names: opened with care, decoded strictly, refused in one line.

Only regular files are read: a pipe without a writer would hang, `/dev/zero` never ends. JSON that Python would accept
and nobody can use (NaN, a lone surrogate, a field written twice, a list in a thousand lists) is refused.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from pathlib import Path
from typing import Any

from kedit.errors import KeditError, shown

DEEPEST = 64  # levels of lists and objects; nobody writes more, and copying them would overflow the stack
PACKED = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}

DEEP = f"lists and objects are nested more than {DEEPEST} deep"
_SURROGATE = re.compile("[\ud800-\udfff]")


def regular_file(name: str | Path, wanted: str) -> Path:
    """The path of a file that can be read to its end, `~` expanded.

    Args:
        name: What the user wrote.
        wanted: What to give instead, e.g. `"a .json or .jsonl file"`.

    Raises:
        KeditError: There is no such file, it is a folder, a pipe or a device, or the name cannot be one.
    """
    if _SURROGATE.search(str(name)):
        raise KeditError(f"{shown(str(name))}: its name is no UTF-8 text; rename it")
    said = str(name) if len(str(name)) <= 200 and str(name).isprintable() else shown(str(name))
    try:
        path = Path(os.path.expanduser(name))  # Path.expanduser fails where there is no such user
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise KeditError(f"{said}: no such file; paths are relative to the current folder") from None
    except (OSError, ValueError) as error:  # too long, a loop of links, below a file, with a NUL
        raise KeditError(f"{said}: cannot be read ({_why(error)}); give {wanted}") from None
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device, no regular file"
        raise KeditError(f"{said}: cannot be read (it is {kind}); give {wanted}")
    return path


def read_text(name: str | Path, wanted: str) -> str:
    """All of a UTF-8 file, without a byte order mark.

    Args:
        name: What the user wrote.
        wanted: As in `regular_file`.

    Raises:
        KeditError: As `regular_file`; a compressed file, another encoding.
    """
    path = regular_file(name, wanted)
    try:
        data = path.read_bytes()
        return data.decode("utf-8-sig")
    except OSError as error:
        raise KeditError(f"{path}: cannot be read ({_why(error)}); give {wanted}") from None
    except UnicodeDecodeError as error:
        packed = next((name for magic, name in PACKED.items() if data.startswith(magic)), None)
        if packed is not None:
            raise KeditError(f"{path}: is compressed ({packed}); unpack it first") from None
        utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
        hint = " but most likely UTF-16" if utf16 else f" (byte {error.start})"
        raise KeditError(f"{path}: is not UTF-8 text{hint}; convert it first") from None


def strict_json(text: str) -> Any:
    """What a JSON text says; whether it can be used is for `flaw_of` to say.

    Raises:
        json.JSONDecodeError: It is no JSON.
        ValueError: It is, but too deep, with a field written twice, or with a number that is too long.
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError(DEEP) from None
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        if "integer string conversion" in str(error):
            raise ValueError("a number has too many digits; write it as text") from None
        raise


def flaw_of(value: Any) -> str | None:
    """What is wrong with a value that was read from JSON; None where nothing is."""
    level = [value]
    for _ in range(DEEPEST):
        inner: list[Any] = []
        for one in level:
            if isinstance(one, str):
                if _SURROGATE.search(one):
                    return f"{shown(one, 40)} holds half a character (a lone surrogate); write the whole one"
            elif isinstance(one, list):
                inner += one
            elif isinstance(one, dict):
                inner += one
                inner += one.values()
            elif isinstance(one, float) and not math.isfinite(one):
                return f"{one} is no number; write null, or leave the field out"
        if not inner:
            return None
        level = inner
    return DEEP


def _why(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"field {shown(twice, 40)} is written twice in one object")
    return made
