"""Key statistics against a naive float64 reference, their cache, and resuming."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from kedit.covariance import Covariance, StatsConfig, collect, covariances, load_covariance, store, woodbury
from kedit.covariance.corpus import load_ids, sampled
from kedit.errors import KeditError
from kedit.forward.sampling import sample
from kedit.model.architecture import weight
from tests.support.tiny_models import TEXT, save_tiny, tiny_lm

D_FF = 80


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n".join(f"{i}. {line}" for i in range(3) for line in TEXT.splitlines()))
    return path


def config(text: Path | str, tokens: int = 900, **kwargs) -> StatsConfig:
    return StatsConfig(**{"corpus": str(text), "tokens": tokens, "sequence_length": 64, "batch_tokens": 128} | kwargs)


def naive(lm, ids: torch.Tensor, layer: int, length: int) -> torch.Tensor:
    """Full forward of one sequence at a time; float64 sum of outer products."""
    keys: list[torch.Tensor] = []
    module = lm.arch.module(lm.model, "mlp_out", layer)
    handle = module.register_forward_hook(lambda m, args, out: keys.append(args[0].reshape(-1, D_FF).double()))
    with torch.no_grad():
        for row in ids.split(length):
            lm.model(input_ids=row.unsqueeze(0))
    handle.remove()
    every = torch.cat(keys)
    assert len(every) == len(ids)
    return torch.einsum("ti,tj->ij", every, every) / len(every)


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_equals_naive_float64(family, text, tmp_path):
    lm = tiny_lm(family)
    ids = load_ids(lm, config(text), tmp_path)
    assert len(ids) == 900  # 14 sequences of 64 and one of 4
    for dtype, tolerance in (("float32", 2e-6), ("float64", 2e-7)):  # keys are float32 in both
        covs = covariances(lm, [2, 1], config(text, dtype=dtype), tmp_path)
        assert list(covs) == [2, 1]
        for layer, cov in covs.items():
            want = naive(lm, ids, layer, 64)
            assert cov.mean.shape == (D_FF, D_FF)
            assert cov.count == 900
            assert torch.equal(cov.mean, cov.mean.T)
            assert (cov.mean.double() - want).norm() < tolerance * want.norm()


def test_lower_precision_keys_are_summed_in_float32(text, tmp_path):
    lm = tiny_lm("llama", dtype=torch.bfloat16)
    cov = covariances(lm, [1], config(text), tmp_path)[1]
    want = naive(lm, load_ids(lm, config(text), tmp_path), 1, 64)
    assert cov.mean.dtype == torch.float32
    assert (cov.mean.double() - want).norm() < 1e-2 * want.norm()  # batches round differently in bfloat16


def test_many_layers_in_one_pass_equal_single_passes_bit_for_bit(text, tmp_path):
    lm = tiny_lm("llama")
    together = covariances(lm, [0, 1, 3], config(text), tmp_path / "a")
    for layer in (0, 1, 3):
        alone = covariances(lm, [layer], config(text), tmp_path / "b")[layer]
        assert torch.equal(alone.mean, together[layer].mean)


def test_the_pass_leaves_the_model_as_it_was(text, tmp_path):
    lm = tiny_lm("gpt2")
    ids = torch.tensor([lm.encode("The capital of France is")])
    before = lm.model(input_ids=ids).logits
    covariances(lm, [1], config(text), tmp_path)
    assert torch.equal(before, lm.model(input_ids=ids).logits)
    assert not any(module._forward_pre_hooks for module in lm.model.modules())


def test_pass_stops_at_the_deepest_layer(text, tmp_path):
    lm = tiny_lm("llama")
    ran: list[int] = []
    for layer in range(4):

        def note(module: torch.nn.Module, args: object, i: int = layer) -> None:
            ran.append(i)

        lm.arch.layer(lm.model, layer).register_forward_pre_hook(note)
    collect(lm, [1], torch.arange(64), 64, 64)
    assert ran == [0, 1]


def test_trace_identity_and_solve(text, tmp_path):
    lm = tiny_lm("gpt2")
    ids = load_ids(lm, config(text), tmp_path)
    cov = covariances(lm, [1], config(text, dtype="float64", ridge=0.0), tmp_path)[1]
    want = naive(lm, ids, 1, 64)
    assert float(torch.trace(cov.solve(want))) == pytest.approx(D_FF, rel=1e-3)  # E[k^T C^-1 k] = d_in
    k = torch.randn(3, 2, D_FF)
    solved = cov.solve(k)
    assert solved.shape == k.shape
    assert solved.dtype == torch.float64
    assert torch.allclose(solved @ cov.mean, k.double(), atol=1e-6)
    assert torch.allclose(cov.quad(k, k), (k.double() * solved).sum(-1))
    assert torch.allclose(cov.to("cpu").solve(k), solved)


def test_ridge_is_relative_to_the_mean_diagonal():
    mean = torch.diag(torch.tensor([1.0, 2.0, 3.0]))
    cov = Covariance(mean, 10, ridge=0.5)  # adds 0.5 * 2
    assert torch.allclose(cov.solve(torch.ones(3)), 1 / torch.tensor([2.0, 3.0, 4.0]).double())
    assert torch.equal(cov.mean, torch.diag(torch.tensor([1.0, 2.0, 3.0])))
    assert torch.allclose(cov.with_ridge(0.0).solve(torch.ones(3)), 1 / mean.diagonal().double())


def test_too_few_tokens_without_a_ridge():
    keys = torch.randn(5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with pytest.raises(KeditError, match=r"over 5 tokens .*stats.tokens"):
        Covariance(keys.T @ keys / 5, 5, ridge=0.0).solve(torch.ones(8))
    assert Covariance(keys.T @ keys / 5, 5, ridge=1e-3).solve(torch.ones(8)).isfinite().all()


@pytest.mark.parametrize("lam", [1e-6, 1.0, 1e4])
def test_woodbury_equals_the_dense_solve(lam):
    g = torch.Generator().manual_seed(0)
    sample_keys = torch.randn(400, 40, generator=g, dtype=torch.float64)
    keys = torch.randn(40, 3, generator=g, dtype=torch.float64)
    cov = Covariance(sample_keys.T @ sample_keys / 400, 400, ridge=1e-3)
    ridged = cov.mean + 1e-3 * cov.mean.diagonal().mean() * torch.eye(40, dtype=torch.float64)
    dense = torch.linalg.solve(lam * ridged + keys @ keys.T, keys)
    assert (woodbury(cov, keys, lam) - dense).norm() < 1e-8 * dense.norm()


def stop_after(n: int):
    calls = [0]

    def progress(what: str, done: int, total: int) -> None:
        assert what.startswith("statistics of layer")
        assert done <= total
        calls[0] += 1
        if calls[0] == n:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("n", [1, 5, 7])
def test_resumed_run_ends_with_the_same_bits(text, tmp_path, n):
    lm = tiny_lm("llama")
    whole = covariances(lm, [0, 2], config(text), tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        covariances(lm, [0, 2], config(text), tmp_path / "b", stop_after(n), save_seconds=0)
    (partial,) = (tmp_path / "b").rglob("partial-*")
    seen: list[int] = []
    again = covariances(lm, [0, 2], config(text), tmp_path / "b", lambda w, done, t: seen.append(done))
    assert 128 < seen[0] <= 128 * (n + 1)  # it did not start from the beginning
    assert not partial.exists()
    for layer in (0, 2):
        assert torch.equal(again[layer].mean, whole[layer].mean)
        assert again[layer].card["convergence"] == whole[layer].card["convergence"]


def test_killed_process_resumes_with_the_same_bits(text, tmp_path):
    folder, cache = save_tiny(tmp_path / "model", "gpt2"), tmp_path / "cache"
    script = textwrap.dedent(
        f"""
        import time
        from pathlib import Path
        from kedit.forward.binding import load_lm
        from kedit.model.lm import LMConfig
        from kedit.covariance import StatsConfig, covariances
        lm = load_lm(LMConfig({str(folder)!r}))
        config = StatsConfig({str(text)!r}, 900, 64, 128)
        slow = lambda what, done, total: time.sleep(0.3)
        covariances(lm, [1], config, Path({str(cache)!r}), slow, save_seconds=0)
        """
    )
    process = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "OMP_NUM_THREADS": "1"})
    until = time.monotonic() + 120
    while not list(cache.rglob("partial-*.safetensors")):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    from kedit.forward.binding import load_lm
    from kedit.model.lm import LMConfig

    lm = load_lm(LMConfig(str(folder)))
    resumed = covariances(lm, [1], config(text), cache)[1]
    assert torch.equal(resumed.mean, covariances(lm, [1], config(text), tmp_path / "other")[1].mean)


def no_pass(*_: object, **__: object) -> None:
    raise AssertionError("the text was read again")


def test_cached_result_is_read_and_missing_layers_only_are_computed(text, tmp_path):
    lm = tiny_lm("gpt2")
    first = covariances(lm, [0, 1], config(text), tmp_path)
    again = covariances(lm, [1, 0], config(text, ridge=0.1), tmp_path, no_pass)  # the ridge is not in the key
    assert torch.equal(again[0].mean, first[0].mean)
    assert again[0].ridge == 0.1
    assert list(again) == [1, 0]
    covariances(lm, [0, 1, 2], config(text), tmp_path)
    assert len(list(tmp_path.rglob("*.c_proj.safetensors"))) == 3
    with pytest.raises(AssertionError, match="read again"):
        covariances(lm, [0], config(text, tokens=800), tmp_path, no_pass)
    text.write_text(text.read_text() + " One more sentence.")
    with pytest.raises(AssertionError, match="read again"):
        covariances(lm, [0], config(text), tmp_path, no_pass)


def test_the_same_weights_under_another_name_use_the_same_statistics(text, tmp_path):
    lm, same = tiny_lm("gpt2"), tiny_lm("gpt2")
    same.name = "/elsewhere/a copy"
    first = covariances(lm, [0], config(text), tmp_path)[0]
    again = covariances(same, [0], config(text), tmp_path, no_pass)[0]
    assert torch.equal(again.mean, first.mean)
    covariances(same, [1], config(text), tmp_path)
    covariances(lm, [0, 1], config(text), tmp_path, no_pass)
    with pytest.raises(KeyboardInterrupt):
        covariances(lm, [2], config(text), tmp_path, stop_after(5), save_seconds=0)
    seen: list[int] = []
    covariances(same, [2], config(text), tmp_path, lambda what, done, total: seen.append(done))
    assert seen[0] > 128  # it went on where the pass of the other name was


def test_another_tokenizer_has_statistics_of_its_own(text, tmp_path):
    """A file of text is other tokens then, so the weights alone do not say which keys were seen."""
    lm, other = tiny_lm("llama", "bpe"), tiny_lm("llama", "bpe_bos")
    assert lm.fingerprint == other.fingerprint
    covariances(lm, [0], config(text), tmp_path)
    for name in (lm.name, "other"):
        other.name = name
        with pytest.raises(AssertionError, match="read again"):
            covariances(other, [0], config(text), tmp_path, no_pass)
    theirs = covariances(other, [0], config(text), tmp_path)[0]
    assert not torch.equal(theirs.mean, covariances(lm, [0], config(text), tmp_path, no_pass)[0].mean)
    other.name = lm.name
    assert torch.equal(theirs.mean, covariances(other, [0], config(text), tmp_path, no_pass)[0].mean)


def test_file_of_another_model_is_refused_by_name(text, tmp_path):
    one, other = tiny_lm("gpt2"), tiny_lm("gpt2", seed=1)
    other.name = "somebody-else"
    covariances(one, [0], config(text), tmp_path)
    covariances(other, [0], config(text), tmp_path)
    (mine,) = tmp_path.glob("stats/tiny-gpt2-*/*/*.safetensors")
    (theirs,) = tmp_path.glob("stats/somebody-else-*/*/*.safetensors")
    mine.write_bytes(theirs.read_bytes())
    message = r"another model: it was made from somebody-else \(weights .*this is tiny-gpt2"
    with pytest.raises(KeditError, match=message):
        covariances(one, [0], config(text), tmp_path)
    with pytest.raises(KeditError, match=message):
        load_covariance(theirs, one, 0)
    loaded = load_covariance(theirs, other, 0)
    assert torch.equal(loaded.mean, covariances(other, [0], config(text), tmp_path)[0].mean)
    with pytest.raises(KeditError, match=r"module transformer.h.0.mlp.c_proj instead of transformer.h.1"):
        load_covariance(theirs, other, 1)


@pytest.mark.parametrize("damage", ["truncated", "garbage", "foreign"])
def test_damaged_file_is_refused_by_name(text, tmp_path, damage):
    lm = tiny_lm("gpt2")
    covariances(lm, [0], config(text), tmp_path)
    (path,) = tmp_path.rglob("*.c_proj.safetensors")
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "garbage":
        path.write_bytes(b"not a safetensors file")
    else:
        from safetensors.torch import save_file

        save_file({"mean": torch.eye(D_FF)}, path)
    with pytest.raises(KeditError, match=rf"{path}.*delete it"):
        covariances(lm, [0], config(text), tmp_path)


def test_edited_model_is_refused(text, tmp_path):
    lm = tiny_lm("gpt2")
    assert lm.fingerprint
    with torch.no_grad():
        weight(lm.arch.module(lm.model, "mlp_out", 1)).add_(0.01)
    with pytest.raises(KeditError, match="edited since it was loaded"):
        covariances(lm, [0], config(text), tmp_path)


def test_sampled_text_of_another_shape_is_refused(tmp_path):
    lm, asked = tiny_lm("gpt2"), StatsConfig(tokens=60)
    load_ids(lm, asked, tmp_path)
    path = sampled(lm, asked, tmp_path)
    tensors, card = store.read(path)
    store.write(path, {"ids": tensors["ids"][0]}, card)
    with pytest.raises(KeditError, match="holds no text; delete it"):
        load_ids(lm, asked, tmp_path)


def test_bad_corpora(tmp_path):
    lm = tiny_lm("gpt2")
    with pytest.raises(KeditError, match=r"stats\.corpus: .*nowhere.txt: no such file"):
        covariances(lm, [0], config(tmp_path / "nowhere.txt"), tmp_path)
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n\n")
    with pytest.raises(KeditError, match="holds no text"):
        covariances(lm, [0], config(empty), tmp_path)
    latin = tmp_path / "latin.txt"
    latin.write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(KeditError, match="not UTF-8"):
        covariances(lm, [0], config(latin), tmp_path)
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"text": "One."}\n{"body": "Two."}\n')
    with pytest.raises(KeditError, match="record 2"):
        covariances(lm, [0], config(lines), tmp_path)
    with pytest.raises(KeditError, match=r"stats\.tokens"):
        StatsConfig(tokens=0)


def test_short_corpus_is_used_whole_with_a_warning(text, tmp_path, caplog):
    lm = tiny_lm("gpt2")
    cov = covariances(lm, [0], config(text, tokens=10**6), tmp_path)[0]
    assert 1000 < cov.count < 10**5
    assert f"only {cov.count} tokens of the 1000000" in caplog.text
    caplog.clear()
    covariances(lm, [0], config(text, tokens=200), tmp_path)
    assert "few for keys of width 80" in caplog.text


def test_documents_are_joined_by_eos(tmp_path):
    lm = tiny_lm("llama")
    lines = tmp_path / "docs.jsonl"
    lines.write_text('{"text": "The capital of Italy is Rome."}\n{"text": "Honda Civic"}\n')
    ids = load_ids(lm, config(lines), tmp_path).tolist()
    first, second = lm.encode("The capital of Italy is Rome."), lm.encode("Honda Civic")
    assert ids == [*first, lm.tokenizer.eos_token_id, *second]
    assert second[0] == lm.tokenizer.bos_token_id


def test_text_file_is_cut_only_between_lines(tmp_path, monkeypatch):
    lm = tiny_lm("gpt2")
    path = tmp_path / "long.txt"
    path.write_text("".join(f"{i}. The capital of France is Paris.\n" for i in range(50)))
    monkeypatch.setattr("kedit.covariance.corpus.PIECE", 100)
    assert load_ids(lm, config(path, tokens=10**5), tmp_path).tolist() == lm.encode(path.read_text())


def test_hugging_face_data_set(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"body": TEXT.splitlines()})
    asked: list[object] = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: asked.append((a, k)) or data)
    lm = tiny_lm("gpt2")
    cov = covariances(lm, [0], config("hf:some/wiki:20200501.en::body", tokens=300), tmp_path)[0]
    assert asked[0] == (("some/wiki", "20200501.en"), {"split": "train"})
    assert cov.count == 300
    ids = [load_ids(lm, config("hf:some/wiki:::body", seed=s), tmp_path) for s in (0, 0, 1)]
    assert torch.equal(ids[0], ids[1])
    assert not torch.equal(ids[0], ids[2])
    with pytest.raises(KeditError, match="no column 'text'"):
        covariances(lm, [0], config("hf:some/wiki"), tmp_path)


def test_self_corpus_is_sampled_once(tmp_path, monkeypatch):
    lm = tiny_lm("llama")
    told: list[str] = []
    first = covariances(lm, [1], config("self", tokens=500), tmp_path, lambda what, d, t: told.append(what))[1]
    assert first.count == 500
    assert set(told) == {"writing text for statistics (once)", "statistics of layer 1 (once per model)"}
    monkeypatch.setattr("kedit.forward.sampling.sample", no_pass)
    again = covariances(lm, [0, 1], config("self", tokens=500), tmp_path)
    assert torch.equal(again[1].mean, first.mean)
    with pytest.raises(AssertionError):
        covariances(lm, [1], config("self", tokens=500, seed=1), tmp_path)


def test_convergence_is_reported(text, tmp_path, caplog):
    lm = tiny_lm("gpt2")
    with caplog.at_level("INFO", "kedit.covariance"):
        cov = covariances(lm, [1], config(text, tokens=1024), tmp_path)[1]
    trace = cov.card["convergence"]
    assert [entry["tokens"] for entry in trace] == [128, 256, 512, 1024]
    half = naive(lm, load_ids(lm, config(text, tokens=512), tmp_path), 1, 64)
    whole = naive(lm, load_ids(lm, config(text, tokens=1024), tmp_path), 1, 64)
    assert trace[-1]["change"] == pytest.approx(float((whole - half).norm() / whole.norm()), rel=1e-4)
    rest = 2 * whole - half
    unseen = float(torch.trace(Covariance(half, 512).solve(rest))) / D_FF
    assert trace[-1]["unseen"] == pytest.approx(unseen, rel=1e-3)
    assert "between 512 and 1024 tokens" in caplog.text


def test_sample_is_seeded_and_independent_of_the_batch_size():
    lm = tiny_lm("llama")
    prompts = [[5], [6, 7, 8], [9], [10, 11, 12], [13]]
    one = sample(lm, prompts, 12, seed=3)
    assert one == sample(lm, prompts, 12, seed=3, batch_size=1)
    assert one != sample(lm, prompts, 12, seed=4)
    eos = lm.tokenizer.eos_token_id
    for prompt, row in zip(prompts, one, strict=True):
        assert row[: len(prompt)] == prompt
        assert len(row) == len(prompt) + 12 or row[-1] == eos


def test_sample_top_one_is_greedy_and_stops_at_eos():
    lm = tiny_lm("gpt2")
    row = list(lm.encode("The capital"))
    (got,) = sample(lm, [row], 6, top_k=1, stop_at_eos=False)
    for _ in range(6):
        with torch.no_grad():
            row.append(int(lm.model(input_ids=torch.tensor([row])).logits[0, -1].argmax()))
    assert got == row
    lm.tokenizer.eos_token = lm.tokenizer.convert_ids_to_tokens(row[-4])
    (stopped,) = sample(lm, [row[:-6]], 6, top_k=1)
    first = row.index(row[-4], len(row) - 6)
    assert stopped == row[: first + 1]


def test_sample_frequencies_follow_the_model():
    lm = tiny_lm("gpt2")
    rows = sample(lm, [[7]] * 4000, 1, temperature=0.7, batch_size=2000)
    with torch.no_grad():
        want = (lm.model(input_ids=torch.tensor([[7]])).logits[0, -1] / 0.7).softmax(-1)
    got = torch.bincount(torch.tensor([row[1] for row in rows]), minlength=len(want)) / 4000
    assert (got - want).abs().max() < 4 * float((want.max() * (1 - want.max()) / 4000).sqrt())
    with pytest.raises(KeditError, match="context"):
        sample(lm, [[7]], lm.context_length)
