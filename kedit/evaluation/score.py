"""What a model says to probes: `score`, and `is_known` (which facts does it know).

How the forward passes are batched is in `kedit.forward.teacher_forcing` and `kedit.forward.greedy`. What is said of one
probe is a `kedit.results.rows.ProbeScore`; averages over probes and records are in `kedit.results.summary`. What each
number means: docs/metrics.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from kedit.delta.prompts import prompt_for
from kedit.errors import KeditError, at_least, shown
from kedit.evaluation.wild import CONTEXTS, Context, check_room, spare, stop_of, wild_answers
from kedit.forward.greedy import greedy, prompt_ids
from kedit.forward.logits import check_lanes
from kedit.forward.teacher_forcing import Progress, Span, read
from kedit.model.chat import REPEAT
from kedit.model.tokenization import encode, surely_fits
from kedit.request import EditRecord, Probe
from kedit.results.rows import ProbeScore
from kedit.text.matching import after_prompt, begins_with, contains
from kedit.text.prompts import between, joined

if TYPE_CHECKING:
    from kedit.delta.lanes import BatchedDeltas
    from kedit.model.lm import LM

PORTABILITY = "portability"
"""The kind of probe whose free answer is searched for the new one (`port_em`)."""


@dataclass
class EvalConfig:
    """How probes are scored.

    Args:
        batch_tokens: Bound of one batch in padded tokens; null chooses by device (512 on CPU, 16384 on GPU; of
            generated texts more: 2048 on CPU, by the memory that the weights leave on GPU).
        generate: Kinds of probe that free greedy generation answers too, e.g. [rewrite, portability].
        max_new_tokens: Tokens after which a free generation ends (more where an answer is longer).
        stop: Characters that end a free generation, beside the model's end-of-text token.
        port_suffix: Text put after a portability question for `port_em` alone, e.g. the public CounterFact
            evaluator's "The answer to this question, most simply, is".
        wild: Kinds of probe that are answered freely up to a natural stop and compared as a whole.
        wild_contexts: How these are asked: `none`, the prompt alone; `qa`, in an instruction to answer; `chat`, in the
            tokenizer's chat template. Each has columns of its own.
        contains: Also whether such an answer says the wanted one anywhere.
    """

    batch_tokens: int | None = None
    generate: list[str] = field(default_factory=lambda: ["rewrite"])
    max_new_tokens: int = 16
    stop: str = "\n"
    port_suffix: str = ""
    wild: list[str] = field(default_factory=list)
    wild_contexts: list[Context] = field(default_factory=lambda: ["none"])
    contains: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_tokens", "max_new_tokens"):
            at_least(f"metrics.scoring.{name}", getattr(self, name), 1)
        unknown = [context for context in self.wild_contexts if context not in CONTEXTS]
        if unknown or not self.wild_contexts:
            raise KeditError(
                f"metrics.scoring.wild_contexts: {shown(str(unknown or self.wild_contexts), 60)}: "
                f"give at least one of {', '.join(CONTEXTS)}"
            )
        self.wild_contexts = list(dict.fromkeys(self.wild_contexts))


def score(
    lm: LM,
    probes: Sequence[Probe],
    lanes: Sequence[int] | None = None,
    bank: BatchedDeltas | None = None,
    config: EvalConfig | None = None,
    progress: Progress | None = None,
    shared: bool = False,
) -> list[ProbeScore]:
    """Score every probe, teacher forced, and generate freely where `config` asks for it.

    Args:
        lm: Model and tokenizer, with the weights that are to be measured.
        probes: In any order and number; they are sorted here.
        lanes: Lane of each probe, -1 for the unedited model; lanes are mixed freely in a batch.
        bank: The deltas that `lanes` index.
        config: Batch size and generation; None: the defaults.
        progress: Called after every batch with (rows done, rows in all).
        shared: All processes of the run ask for these scores: each runs a part of the batches, and all get all.

    Returns:
        One score per probe, in the probes' order.

    Raises:
        KeditError: An empty answer or rival, or a prompt that does not fit into the model's context; names
            the probe's kind and text.
    """
    config = config or EvalConfig()
    lane_of = [-1] * len(probes) if lanes is None else list(lanes)
    check_lanes(lane_of, bank, len(probes))
    spans: dict[tuple[str, str, str, int], Span] = {}
    for probe, lane in zip(probes, lane_of, strict=True):
        for text in (probe.answer, probe.rival, *probe.options):
            if text is not None and (probe.text, probe.joiner, text, lane) not in spans:
                spans[probe.text, probe.joiner, text, lane] = _span(lm, probe, text, lane, bank)
    readings = read(lm, list(spans.values()), bank, config.batch_tokens, progress, shared)
    results = dict(zip(spans, readings, strict=True))

    scores = []
    for probe, lane in zip(probes, lane_of, strict=True):
        prompt = (probe.text, probe.joiner)
        nlls, top1 = results[*prompt, probe.answer, lane]
        rival = None if probe.rival is None else _mean(results[*prompt, probe.rival, lane][0])
        hits = [a == b for a, b in zip(top1, spans[*prompt, probe.answer, lane].answer, strict=True)]
        options = {text: _mean(results[*prompt, text, lane][0]) for text in probe.options}
        chosen = {} if not options else _choice(probe, options)
        scores.append(ProbeScore(_mean(nlls), rival, all(hits), _mean(hits), top1, **chosen))
    _generate(lm, probes, lane_of, bank, config, scores, shared)
    _answer_wild(lm, probes, lane_of, bank, config, scores, shared)
    return scores


def score_records(
    lm: LM,
    records: Sequence[EditRecord],
    lanes: Sequence[int] | None = None,
    bank: BatchedDeltas | None = None,
    config: EvalConfig | None = None,
    progress: Progress | None = None,
    shared: bool = False,
) -> list[list[ProbeScore]]:
    """`score` of every record's probes; `lanes` has one entry per record.

    Returns:
        Per record the scores of its probes, in their order.
    """
    counts = [len(record.probes) for record in records]
    probes = [probe for record in records for probe in record.probes]
    of_probe = None if lanes is None else [lane for lane, n in zip(lanes, counts, strict=True) for _ in range(n)]
    flat = iter(score(lm, probes, of_probe, bank, config, progress, shared))
    return [[next(flat) for _ in range(n)] for n in counts]


def is_known(lm: LM, records: Sequence[EditRecord], config: EvalConfig | None = None) -> list[bool]:
    """Which facts the model knows: greedy decoding of the request's prompt begins with `target_true`.

    In a chat it may begin with the prompt itself: models answer in whole sentences.

    Raises:
        KeditError: A record without a true target.
    """
    probes = []
    for record in records:
        request = record.request
        if request.target_true is None:
            raise KeditError(f"{request.name}: it has no target_true, so nobody can say if it is known")
        probes.append(Probe("rewrite", request.text, request.target_true, joiner=request.joiner))
    config = replace(config or EvalConfig(), generate=[] if lm.chat is None else ["rewrite"], wild=[])
    scores = score(lm, probes, config=config, shared=True)
    return [s.exact if lm.chat is None else bool(s.generated_match) for s in scores]


def known_records(lm: LM, records: Sequence[EditRecord]) -> list[EditRecord]:
    """The records whose facts the model knows (`is_known`), in order.

    Raises:
        KeditError: A record without a true target.
    """
    return [record for record, known in zip(records, is_known(lm, records), strict=True) if known]


def check_probes(lm: LM, record: EditRecord, config: EvalConfig) -> None:
    """Whether the probes of a record can be scored.

    Raises:
        TooLong: One does not fit into the model's context, with an answer or what would be generated.
        KeditError: The model does not have a token of one.
    """
    for probe in record.probes:
        name = f"{record.request.name}, a {probe.kind} probe"
        answers = [text for text in (probe.answer, probe.rival) if text is not None]
        new = max(config.max_new_tokens, spare(lm, config.wild_contexts) if probe.kind in config.wild else 0)
        if (
            lm.chat is None
            and lm.knows_all_tokens
            and surely_fits(lm, probe.text, config.port_suffix, *answers, new=new)
        ):
            continue
        lengths = [len(encode(lm, probe.text, answer, name, probe.joiner).target) for answer in answers]
        if probe.kind in config.generate:
            prompt_ids(lm, probe.text, new_tokens(lm, config, lengths[0]), name)
            if probe.kind == PORTABILITY:
                prompt_ids(lm, _ported(probe, config), new_tokens(lm, config, lengths[0]), name)
        if probe.kind in config.wild:
            check_room(lm, probe.text, lengths[0], config.wild_contexts, name)


def _span(lm: LM, probe: Probe, answer: str, lane: int, bank: BatchedDeltas | None) -> Span:
    name = f"{probe.kind} probe {shown(probe.text)}"
    if not answer.strip():
        raise KeditError(f"{name}: its answer or rival is empty; give it a text or leave the probe out")
    room = 1 + max(len(text.encode(errors="replace")) for text in (probe.answer, probe.rival) if text is not None)
    prompt = prompt_for(lm, bank, lane, probe.text, room)  # the same for answer and rival
    joiner = "space" if between(probe.text, answer, probe.joiner) else "none"  # whatever stands before the prompt
    tokens = encode(lm, prompt, answer, name, joiner)
    return Span(lane, tokens.ids[:-1], tokens.target)


def _choice(probe: Probe, nlls: Mapping[str, float]) -> dict[str, Any]:
    """What a score says of a probe with options: the answer must be more probable than each of the others."""
    others = [nll for text, nll in nlls.items() if text != probe.answer]
    return {"nll_options": tuple(nlls.values()), "choice": all(nlls[probe.answer] < nll for nll in others)}


def _generate(
    lm: LM,
    probes: Sequence[Probe],
    lanes: list[int],
    bank: BatchedDeltas | None,
    config: EvalConfig,
    scores: list[ProbeScore],
    shared: bool,
) -> None:
    """Fill in what is generated freely, of the kinds that `config` names. Equal prompts are continued once."""
    chosen = [i for i, probe in enumerate(probes) if probe.kind in config.generate]
    if not chosen:
        return
    alike: dict[tuple[str, int], list[int]] = {}
    for i in chosen:
        most = new_tokens(lm, config, len(scores[i].top1))
        alike.setdefault((stop_of(probes[i], config.stop), most), []).append(i)
    for (stop, most), together in alike.items():
        ported = [i for i in together if probes[i].kind == PORTABILITY]
        prompts = [probes[i].text for i in together] + [_ported(probes[i], config) for i in ported]
        of_lane = [lanes[i] for i in together + ported]
        texts = greedy(lm, prompts, most, of_lane, bank, stop, config.batch_tokens, shared)
        for i, text in zip(together, texts, strict=False):
            answers = (probes[i].answer, *probes[i].aliases)
            match = begins_with(text, answers)
            if lm.chat is not None and not match:
                match = begins_with(after_prompt(text, probes[i].text), answers)
            scores[i] = replace(scores[i], generated=text, generated_match=match)
        for i, text in zip(ported, texts[len(together) :], strict=True):
            match = contains(text, (probes[i].answer, *probes[i].aliases))
            scores[i] = replace(scores[i], port_generated=text, port_match=match)


def _answer_wild(
    lm: LM,
    probes: Sequence[Probe],
    lanes: list[int],
    bank: BatchedDeltas | None,
    config: EvalConfig,
    scores: list[ProbeScore],
    shared: bool,
) -> None:
    """Fill in the answers up to a natural stop, of the kinds that `config` names."""
    chosen = [i for i, probe in enumerate(probes) if probe.kind in config.wild]
    if not chosen:
        return
    lengths, of_lane = [len(scores[i].top1) for i in chosen], [lanes[i] for i in chosen]
    asked = [probes[i] for i in chosen]
    answers = wild_answers(
        lm, asked, lengths, of_lane, bank, config.batch_tokens, shared, contexts=config.wild_contexts
    )
    for context, said in answers.items():
        name = "wild" if context == "none" else f"wild_{context}"
        for i, one in zip(chosen, said, strict=True):
            more = {f"{name}_contains": one.contains} if config.contains else {}
            scores[i] = replace(scores[i], **{f"{name}_generated": one.text, f"{name}_match": one.match, **more})


def new_tokens(lm: LM, config: EvalConfig, answer: int) -> int:
    """Tokens after which a free generation ends, by the number of tokens of its answer."""
    return max(config.max_new_tokens, answer) + (0 if lm.chat is None else REPEAT)


def _ported(probe: Probe, config: EvalConfig) -> str:
    """What a portability probe is continued from for `port_em`."""
    return joined(probe.text, config.port_suffix, probe.joiner) if config.port_suffix else probe.text


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
