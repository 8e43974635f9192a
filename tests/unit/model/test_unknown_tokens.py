"""Tokens that a tokenizer makes and a model has no row for: never a filler, and named where a text needs them."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors

from kedit.covariance import StatsConfig
from kedit.covariance.corpus import load_ids
from kedit.errors import KeditError
from kedit.evaluation.score import EvalConfig, check_probes, score
from kedit.forward.binding import wrap_lm
from kedit.model.tokenization import check
from kedit.request import EditRecord, EditRequest, Probe
from tests.support.tiny_models import tiny_lm, tiny_model, tiny_tokenizer


def _with_more_tokens(*tokens: str, **special: Any) -> Any:
    """The tiny tokenizer with tokens added, for which the tiny models have no rows."""
    tokenizer = copy.deepcopy(tiny_tokenizer("bpe"))
    tokenizer.add_tokens(list(tokens))
    tokenizer.add_special_tokens(special)
    return tokenizer


def test_a_pad_token_that_the_model_does_not_have_is_not_used() -> None:
    """Added to the tokenizer, embeddings not resized: batches are filled with a token of the model's, results agree."""
    lm, plain = wrap_lm(tiny_model("llama"), _with_more_tokens(pad_token="[PAD]"), "padded"), tiny_lm("llama", "bpe")
    assert lm.tokenizer.pad_token_id == lm.n_tokens == 600
    assert lm.pad_id == lm.tokenizer.eos_token_id
    probes = [Probe("rewrite", "The capital of France is", "Rome"), Probe("rewrite", "The Space Needle is in", "Tokyo")]
    assert score(lm, probes) == score(plain, probes)


def test_an_end_of_text_that_the_model_does_not_have_is_not_used(tmp_path: Path) -> None:
    lm = wrap_lm(tiny_model("llama"), _with_more_tokens(eos_token="[END]"), "ended")
    assert lm.tokenizer.eos_token_id == 600
    assert (lm.eos_id, lm.pad_id) == (None, 0)
    ids = load_ids(lm, StatsConfig(tokens=200), tmp_path)  # texts sampled one after another, EOS between them
    assert len(ids) == 200
    assert int(ids.max()) < 600


def test_a_token_that_the_model_does_not_have_is_named_with_its_text(tmp_path: Path) -> None:
    lm = wrap_lm(tiny_model("llama"), _with_more_tokens("Zlorp"), "more")
    request = EditRequest("17", "The capital of {} is", "France", "Rome")
    check(lm, request)
    for changed in (replace(request, subject="Zlorp"), replace(request, target_new="Zlorp")):
        with pytest.raises(KeditError, match=r"^record 17: the model does not have the token 'Zlorp' \(600\)"):
            check(lm, changed)
    with pytest.raises(KeditError, match=r"the text 'a Zlorp'.*'Zlorp'"):
        lm.encode("a Zlorp")
    (tmp_path / "c.txt").write_text("Of Zlorp and others.")
    with pytest.raises(KeditError, match=r"stats\.corpus: .*c\.txt: .*'Zlorp'"):
        load_ids(lm, StatsConfig(corpus=str(tmp_path / "c.txt"), tokens=100), tmp_path)


def test_a_record_is_named_for_its_probes_before_anything_is_edited() -> None:
    lm = wrap_lm(tiny_model("llama"), _with_more_tokens("Zlorp"), "more")
    request = EditRequest("17", "The capital of {} is", "France", "Rome")
    assert tiny_lm("llama", "bpe").knows_all_tokens
    for probe in (Probe("paraphrase", "Of Zlorp", "Rome"), Probe("neighborhood", "Italy", "Rome", "Zlorp")):
        with pytest.raises(KeditError, match=rf"^record 17, a {probe.kind} probe: the model does not have the token"):
            check_probes(lm, EditRecord(request, (probe,)), EvalConfig())


def test_a_tokenizer_that_begins_every_text_with_an_unknown_token() -> None:
    tokenizer = _with_more_tokens(bos_token="[BOS]")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[BOS] $A", special_tokens=[("[BOS]", 600)]
    )
    with pytest.raises(KeditError, match=r"bos: what its tokenizer puts before texts: .*'\[BOS\]' \(600\)"):
        wrap_lm(tiny_model("llama"), tokenizer, "bos")
