"""How C is added up, in what products, and what of it is kept in a file."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.speed.dispatched import Dispatched
from kedit.covariance import Covariance, StatsConfig, collect, covariances, load_covariance
from kedit.covariance import corpus as corpus_module
from kedit.covariance.collect import default_batch_tokens
from kedit.covariance.corpus import load_ids
from kedit.covariance.matrix import packed, unpacked
from kedit.covariance.moments import SecondMoment, exact_products, float32_products
from kedit.covariance.store import save_covariance
from kedit.errors import KeditError
from tests.support.tiny_models import tiny_lm

CPU = torch.device("cpu")


def keys(dtype: torch.dtype, device: str) -> Any:
    return SimpleNamespace(dtype=dtype, device=torch.device(device))


def test_half_keys_are_multiplied_by_tf32_on_a_gpu_alone() -> None:
    setting = torch.get_float32_matmul_precision()
    with float32_products("highest"):  # as `collect` runs the model
        for dtype, device, wanted in (
            (torch.bfloat16, "cuda", "high"),
            (torch.float16, "cuda", "high"),
            (torch.float32, "cuda", "highest"),
            (torch.bfloat16, "cpu", "highest"),
        ):
            with exact_products(keys(dtype, device)):
                assert torch.get_float32_matmul_precision() == wanted
            assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_float32_matmul_precision() == setting


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tf32_holds_half_numbers_exactly(dtype: torch.dtype) -> None:
    """TF32 keeps the 10 upper bits of a float32's fraction: those below are zero in every half number."""
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype).float()
    bits = every[every.isfinite()].view(torch.int32)
    assert len(bits) > 60_000
    assert not bool((bits & ((1 << 13) - 1)).any())


def test_the_sums_of_before_stay_where_the_sums_are() -> None:
    moment = SecondMoment(20, torch.float32, CPU)
    moment.add(torch.randn(30, 20))
    kept, then = moment.copy(), moment.mean()
    assert {strip.device for strip in kept.strips} == {strip.device for strip in moment.strips}
    moment.add(torch.randn(30, 20))
    assert torch.equal(kept.mean(), then)
    assert kept.count == 30


def test_a_batch_waits_once_at_most_and_has_as_many_operations_whatever_its_size() -> None:
    lm = tiny_lm("llama")
    counts = []
    for batch in (128, 256):
        seen = []
        for batches in (9, 17):  # measured after an eighth, a quarter, half and all: as often in both
            with Dispatched() as count:
                collect(lm, [0, 2], torch.arange(batches * batch) % 300, 64, batch)
            seen.append((count.n, count.waits.total()))
        (less, waits), (more, also) = seen
        assert also - waits <= 8  # transformers asks whether a row holds several texts, before the batch begins
        counts.append((more - less) / 8)
    assert counts[0] == counts[1]


def test_batches_by_device() -> None:
    assert default_batch_tokens(CPU) == 4096 < default_batch_tokens(torch.device("cuda"))
    assert StatsConfig().batch_tokens is None
    with pytest.raises(KeditError, match=r"stats.batch_tokens is 0"):
        StatsConfig(batch_tokens=0)
    lm, ids = tiny_lm("llama"), torch.arange(500)
    default, same = (collect(lm, [1], ids, 64, batch).moments[1].mean() for batch in (None, 4096))
    assert torch.equal(default, same)


def test_documents_tokenised_together_are_those_tokenised_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny_lm("llama")
    texts = [f"Document {i} says that {'Rome ' * (i % 7)}is in Italy." for i in range(60)]
    path = tmp_path / "docs.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    config = StatsConfig(corpus=str(path), tokens=300)
    calls: list[int] = []
    blocks = corpus_module._block

    def spy(pieces: Any, size: int) -> Any:
        block = blocks(pieces, size)
        calls.append(len(block))
        return block

    monkeypatch.setattr(corpus_module, "_block", spy)
    together = load_ids(lm, config, tmp_path)
    assert max(calls) > 1
    assert sum(calls) < len(texts)  # no more than are needed
    monkeypatch.setattr(corpus_module, "BLOCK", 1)
    assert torch.equal(load_ids(lm, config, tmp_path), together)
    assert len(together) == 300


def test_a_file_holds_half_of_c_and_gives_all_of_it(tmp_path: Path) -> None:
    lm = tiny_lm("llama")
    text = tmp_path / "text.txt"
    text.write_text("The capital of Italy is Rome. " * 100, encoding="utf-8")
    config = StatsConfig(corpus=str(text), tokens=600, sequence_length=64)
    made = covariances(lm, [1], config, tmp_path)[1]
    read = covariances(lm, [1], config, tmp_path)[1]
    assert torch.equal(made.mean, read.mean)
    assert made.mean.dtype == read.mean.dtype == torch.float32
    (path,) = [path for path in tmp_path.rglob("*.safetensors") if path.name.startswith("model.layers.1")]
    (name, kept), *more = load_file(path).items()
    d = len(made.mean)
    assert (name, len(kept), more) == ("upper", d * (d + 1) // 2, [])
    whole = tmp_path / "older.safetensors"  # as kedit wrote it before
    card = {"kedit": json.dumps({"format": "kedit statistics 1", **made.card, "count": made.count})}
    save_file({"mean": made.mean}, whole, card)
    assert torch.equal(load_covariance(whole, lm, 1).mean, made.mean)


def test_a_matrix_that_is_not_symmetric_is_kept_whole(tmp_path: Path) -> None:
    lm = tiny_lm("llama")
    matrix = torch.randn(80, 80)
    card = {"key": {"fingerprint": lm.fingerprint, "module": lm.arch.path("mlp_out", 1)}}
    save_covariance(tmp_path / "c.safetensors", Covariance(matrix, 7, card=card))
    assert torch.equal(load_covariance(tmp_path / "c.safetensors", lm, 1).mean, matrix)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_packed_and_unpacked(dtype: torch.dtype) -> None:
    half = torch.randn(9, 9, dtype=dtype)
    matrix = half + half.T
    assert torch.equal(packed(matrix), matrix[tuple(torch.triu_indices(9, 9))])
    assert torch.equal(unpacked(packed(matrix), 9), matrix)
