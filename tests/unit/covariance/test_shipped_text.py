"""Text that ships for a model is what the model would write; another model's, or a damaged one, is not used."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kedit.covariance import StatsConfig, corpus, covariances, shipped_text, store
from kedit.errors import KeditError
from kedit.model.lm import LM
from kedit.model.pretrained import ALIASES
from tests.support.tiny_models import tiny_lm

TOKENS = 300


def config(seed: int = 0, tokens: int = TOKENS) -> StatsConfig:
    return StatsConfig(tokens=tokens, seed=seed, sequence_length=64, batch_tokens=128)


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a tiny Llama, in a folder of its own."""
    monkeypatch.setattr(shipped_text, "FOLDER", tmp_path / "texts")
    return ship(tiny_lm("llama"))


def ship(lm: LM) -> Path:
    path = shipped_text.FOLDER / f"tiny-{lm.fingerprint}.safetensors"
    ids = corpus.write_ids(lm, config())
    shipped_text.ship(path, ids, lm, corpus.fingerprint(lm, config()), {"seed": 0})
    return path


def no_writing(*args: object, **kwargs: object) -> None:
    raise AssertionError("the model wrote text")


@pytest.mark.parametrize("path", sorted(shipped_text.FOLDER.glob("*")), ids=lambda path: path.stem)
def test_what_ships_is_of_this_kedit_s_sampling(path):
    """Where sampling is changed, the file must be made again: benchmarks/shipped_corpus.py."""
    tensors, card = store.read(path)
    key = card["key"]
    assert path.name == f"{key['model']}-{key['fingerprint']}.safetensors"
    of_model: Any = SimpleNamespace(fingerprint=key["fingerprint"])
    assert key["corpus"] == corpus.fingerprint(of_model, StatsConfig())
    assert tensors["ids"].shape == (StatsConfig().tokens,)
    assert key["model"] in ALIASES
    assert path.stat().st_size < 100_000


def test_the_same_statistics_without_writing(shipped, tmp_path, monkeypatch, caplog):
    lm = tiny_lm("llama")
    with monkeypatch.context() as without:
        without.setattr(shipped_text, "FOLDER", tmp_path / "none")
        written = covariances(lm, [1], config(), tmp_path / "a")[1]
    monkeypatch.setattr("kedit.forward.sampling.sample", no_writing)
    with caplog.at_level("INFO", "kedit"):
        ships = covariances(lm, [1, 2], config(), tmp_path / "b")
        covariances(lm, [0], config(), tmp_path / "b")
    assert torch.equal(ships[1].mean, written.mean)
    assert sum("shipped with kedit" in message for message in caplog.messages) == 1


@pytest.mark.parametrize("other", ["seed", "tokens", "weights", "dtype", "tokenizer"])
def test_what_it_is_not_of(shipped, other, monkeypatch):
    """No message either: a model for which nothing ships is no fault."""
    lm, asked = tiny_lm("llama"), config()
    if other == "seed":
        asked = config(seed=1)
    elif other == "tokens":
        asked = config(tokens=200)
    elif other == "weights":
        lm = tiny_lm("llama", seed=1)
    elif other == "dtype":
        lm = tiny_lm("llama", dtype=torch.bfloat16)
    else:
        lm = tiny_lm("llama", "bpe_bos")
    assert shipped_text.shipped_ids(lm, corpus.fingerprint(lm, asked), asked.tokens) is None


def test_a_flipped_bit_is_named_and_the_model_writes_itself(shipped, tmp_path, caplog):
    lm = tiny_lm("llama")
    want = corpus.write_ids(lm, config())
    content = bytearray(shipped.read_bytes())
    content[-100] ^= 1
    shipped.write_bytes(content)
    found = corpus.load_ids(lm, config(), tmp_path / "cache")
    assert torch.equal(found, want)
    (message,) = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert message.startswith(f"{shipped} is damaged (its checksum is wrong)")
    assert "delete" not in message


@pytest.mark.parametrize("ids", [torch.zeros(299, dtype=torch.uint16), torch.full((300,), 60_000).to(torch.uint16)])
def test_a_file_without_that_text_is_not_used(shipped, ids, monkeypatch, caplog):
    lm = tiny_lm("llama")
    key = corpus.fingerprint(lm, config())
    shipped_text.ship(shipped, ids, lm, key, {})
    assert shipped_text.shipped_ids(lm, key, TOKENS) is None
    assert "It is not used" in caplog.text


def test_a_large_vocabulary_does_not_fit(shipped, monkeypatch):
    lm = tiny_lm("llama")
    monkeypatch.setattr(LM, "vocab_size", property(lambda self: 70_000))
    with pytest.raises(KeditError, match="65,536"):
        shipped_text.ship(shipped, torch.zeros(3).long(), lm, "", {})
