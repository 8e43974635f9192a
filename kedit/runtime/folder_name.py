"""A folder name for any id: safe on every file system, short, and of no other id."""

from __future__ import annotations

import hashlib
import re
import unicodedata

LONGEST = 64  # bytes of a name that stays as it is
STEM = 40  # bytes of an id that are left readable in a name with a hash
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?")  # devices of Windows, with any ending
HASHED = re.compile(r".*-[0-9a-f]{12}", re.DOTALL)


def folder_name(name: str) -> str:
    """An id as a folder name: itself where that is harmless, else what is harmless of it and a hash of the whole.

    Harmless are lower-case letters and digits of any script, and `.`, `_` and `-` inside. Upper case gets a hash as
    some file systems do not tell `A` from `a`; so does what looks hashed, so that two ids never share a name.
    """
    if _harmless(name):
        return name
    readable = "".join(c if c.isalnum() or c in "_-" else "_" for c in unicodedata.normalize("NFC", name[:STEM]))
    stem = readable.encode(errors="replace")[:STEM].decode(errors="ignore").strip("_-") or "id"
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:12]
    return f"{stem}-{digest}"


def _harmless(name: str) -> bool:
    return (
        bool(name)
        and all(c.isalnum() or c in "._-" for c in name)
        and name[0] not in ".-"
        and name[-1] != "."
        and name == unicodedata.normalize("NFC", name).casefold()
        and len(name.encode()) <= LONGEST
        and not RESERVED.fullmatch(name)
        and not HASHED.fullmatch(name)
    )
