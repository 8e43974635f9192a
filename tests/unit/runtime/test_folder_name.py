"""Folder names of ids: harmless, short, and never shared, on file systems that fold case and accents too."""

from __future__ import annotations

import string
import unicodedata
from pathlib import Path
from random import Random

import pytest

from kedit.runtime.folder_name import RESERVED, folder_name

ODD = ["", ".", "..", "...", "a/b", "../x", "a\0b", "a\nb", " a", "-rf", ".hidden", "a.", "x" * 300, "é" * 300, "CON"]


@pytest.mark.parametrize("name", ["17", "toy_00001", "au", "3.2", "12-2", "北京", "café"])
def test_ordinary_ids_stay_as_they_are(name: str) -> None:
    assert folder_name(name) == name


@pytest.mark.parametrize("name", [*ODD, "con", "nul.txt", "lpt1", "A", "cafe\u0301", "a-0123456789ab", "\ud800"])
def test_others_get_a_hash(name: str, tmp_path: Path) -> None:
    found = folder_name(name)
    assert found != name
    (tmp_path / found).mkdir()
    assert [entry.name for entry in tmp_path.iterdir()] == [found]
    assert found == folder_name(name)


def test_what_is_left_can_be_read() -> None:
    assert folder_name("q/1:a?").startswith("q_1_a-")
    assert folder_name("Q42").startswith("Q42-")
    assert folder_name("..").startswith("id-")


def test_alike_is_not_the_same() -> None:
    names = [*ODD, "a", "A", "a_b", "a b", "A/B", "caf\u00e9", "cafe\u0301", "CAFÉ", folder_name("A"), "x" * 301]
    names += [name.lower() for name in names]
    folded = {unicodedata.normalize("NFC", folder_name(name)).casefold() for name in set(names)}
    assert len(folded) == len(set(names))


def test_any_id_is_safe() -> None:
    random = Random(0)
    letters = [*string.ascii_letters, *"./-_ \0\n", *map(chr, range(0x20, 0x3000, 7)), "\ud800", "\U0001f600"]
    for _ in range(2000):
        check("".join(random.choices(letters, k=random.randrange(120))))


def check(name: str) -> None:
    found = folder_name(name)
    assert 0 < len(found.encode()) <= 100
    assert "/" not in found
    assert "\0" not in found
    assert found.isprintable()
    assert found[0] not in ".-"
    assert found[-1] not in ". "
    assert not RESERVED.fullmatch(found.lower())
    assert not (set('<>:"\\|?*') & set(found))
