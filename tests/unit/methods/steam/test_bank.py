"""The anchors of a run: each object once, of the unedited model, kept on disk, and what is subtracted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from kedit.delta.apply import edited
from kedit.delta.delta import Delta
from kedit.delta.factors import Factors
from kedit.errors import KeditError
from kedit.methods.steam import AnchorBank, AnchorConfig, Pool, Reference, bank, references_of
from kedit.model.lm import LM
from kedit.model.tokenization import encode
from kedit.request import EditRecord, EditRequest, Probe
from tests.support.steam_cases import FAMILIES, block_states, records, references, world
from tests.support.tiny_models import tiny_lm

CONFIG = AnchorConfig(n_min=3)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path))
    return tmp_path / "anchors"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The requests whose objects were positioned, in that order."""
    found: list[str] = []

    def counted(lm: LM, request: EditRequest, *args: Any) -> Any:
        found.append(request.case_id)
        return positioned(lm, request, *args)

    positioned = bank.position
    monkeypatch.setattr(bank, "position", counted)
    return found


def pool() -> Pool:
    return Pool(references_of([*records(), *world()]))


def bank_of(lm: LM, some: Sequence[EditRecord] | None = None, config: AnchorConfig = CONFIG, **more: Any) -> AnchorBank:
    found = AnchorBank(lm, records() if some is None else some, more.pop("pool", pool()), config, **more)
    found.fill()
    return found


def test_each_object_is_positioned_once(asked: list[str]) -> None:
    """ "Rome" for records 1 and 2 together; "Tokyo" has no reference, so the model is told record 3's fact."""
    found = bank_of(tiny_lm("gpt2"), config=AnchorConfig(n_min=8), keep=False)
    assert asked == ["1", "3"]
    rome, same, tokyo = (found.anchor(record) for record in records())
    assert rome is same
    assert (rome.source, tokyo.source) == ("multi_relation", "in_context")
    assert (rome.relations, rome.asked) == (2, 11)  # of the attribute prompts, and of the world
    found.fill()
    assert asked == ["1", "3"]
    assert found.positioned == 2
    assert found.counts() == {"multi_relation": 2, "in_context": 1}


def test_told_facts_are_each_record_s_own(asked: list[str]) -> None:
    first, second, _ = records()
    found = bank_of(tiny_lm("gpt2"), [first, second], pool=Pool([]))
    one, other = found.anchor(first).mean, found.anchor(second).mean
    assert asked == ["1", "2"]
    assert one is not None
    assert other is not None
    assert not torch.equal(one, other)
    assert found.counts() == {"in_context": 2}


def test_progress() -> None:
    seen: list[tuple[int, int]] = []
    AnchorBank(tiny_lm("gpt2"), records(), pool(), CONFIG).fill(lambda done, of: seen.append((done, of)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("kind", FAMILIES)
def test_what_is_read_back_is_what_was_written(kind: str, asked: list[str], cache: Path) -> None:
    lm = tiny_lm(kind)
    made = bank_of(lm).anchor(records()[0])
    assert asked == ["1", "3"]
    assert len(list(cache.rglob("*.safetensors"))) == 1  # told facts are not kept
    read = bank_of(lm).anchor(records()[0])
    assert asked == ["1", "3", "3"]
    assert made.mean is not None
    assert read.mean is not None
    assert torch.equal(made.mean, read.mean)
    assert read.card() == made.card()
    assert read.used == made.used
    assert not list(cache.rglob("*.part"))


def test_the_same_text_with_another_object_is_no_reference(cache: Path) -> None:
    lm, odd = tiny_lm("gpt2"), Reference("The capital of Brazil is", "Cairo", "capital")
    found = Pool([odd, *pool().references])
    first, second = (bank_of(lm, pool=found).anchor(records()[0]).used for _ in range(2))
    assert first == second
    assert odd not in second


@pytest.mark.parametrize("change", ["model", "pool", "config", "scored", "subjects"])
def test_the_cache_is_asked_for_exactly_this(change: str, asked: list[str]) -> None:
    lm, some = tiny_lm("gpt2"), records()
    bank_of(lm, some)
    asked.clear()
    more: dict[str, Any] = {}
    if change == "model":
        lm = tiny_lm("gpt2", seed=1)
    elif change == "pool":
        more["pool"] = Pool([*pool().references, Reference("It rains in", "Rome", "weather")])
    elif change == "config":
        more["config"] = AnchorConfig(n_min=3, seed=1)
    elif change == "scored":
        some[0] = EditRecord(some[0].request, (Probe("paraphrase", "France is run from", "Rome"),))
    else:
        some.append(EditRecord(EditRequest("4", "{} is located in", "Brazil", "Tokyo"), ()))
    bank_of(lm, some, **more)
    assert asked[:1] == ["1"]


def test_anchors_are_of_the_unedited_model(asked: list[str]) -> None:
    """Before and after a weight write: a bank that was filled does not look at the model again."""
    lm = tiny_lm("llama")
    found = bank_of(lm, keep=False)
    before = [found.anchor(record).mean for record in records()]
    path = lm.arch.path("mlp_out", 0)
    generator = torch.Generator().manual_seed(0)
    write = Delta({path: Factors(torch.randn(32, 1, generator=generator), torch.randn(1, 80, generator=generator))})
    asked.clear()
    with edited(lm.model, write):
        after = [found.anchor(record).mean for record in records()]
        assert asked == []
        other = AnchorBank(lm, records(), pool(), CONFIG, keep=False).anchor(records()[0]).mean
    for one, same in zip(before, after, strict=True):
        assert one is same
    assert before[0] is not None
    assert other is not None
    assert float((other - before[0]).norm()) > 1e-2


# -- the centre -------------------------------------------------------------------------------------------


def five() -> list[EditRecord]:
    objects = ("Rome", "Tokyo", "Paris", "Cairo", "Dutch")
    return [EditRecord(EditRequest(str(i), "{} was", "Windows", name), ()) for i, name in enumerate(objects)]


def test_the_mean_over_objects() -> None:
    lm = tiny_lm("gpt2")
    found = bank_of(lm, five(), pool=Pool(references("Rome", ("city",))))
    assert found.counts() == {"single_relation": 1, "in_context": 4}
    means = [found.anchor(record).mean for record in five()]
    centre = found.centre("objects")
    assert centre is not None
    assert centre.shape == (4, 32)
    torch.testing.assert_close(centre, torch.stack([mean for mean in means if mean is not None]).mean(0))
    with pytest.raises(KeditError, match=r"model\.align\.center: objects needs anchors of 5 objects, this run has 4"):
        bank_of(lm, five()[:4]).centre("objects")
    without = AnchorConfig(in_context=False)
    with pytest.raises(KeditError, match="this run has 1; edit more records, or use generic"):
        bank_of(lm, five(), without, pool=Pool(references("Rome"))).centre("objects")
    assert found.centre("none") is None


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_mean_over_neutral_prompts(kind: str) -> None:
    lm = tiny_lm(kind, n_layers=3)
    centre = AnchorBank(lm, [], Pool([]), CONFIG).centre("generic")
    rows = [encode(lm, text).ids for text in bank.NEUTRAL]
    assert len(set(rows)) >= 20
    with torch.no_grad():
        want = torch.stack([block_states(lm, row, len(row) - 1) for row in rows]).mean(0)
    assert centre is not None
    torch.testing.assert_close(centre, want, atol=1e-4, rtol=1e-4)


def test_the_probe_asks_for_objects_with_references() -> None:
    lm = tiny_lm("gpt2")
    found = bank_of(lm, five(), pool=Pool([*references("Rome"), *references("Cairo", ("city",))]))
    assert len(found.telling()) == 4
    with pytest.raises(KeditError, match="needs two objects with references, this run has 1; give"):
        bank_of(lm, five(), pool=Pool(references("Rome"))).telling()
