"""Changes of files as bytes: what disks, transfers and editors do to them."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

JUNK = (
    b"\x00",
    b"\xff",
    b"\xc3",
    b"\xed\xa0\x80",
    b"\r",
    b"\n",
    b"\t",
    b" ",
    b"}",
    b"]",
    b'"',
    b"\\u0000",
    b"PK\x03\x04",
    b"\x80\x02",
)


def damaged(data: bytes, chance: Random, text: bool = False) -> tuple[bytes, str]:
    """Other bytes than `data` has, and what was done; of a text also in the ways of editors."""
    kinds = [_flip, _flip, _flip, _truncate, _zero, _swap, _insert, _append, _drop, _empty]
    if text:
        kinds += [_bom, _crlf, _utf16, _latin, _lines, _lines]
    for _ in range(20):
        new, change = chance.choice(kinds)(data, chance)
        if new != data:
            return new, change
    return data + b"\x00", "a zero appended"


def _flip(data: bytes, chance: Random) -> tuple[bytes, str]:
    new = bytearray(data)
    places = []
    near = chance.random() < 0.4  # headers are there
    for _ in range(chance.choice([1, 1, 1, 2, 8])):
        if new:
            place = chance.randrange(min(len(new), 400) if near else len(new))
            bit = chance.randrange(8)
            new[place] ^= 1 << bit
            places.append(f"{place}.{bit}")
    return bytes(new), f"bits flipped: {', '.join(places)}"


def _range(data: bytes, chance: Random) -> tuple[int, int]:
    start = chance.randrange(len(data) + 1)
    return start, min(len(data), start + chance.choice([1, 4, 64, 4096]))


def _truncate(data: bytes, chance: Random) -> tuple[bytes, str]:
    size = chance.choice([chance.randrange(len(data) + 1), max(0, len(data) - chance.randrange(1, 9))])
    return data[:size], f"truncated to {size} of {len(data)} bytes"


def _zero(data: bytes, chance: Random) -> tuple[bytes, str]:
    start, end = _range(data, chance)
    return data[:start] + bytes(end - start) + data[end:], f"bytes {start} to {end} are zero"


def _swap(data: bytes, chance: Random) -> tuple[bytes, str]:
    size = chance.choice([1, 4, 64])
    one, other = sorted(chance.randrange(len(data) + 1) for _ in range(2))
    one = min(one, max(0, other - size))
    parts = (
        data[:one],
        data[other : other + size],
        data[one + size : other],
        data[one : one + size],
        data[other + size :],
    )
    return b"".join(parts), f"{size} bytes at {one} and {other} swapped"


def _insert(data: bytes, chance: Random) -> tuple[bytes, str]:
    place, junk = chance.randrange(len(data) + 1), chance.choice(JUNK)
    return data[:place] + junk + data[place:], f"{junk!r} inserted at {place}"


def _append(data: bytes, chance: Random) -> tuple[bytes, str]:
    junk = chance.choice([chance.choice(JUNK), bytes(1000), data])
    return data + junk, f"{len(junk)} bytes appended"


def _drop(data: bytes, chance: Random) -> tuple[bytes, str]:
    start, end = _range(data, chance)
    return data[:start] + data[end:], f"bytes {start} to {end} are gone"


def _empty(data: bytes, chance: Random) -> tuple[bytes, str]:
    return chance.choice([(b"", "emptied"), (b"\n \n", "blank"), (bytes(len(data)), "all zero"), (b"null\n", "null")])


def _bom(data: bytes, chance: Random) -> tuple[bytes, str]:
    return b"\xef\xbb\xbf" * chance.choice([1, 2]) + data, "BOM before it"


def _crlf(data: bytes, chance: Random) -> tuple[bytes, str]:
    end = chance.choice([b"\r\n", b"\r", b"\n\n", b"\n\r\n"])
    return data.replace(b"\n", end), f"lines end in {end!r}"


def _utf16(data: bytes, chance: Random) -> tuple[bytes, str]:
    form = chance.choice(["utf-16", "utf-16-le", "utf-32", "utf-7"])
    return data.decode("utf-8", "replace").encode(form), f"as {form}"


def _latin(data: bytes, chance: Random) -> tuple[bytes, str]:
    return (data.decode("utf-8", "replace") + "\u00e9").encode("latin-1", "replace"), "as Latin-1"


def _lines(data: bytes, chance: Random) -> tuple[bytes, str]:
    lines = data.split(b"\n")
    place = chance.randrange(len(lines))

    def shuffled() -> str:
        chance.shuffle(lines)
        return "lines shuffled"

    def doubled() -> str:
        lines.insert(place, lines[place])
        return f"line {place} doubled"

    def lost() -> str:
        del lines[place]
        return f"line {place} lost"

    def cut() -> str:
        lines[place] = lines[place][: chance.randrange(len(lines[place]) + 1)]
        return f"line {place} cut"

    kinds: list[Callable[[], str]] = [shuffled, doubled, lost, cut]
    change = chance.choice(kinds)()
    return b"\n".join(lines), change
