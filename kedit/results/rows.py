"""One line of `results.jsonl`: its layout, what it says of one probe, and the quantities that reports average.

What the numbers mean: docs/metrics.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import exp
from types import MappingProxyType
from typing import Any

from kedit.request import EditRecord

MEASURED: Mapping[str, str] = MappingProxyType(
    {
        "edit": "after its own edit",
        "end": "after the last edit",
        "both": "after its own edit and after the last",
        "editor": "after its own edit, without what the method adds to its editor",
    }
)
"""When a record was measured, by the `measured_at` of its row or by the option `metrics.measure`."""


WILD = ("wild", "wild_qa", "wild_chat")
"""Free answers up to a natural stop, by how the prompt was asked: how their fields and metrics begin."""


@dataclass(frozen=True)
class ProbeScore:
    """What the model says to one probe.

    Attributes:
        nll_answer: Mean over the answer's tokens of -log p (natural logarithm), teacher forced.
        nll_rival: The same of the rival, where the probe has one.
        exact: Every token of the answer is the argmax given those before it: greedy decoding would begin
            with the answer's tokens.
        token_accuracy: Share of the answer's tokens that are the argmax.
        top1: Argmax token ids at the answer's positions (compared before and after an edit).
        generated: Free greedy continuation, where one was asked for.
        generated_match: `generated` begins with the answer or an alias (see `begins_with`).
        port_generated: Of a `portability` probe, where one was asked for: the continuation after `port_suffix`.
        port_match: `port_generated` contains the answer or an alias (see `contains`).
        wild_generated: Free greedy continuation up to a natural stop, where one was asked for: `kedit.evaluation.wild`.
        wild_match: It is the answer or an alias: SQuAD's exact match.
        wild_contains: It says the answer or an alias somewhere, where that was asked for (see `contains`).
        wild_qa_generated, wild_qa_match, wild_qa_contains: The same with the prompt in an instruction.
        wild_chat_generated, wild_chat_match, wild_chat_contains: The same in the tokenizer's chat template.
        nll_options: Of a probe with options, `nll_answer` of each of them.
        choice: The answer is more probable than every other option.
    """

    nll_answer: float
    nll_rival: float | None
    exact: bool
    token_accuracy: float
    top1: tuple[int, ...]
    generated: str | None = None
    generated_match: bool | None = None
    port_generated: str | None = None
    port_match: bool | None = None
    wild_generated: str | None = None
    wild_match: bool | None = None
    wild_contains: bool | None = None
    wild_qa_generated: str | None = None
    wild_qa_match: bool | None = None
    wild_qa_contains: bool | None = None
    wild_chat_generated: str | None = None
    wild_chat_match: bool | None = None
    wild_chat_contains: bool | None = None
    nll_options: tuple[float, ...] | None = None
    choice: bool | None = None

    @property
    def success(self) -> bool | None:
        """The answer is more probable than its rival (per token); None without a rival."""
        return None if self.nll_rival is None else self.nll_answer < self.nll_rival

    @property
    def p_answer(self) -> float:
        """exp(-nll): the geometric mean of the answer's token probabilities."""
        return exp(-self.nll_answer)

    @property
    def p_rival(self) -> float | None:
        """`p_answer` of the rival."""
        return None if self.nll_rival is None else exp(-self.nll_rival)

    @property
    def first_top1(self) -> int:
        """The token that greedy decoding says first."""
        return self.top1[0]

    def as_row(self, digits: int = 6) -> dict[str, Any]:
        """The score for a results file: fields and `success`, floats rounded to `digits` decimals.

        `success` is decided before rounding.
        """
        rival = None if self.nll_rival is None else round(self.nll_rival, digits)
        row: dict[str, Any] = {
            "nll_answer": round(self.nll_answer, digits),
            "nll_rival": rival,
            "success": self.success,
            "exact": self.exact,
            "token_accuracy": round(self.token_accuracy, digits),
            "top1": list(self.top1),
        }
        if self.generated is not None:
            row |= {"generated": self.generated, "generated_match": self.generated_match}
        if self.port_generated is not None:
            row |= {"port_generated": self.port_generated, "port_match": self.port_match}
        for name in WILD:
            if (text := getattr(self, f"{name}_generated")) is not None:
                row |= {f"{name}_generated": text, f"{name}_match": getattr(self, f"{name}_match")}
                if (says := getattr(self, f"{name}_contains")) is not None:
                    row[f"{name}_contains"] = says
        if self.nll_options is not None:
            row |= {"nll_options": [round(nll, digits) for nll in self.nll_options], "choice": self.choice}
        return row


Saved = Mapping[str, Any]  # a `ProbeScore.as_row()`, perhaps read from JSON


def _magnitude(score: Saved) -> float | None:
    if score["nll_rival"] is None:
        return None
    return exp(-score["nll_answer"]) - exp(-score["nll_rival"])


METRICS: Mapping[str, Callable[[Saved], float | None]] = MappingProxyType(
    {
        "success": lambda score: score["success"],
        "exact": lambda score: score["exact"],
        "token_accuracy": lambda score: score["token_accuracy"],
        "generated": lambda score: score.get("generated_match"),
        "port_em": lambda score: score.get("port_match"),
        "wild": lambda score: score.get("wild_match"),
        "contains": lambda score: score.get("wild_contains"),
        "wild_qa": lambda score: score.get("wild_qa_match"),
        "contains_qa": lambda score: score.get("wild_qa_contains"),
        "wild_chat": lambda score: score.get("wild_chat_match"),
        "contains_chat": lambda score: score.get("wild_chat_contains"),
        "choice": lambda score: score.get("choice"),
        "p_answer": lambda score: exp(-score["nll_answer"]),
        "magnitude": _magnitude,
    }
)
"""Quantities of one probe; None where it has none (`port_em`: all kinds but `portability`; `choice`: probes without
options). All but `magnitude` are shares in [0, 1]."""

RATES = (
    "success", "exact", "token_accuracy", "generated", "wild", "contains", "wild_qa", "contains_qa", "wild_chat",
    "contains_chat",
)  # fmt: skip


def unchanged(before: Saved, after: Saved) -> dict[str, float]:
    """`unchanged`: all argmax tokens are as before (0 or 1); `unchanged_tokens`: the share that is."""
    same = [a == b for a, b in zip(before["top1"], after["top1"], strict=True)]
    return {"unchanged": float(all(same)), "unchanged_tokens": sum(same) / len(same)}


def result_row(
    record: EditRecord,
    before: Sequence[ProbeScore] | None,
    after: Sequence[ProbeScore] | None,
    batch: int,
    measured_at: str,
    **more: Any,
) -> dict[str, Any]:
    """One line of `results.jsonl`.

    Args:
        record: The record; its probes are those of `before` and `after`, in order.
        before: Scores on the unedited model, where there are any.
        after: Scores on the edited model, where there are any.
        batch: Index of the record's edit batch.
        measured_at: Moment of the measurement (`edit`: after its own edit batch; `end`: after the last one; `at_10`:
            after the tenth edit).
        more: What else the line should say (request, protocol, norms), JSON-able.
    """
    probes = []
    for i, probe in enumerate(record.probes):
        parts = {"group": probe.group, "test": probe.test}
        probes.append(
            {
                "kind": probe.kind,
                **{name: part for name, part in parts.items() if part is not None},
                "text": probe.text,
                "answer": probe.answer,
                "rival": probe.rival,
                **({"options": list(probe.options)} if probe.options else {}),
                "before": None if before is None else before[i].as_row(),
                "after": None if after is None else after[i].as_row(),
            }
        )
    return {"case_id": record.request.case_id, "batch": batch, "measured_at": measured_at, **more, "probes": probes}


def edit_row(
    record: EditRecord,
    info: Mapping[str, Any],
    error: str | None,
    batch: int,
    regime: str,
    measured_at: str,
    before: Sequence[ProbeScore] | None = None,
    after: Sequence[ProbeScore] | None = None,
    protocol: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """`result_row` of an edit: also what was asked for, under which protocol, and what came of it.

    Args:
        record: The record.
        info: Figures of its edit, JSON-able.
        error: Why the edit failed; None where it was made.
        batch: Index of the record's edit batch.
        regime: Of the run.
        measured_at: `edit`, `end`, `at_10` ..., or `editor`: without what the method adds to its editor.
        before: Scores on the unedited model, where there are any.
        after: Scores on the edited model, where there are any.
        protocol: What its protocol says besides regime and moment: the frame of a chat.
    """
    request = asdict(record.request)
    request["joiner"] = record.request.joint
    edits = edits_of(measured_at)
    measured = MEASURED[measured_at] if edits is None else f"after {edits} {'edit' if edits == 1 else 'edits'}"
    return result_row(
        record,
        before,
        after,
        batch,
        measured_at,
        protocol={"regime": regime, "measured": measured, **(protocol or {})},
        status="failed" if error else "edited",
        error=error,
        request={key: value for key, value in request.items() if key != "case_id"},
        edit={key: value for key, value in info.items() if measured_at != "editor" or not key.startswith("pathway")},
    )


def without_probes(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the card of a delta says of a row of one of its records."""
    return {key: row[key] for key in ("case_id", "measured_at", "status", "request", "edit")}


def edits_of(measured_at: str) -> int | None:
    """Number of edits of a moment of `metrics.eval_at` (`at_10`: 10); None for any other."""
    name, _, edits = measured_at.partition("_")
    return int(edits) if name == "at" and edits.isdigit() else None
