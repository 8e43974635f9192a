"""r(k) against one prompt at a time, bounds against written weights, and the report of rows made by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kedit.analysis.similarity import SCALES, edit_bounds, others_of, queries_of, similarities
from kedit.analysis.similarity_report import similarity_table, summary_rows
from kedit.delta.apply import edited
from kedit.delta.delta import Delta
from kedit.delta.factors import Factors
from kedit.delta.pathway import Pathway
from kedit.delta.pathways import Pathways
from kedit.evaluation.score import EvalConfig, score
from kedit.forward.teacher_forcing import Span, read
from kedit.model.lm import LM
from kedit.model.tokenization import encode, encode_subject
from kedit.request import EditRecord, EditRequest, Probe, Variants
from tests.support.tiny_models import tiny_lm

CONTEXTS = ["{}", "You can see it. {}", "He spoke. {}"]
Rows = list[dict[str, Any]]

RECORD = EditRecord(
    EditRequest("a", "The capital of {} is", "North Spain", "Rome", "Paris"),
    (Probe("rewrite", "The capital of North Spain is", "Rome"),
     Probe("neighborhood", "The capital of Italy is", "Rome"),
     Probe("neighborhood", "Berlin is a city in", "Germany")),
    variants=Variants(
        ("the Spain up north",), ("Spain", "Iberia"), ("Spain North",), ("pain NorthS",), (), ("It rains.",)
    ),
)  # fmt: skip
OTHER = EditRequest("b", "The mother tongue of {} is", "Albert Einstein", "Dutch")


def a_delta(lm: LM, layers: tuple[int, ...], seed: int, scale: float = 1.0) -> Delta:
    made = torch.Generator().manual_seed(seed)
    return Delta({
        lm.arch.path("mlp_out", layer): Factors(
            scale * torch.randn(lm.d_model, 1, generator=made), torch.randn(1, 80, generator=made)
        )
        for layer in layers
    })  # fmt: skip


def a_pathway(seed: int, hysteresis: float | None = None) -> Pathway:
    made = torch.Generator().manual_seed(seed)
    draw = [torch.randn(shape, generator=made) for shape in ((2, 80), (80, 2), (80,))]
    zero = torch.zeros(())
    again = None if hysteresis is None else zero + hysteresis
    return Pathway(draw[0] / 9, draw[1], read=draw[2], bias=zero, threshold=zero, hysteresis=again)


def seen_by_w(lm: LM, layer: int, ids: tuple[int, ...]) -> Tensor:
    """Inputs of the edited map itself, whatever hooks came before it: `[T, d_in]`."""
    module = lm.arch.module(lm.model, "mlp_out", layer)
    seen: list[Tensor] = []
    handle = module.register_forward_hook(lambda _, args, out: seen.append(args[0].reshape(len(ids), -1)))
    with torch.no_grad():
        lm.model(torch.tensor([ids]))
    handle.remove()
    return seen[0].double()


@pytest.mark.parametrize(("layers", "hysteresis"), [((1,), None), ((1, 2), None), ((1, 2), 2.0)])
def test_values_are_those_of_one_prompt_at_a_time(layers: tuple[int, ...], hysteresis: float | None) -> None:
    lm = tiny_lm("llama")
    plain = a_delta(lm, layers, 0, 0.05)
    paths = [lm.arch.path("mlp_out", layer) for layer in layers]
    adapted = Delta(
        plain.of_kind(Factors), {path: Pathways((a_pathway(i, hysteresis),)) for i, path in enumerate(paths)}
    )
    weights = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    records, others = [RECORD, RECORD], [[OTHER], []]
    found = similarities(
        lm, records, [plain, a_delta(lm, layers, 1)], [adapted, adapted.to("cpu")], others,
        layers, CONTEXTS, lambda keys: weights @ keys,
    )[0]  # fmt: skip
    asked = {
        "paraphrase_id": ["The capital of {} is|the Spain up north"],
        "paraphrase_ood": ["The capital of {} is|Spain", "The capital of {} is|Iberia"],
        "shuffle_id": ["The capital of {} is|Spain North"],
        "shuffle_ood": ["The capital of {} is|pain NorthS"],
        "long_context": ["It rains. The capital of {} is|North Spain"],
        "random": ["The mother tongue of {} is|Albert Einstein"],
    }
    opened = 0.0
    for layer, path in zip(layers, paths, strict=True):
        u = plain.of_kind(Factors)[path].right[0].double()
        assert set(found[layer]) == {*asked, "neighborhood"}
        with edited(lm.model, plain):
            k = []
            for context in CONTEXTS:
                t = encode_subject(lm, RECORD.request.prompt, "North Spain", context=context)
                k.append(seen_by_w(lm, layer, t.ids)[t.subject_last])
        k_star = weights @ torch.stack(k)
        for side, delta in (("before", plain), ("after", adapted)):
            with edited(lm.model, delta):
                for kind, prompts in asked.items():
                    for i, (template, _, subject) in enumerate(prompt.partition("|") for prompt in prompts):
                        t = encode_subject(lm, template, subject)
                        r = (seen_by_w(lm, layer, t.ids) @ u / (k_star @ u))[t.subject_first : t.subject_last + 1]
                        readings = found[layer][kind]
                        assert readings["subject_last"][side][i] == pytest.approx(float(r[-1]), rel=1e-4, abs=1e-5)
                        assert readings["subject_max"][side][i] == pytest.approx(float(r.max()), rel=1e-4, abs=1e-5)
                for i, probe in enumerate(RECORD.probes[1:]):
                    r = seen_by_w(lm, layer, encode(lm, probe.text).ids) @ u / (k_star @ u)
                    readings = found[layer]["neighborhood"]
                    assert readings["prompt_max"][side][i] == pytest.approx(float(r.max()), rel=1e-4, abs=1e-5)
                    assert readings["prompt_abs"][side][i] == pytest.approx(float(r.abs().max()), rel=1e-4, abs=1e-5)
        for readings in found[layer].values():
            for sides in readings.values():
                for before, after, gate in zip(sides["before"], sides["after"], sides["open"], strict=True):
                    assert gate in (0, 1)
                    opened += gate
                    if layer == layers[0] and not gate:
                        assert after == before
    assert opened > 0


def test_without_pathways_there_is_only_before() -> None:
    lm = tiny_lm("gpt2")
    (found,) = similarities(lm, [RECORD], [a_delta(lm, (2,), 0)], None, [[]], [2], CONTEXTS, lambda keys: keys[0])
    assert {side for readings in found[2].values() for sides in readings.values() for side in sides} == {"before"}
    assert "random" not in found[2]


def test_others_do_not_depend_on_the_order() -> None:
    records = [EditRecord(EditRequest(str(i), "{} is", f"name {i % 12}", "x"), ()) for i in range(15)]
    chosen = others_of(records[3], records)
    assert chosen == others_of(records[3], records[::-1])
    assert len(set(chosen)) == 8
    assert records[3].request.subject not in {request.subject for request in chosen}
    assert others_of(records[3], records[3:4]) == []


def test_queries_end_at_the_subject() -> None:
    lm = tiny_lm("llama")
    for query in queries_of(lm, RECORD, [OTHER]):
        text = lm.decode(query.ids)
        assert text.endswith("is" if query.kind == "neighborhood" and "Italy" in text else text[-2:])
        assert (query.subject_first == 0) == (not query.has_subject)
        if query.kind == "paraphrase_id":
            assert text.endswith("The capital of the Spain up north")
        if query.kind == "long_context":
            assert text.endswith("It rains. The capital of North Spain")


def test_bounds_are_those_of_written_weights() -> None:
    """An update of the last layer that pushes towards the target, stronger and stronger."""
    lm = tiny_lm("llama")
    path, layer = lm.arch.path("mlp_out", 3), 3
    t = encode_subject(lm, RECORD.request.prompt, RECORD.request.named(), RECORD.request.target_new)
    # the key read is the prompt's last token's, so that the rewrite prompt sees the update where it answers
    k = seen_by_w(lm, layer, t.ids)[t.n_prompt - 1].float()
    token = next(lm.arch.head(lm.model).parameters())[t.target[0]]
    one_token = EditRequest("a", RECORD.request.prompt, RECORD.request.subject, lm.decode(t.target[:1]).strip())
    record = EditRecord(one_token, RECORD.probes, variants=RECORD.variants)
    answer = encode_subject(lm, one_token.prompt, one_token.named(), one_token.target_new)
    assert answer.target == t.target[:1]
    direction = Delta({path: Factors((token / token.norm())[:, None], (k / (k @ k))[None])})
    strength = next(
        c for c in (2.0**n for n in range(-4, 12)) if exact(lm, scaled(direction, c), record)
    ) * 1.6  # so that the least scale is inside the grid  # fmt: skip
    delta = scaled(direction, strength)
    peaks = []
    for probe in RECORD.probes[1:]:
        keys = seen_by_w(lm, layer, encode(lm, probe.text).ids)
        peaks.append(float((keys @ delta.of_kind(Factors)[path].right[0].double()).abs().max()))
    found = edit_bounds(lm, record, delta, peaks)
    least = next(s for s in SCALES if exact(lm, scaled(delta, s), record))
    assert 0 < least < 1
    assert found["r_min"] == least
    for probe, peak, r_max in zip(RECORD.probes[1:], peaks, found["r_max"], strict=True):
        before = top1(lm, Delta(), probe)
        grid = sorted({*SCALES[1:], peak})
        same = [top1(lm, scaled(delta, s / peak), probe) == before for s in grid]
        unchanged = same.index(False) if False in same else len(same)
        assert r_max == pytest.approx(grid[unchanged - 1] if unchanged else 0.0)
        assert (peak <= r_max) == (same[: grid.index(peak) + 1] == [True] * (grid.index(peak) + 1))
    assert min(found["r_max"]) < 1.2
    never = edit_bounds(lm, record, scaled(delta, -1.0), peaks)
    assert never["r_min"] is None


def scaled(delta: Delta, scale: float) -> Delta:
    return Delta({path: Factors(scale * f.left, f.right) for path, f in delta.of_kind(Factors).items()})


def exact(lm: LM, delta: Delta, record: EditRecord) -> bool:
    request = record.request
    with edited(lm.model, delta):
        return score(lm, [Probe("rewrite", request.text, request.target_new)], config=EvalConfig(generate=[]))[0].exact


def top1(lm: LM, delta: Delta, probe: Probe) -> tuple[int, ...]:
    tokens = encode(lm, probe.text, probe.answer)
    with edited(lm.model, delta):
        return read(lm, [Span(-1, tokens.ids[:-1], tokens.target)])[0][1]


def made_row(case: str, r_min: float | None) -> dict[str, Any]:
    last = {"before": [0.25, 0.5], "after": [0.75, 1.25], "open": [0.0, 1.0]}
    largest = {"before": [0.5, 0.0], "after": [0.5, 0.5], "open": [1.0, 1.0]}
    values = {"paraphrase_ood": {"subject_last": last}, "neighborhood": {"prompt_max": largest, "prompt_abs": largest}}
    return {
        "case_id": case,
        "measured_at": "edit",
        "similarity": {"layers": {"5": values}, "r_min": r_min, "r_max": [0.4, 0.5]},
    }


def test_lines_by_hand() -> None:
    rows = [made_row("x", 0.3), made_row("y", 0.8), made_row("z", None), made_row("y", 0.8), {"case_id": "failed"}]
    form, _, neighbor = summary_rows(rows)
    expected = {
        "layer": 5, "kind": "paraphrase_ood", "tokens": "subject_last", "n_records": 3, "n_keys": 6,
        "mean_before": 0.375, "std_before": 0.125, "delivered_before": 0.0,
        "mean_after": 1.0, "std_after": 0.25, "delivered_after": 50.0, "open": 50.0,
        "bound": "r_min", "bound_median": 0.55, "violated_before": 75.0, "violated_after": 25.0,
    }  # fmt: skip
    assert form == expected
    assert (neighbor["bound"], neighbor["bound_median"]) == ("r_max", 0.45)
    assert (neighbor["violated_before"], neighbor["violated_after"]) == (50.0, 50.0)
    assert summary_rows([]) == []
    caption = str(similarity_table([form, neighbor], rows).caption)
    assert "1 edits answer at no scale" in caption
    plain: Rows = [{"case_id": "x", "similarity": {"layers": {"5": {"random": {"subject_last": {"before": [0.1]}}}}}}]
    (line,) = summary_rows(plain)
    assert [line[name] for name in ("mean_after", "open", "bound", "violated_before")] == [None] * 4
