"""Latent positioning: the mean hidden state with which a model says an object by itself (STEAM; specs/steam.md 3).

Every distinct object is positioned once, on the unedited model, for all layers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kedit.forward.residual_stream import last_states, states
from kedit.methods.steam.config import RECALLS, AnchorConfig, Recall
from kedit.methods.steam.pool import Pool, Reference, normal
from kedit.methods.steam.sampling import stratified
from kedit.model.tokenization import encode, in_context
from kedit.request import EditRecord, EditRequest

if TYPE_CHECKING:
    from kedit.model.lm import LM

TOP = 5  # of `first_topk`
VERSION = 2  # of what is kept on disk: raised when the same options would give other anchors, or another card
SOURCES = ("multi_relation", "single_relation", "string_match", "in_context", "none")
"""Where an anchor comes from: references of several relations, of one, of a looser name of the object; the model told
the fact; nowhere."""


@dataclass(frozen=True)
class Anchor:
    """The anchor of one object.

    Attributes:
        mean: phi, `[n_layers, d_model]` float32: the mean state where the object is predicted; None of source `none`.
        n: References (or contexts) that it averages.
        relations: How many relations they have.
        source: One of `SOURCES`.
        recall: By which rule they count as known; `best_ranked` where no rule left enough; None in context.
        asked: References that the model was asked about.
        known: How many of them passed the rule that was configured.
        hidden: The states of the references, `[n, n_layers, d_model]`, where they were asked for.
        used: The references.
    """

    mean: Tensor | None
    n: int = 0
    relations: int = 0
    source: str = "none"
    recall: str | None = None
    asked: int = 0
    known: int = 0
    hidden: Tensor | None = None
    used: tuple[Reference, ...] = ()

    def card(self) -> dict[str, object]:
        """What results keep of it."""
        names = ("source", "n", "relations", "recall", "asked", "known")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Leaks:
    """What an anchor must not see (specs/steam.md 6).

    Attributes:
        subjects: Subjects edited in the run, casefolded.
        texts: Per object (`normal`), the prompts that are scored for the records that get it.
        own: Cases per object, whose attribute prompts `exclude_own_attribute` leaves out.
    """

    subjects: frozenset[str]
    texts: dict[str, frozenset[str]]
    own: dict[str, frozenset[str]]

    @classmethod
    def of(cls, records: Sequence[EditRecord]) -> Leaks:
        """Of the records of a run."""
        texts: dict[str, set[str]] = {}
        own: dict[str, set[str]] = {}
        for record in records:
            name = normal(record.request.target_new)
            scored = {record.request.text, *(probe.text for probe in record.probes)}
            texts.setdefault(name, set()).update(scored)
            own.setdefault(name, set()).add(record.request.case_id)
        subjects = {r.request.subject.casefold() for r in records if r.request.subject is not None}
        frozen = {name: frozenset(own_texts) for name, own_texts in texts.items()}
        return cls(frozenset(subjects), frozen, {name: frozenset(cases) for name, cases in own.items()})

    def keep(self, references: Iterable[Reference], name: str, strict: bool) -> list[Reference]:
        """References that may be used for the object `name` (`normal`)."""
        scored, own = self.texts.get(name, frozenset()), self.own.get(name, frozenset())
        found = []
        for reference in references:
            text = reference.text.casefold()
            if reference.text in scored or (strict and reference.case in own):
                continue
            if not any(subject in text for subject in self.subjects):
                found.append(reference)
        return found


def position(lm: LM, request: EditRequest, answer_id: str | None, pool: Pool, leaks: Leaks, config: AnchorConfig,
             contexts: Sequence[str] = ("{}",), keep_hidden: bool = False) -> Anchor:  # fmt: skip
    """The anchor of a request's new object, from the first source that gives `n_min` references.

    Args:
        lm: The model, unedited.
        request: Whose `target_new` is positioned.
        answer_id: The object's id, where the data has one.
        pool: Where references are looked up.
        leaks: What they must not say.
        config: How.
        contexts: Templates with one `{}` for the fallback `in_context`.
        keep_hidden: Keep the references' own states in `Anchor.hidden`.

    Returns:
        The anchor; its source is `none` where nothing was found and `in_context` is off.
    """
    answer, name = request.target_new, normal(request.target_new)
    strict = config.exclude_own_attribute
    references = leaks.keep(pool.lookup(answer, answer_id), name, strict)
    looser = False
    if len(references) < config.n_min:
        more = [r for r in leaks.keep(pool.alike(answer), name, strict) if r not in references]
        looser, references = bool(more), [*references, *more]
    if len(references) >= config.n_min:
        anchor = _of_references(lm, references, config, f"{config.seed}/{name}", keep_hidden)
        source = "string_match" if looser else "multi_relation" if anchor.relations > 1 else "single_relation"
        return replace(anchor, source=source)
    if config.in_context:
        return _in_context(lm, request, contexts, keep_hidden)
    return Anchor(None)


def _of_references(lm: LM, references: list[Reference], config: AnchorConfig, seed: str, keep_hidden: bool) -> Anchor:
    """Asks the model about the references, keeps those that it knows, and averages a stratified sample of them."""
    asked = [references[i] for i in stratified(references, config.candidates, seed, cap=config.candidates)]
    hidden, ranks, greedy = _said(lm, asked)
    passed = {
        "greedy": greedy,
        "first_top1": [rank == 0 for rank in ranks],
        "first_topk": [rank < TOP for rank in ranks],
    }
    rules: Sequence[Recall] = RECALLS[RECALLS.index(config.recall) :]
    rule: str = next((rule for rule in rules if sum(passed[rule]) >= config.n_min), "best_ranked")
    if rule == "best_ranked":
        known = sorted(range(len(asked)), key=lambda i: (ranks[i], asked[i].text))[: config.n_min]
    else:
        known = [i for i, yes in enumerate(passed[rule]) if yes]
    chosen = [known[i] for i in stratified([asked[i] for i in known], config.n_max, seed)]
    used = tuple(asked[i] for i in chosen)
    own = hidden[chosen]
    return Anchor(
        mean=_mean(own, used, config.macro_mean),
        n=len(chosen),
        relations=len({reference.relation for reference in used}),
        recall=rule,
        asked=len(asked),
        known=sum(passed[config.recall]),
        hidden=own if keep_hidden else None,
        used=used,
    )


def _mean(hidden: Tensor, used: Sequence[Reference], macro: bool) -> Tensor:
    if not macro:
        return hidden.mean(0)
    groups: dict[str | None, list[int]] = {}
    for i, reference in enumerate(used):
        groups.setdefault(reference.relation, []).append(i)
    return torch.stack([hidden[members].mean(0) for members in groups.values()]).mean(0)


def _in_context(lm: LM, request: EditRequest, contexts: Sequence[str], keep_hidden: bool) -> Anchor:
    """The model's own state once it was told the fact: "{prompt} {object}. {prompt}", in some contexts."""
    said = f"{request.stating(request.target_new)}. {request.text}"
    rows = [encode(lm, in_context(lm, context, said), name=request.name).ids for context in contexts]
    hidden = last_states(lm, rows)
    return Anchor(hidden.mean(0), len(rows), 1, "in_context", hidden=hidden if keep_hidden else None)


def _said(lm: LM, references: Sequence[Reference]) -> tuple[Tensor, list[int], list[bool]]:
    """States where the objects are predicted, the rank of their first tokens, and whether greedy decoding says them.

    Returns:
        `[n, n_layers, d_model]`; for each reference the number of tokens more probable than the object's first; and
        whether every token of it is the argmax.
    """
    tokens = [encode(lm, r.text, r.answer, f"the anchors' reference {r.text[:40]!r}", r.joiner) for r in references]
    ranks, greedy = [0] * len(tokens), [False] * len(tokens)

    def last(part: list[int], state: Tensor) -> None:
        where = [(row, tokens[i].n_prompt - 1 + k) for row, i in enumerate(part) for k in range(len(tokens[i].target))]
        rows, columns = (torch.tensor(x, device=state.device) for x in zip(*where, strict=True))
        logits = lm.arch.logits(lm.model, state[rows, columns]).float()
        at = 0
        for i in part:
            target = torch.tensor(tokens[i].target, device=logits.device)
            own = logits[at : at + len(target)]
            ranks[i] = int((own[0] > own[0, target[0]]).sum())
            greedy[i] = bool((own.argmax(-1) == target).all())
            at += len(target)

    hidden = states(lm, [(-1, t.ids[:-1]) for t in tokens], [t.n_prompt - 1 for t in tokens], last=last)
    return hidden, ranks, greedy


def recipe(lm: LM, pool: Pool, leaks: Leaks, config: AnchorConfig) -> str:
    """16 hex digits that stand for everything that anchors of a run depend on."""
    parts = [str(VERSION), lm.fingerprint, str(lm.dtype), pool.fingerprint, repr(sorted(leaks.subjects)), repr(config)]
    parts += [repr(sorted((k, sorted(v)) for k, v in x.items())) for x in (leaks.texts, leaks.own)]
    parts += [] if lm.chat is None else [lm.chat.fingerprint]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
