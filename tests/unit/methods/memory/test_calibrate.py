"""The threshold that tells paraphrases from other facts, and what it is learnt from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kedit.data import read_facts
from kedit.data.readers.any_format import read_any
from kedit.errors import KeditError
from kedit.methods.memory.calibrate import _best, calibrate
from kedit.methods.memory.facts import Background, sentence
from kedit.model.sentence_encoder import SentenceEncoder
from kedit.request import EditRecord, EditRequest, Probe
from tests.support.paths import ROOT
from tests.support.tiny_models import save_tiny


def test_the_facts_that_ship_with_kedit_are_told_apart() -> None:
    found = calibrate(read_facts("train"))
    assert 0.3 < found.threshold < 0.8
    assert found.found > 0.9
    assert found.mistaken < 0.1
    assert found == calibrate(read_facts("train"))


def test_the_best_threshold_against_all_thresholds() -> None:
    rng = np.random.default_rng(0)
    right, wrong = rng.beta(5, 2, 40), rng.beta(2, 4, 30)
    found = _best(right, wrong)
    best = max((right >= cut).mean() - (wrong >= cut).mean() for cut in np.linspace(0, 1, 5001))
    assert found.found - found.mistaken == pytest.approx(best)
    assert found.found == (right >= found.threshold).mean()
    assert found.mistaken == (wrong >= found.threshold).mean()


def test_neighbourhood_probes_teach_nothing() -> None:
    records = read_facts("train")
    bare = [EditRecord(r.request, tuple(p for p in r.probes if p.kind != "neighborhood"), r.meta) for r in records]
    found = calibrate(bare)  # the background has fewer words, nothing else differs
    assert found.found - found.mistaken > 0.8
    with pytest.raises(KeditError, match=r"^model\.calibration: .*set model\.threshold"):
        calibrate([EditRecord(r.request, ()) for r in records])
    with pytest.raises(KeditError, match=r"^model\.calibration"):
        calibrate(records[:2])


def test_an_encoder_takes_the_place_of_words(tmp_path: Path) -> None:
    """A random model tells little; what counts is that its vectors are used."""
    encoder = SentenceEncoder(str(save_tiny(tmp_path, "llama")))
    vectors = encoder.embed(["The capital of France is", "Who?", "The capital of France is"])
    np.testing.assert_allclose(vectors.norm(dim=1), 1, rtol=1e-5)
    np.testing.assert_allclose(vectors[0], vectors[2], atol=1e-6)
    assert -1 <= calibrate(read_facts("train")[:30], encoder).threshold <= 1
    with pytest.raises(KeditError, match=r"^model\.encoder: .*no Hugging Face folder"):
        SentenceEncoder(str(tmp_path / "none")).embed(["a"])
    with pytest.raises(KeditError, match=r"^model\.encoder: .*used before"):
        SentenceEncoder(str(tmp_path), "another").embed(["a"])


def test_words_of_a_background() -> None:
    request = EditRequest("1", "The capital of {} is", "France", "Rome", "Paris")
    records = [EditRecord(request, (Probe("rewrite", request.text, "Rome", "Paris"),))]
    found = Background.of(records)
    assert found.texts == 2  # with the new target, and with the true one
    assert found.about("The capital of Spain") == {"the": 2, "capital": 2, "of": 2}
    assert sentence(request) == "The capital of France is Rome."
    assert sentence(EditRequest("1", "Q: who? A:", None, "He!")) == "Q: who? A: He!"


@pytest.mark.parametrize(
    "file", ["counterfact_flat.json", "counterfact_official.json", "records.jsonl", "robust.json", "zsre.json"]
)
def test_files_of_any_format(file: str) -> None:
    records = read_any(ROOT / "tests" / "fixtures" / file, "model.calibration")
    assert records
    assert any(probe.kind == "paraphrase" for record in records for probe in record.probes)


def test_a_file_of_no_format(tmp_path: Path) -> None:
    with pytest.raises(KeditError, match=r"^model\.calibration: .*no such file"):
        read_any(tmp_path / "none.json", "model.calibration")
    (tmp_path / "odd.json").write_text('[{"a": 1}]')
    with pytest.raises(KeditError, match=r"^model\.calibration: none of kedit's formats; as its own form: .*missing"):
        read_any(tmp_path / "odd.json", "model.calibration")
