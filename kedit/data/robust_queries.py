"""Robust queries: other names, scrambled names and long contexts of every request, drawn once and kept with it.

`with_variants` attaches them (`EditRecord.variants`) with the probes that ask them. Half of each may train
a method that learns to be robust (REP), the other half is its out-of-distribution test. Everything is drawn from
the seed and the record's case id, so a record gets the same whatever records are beside it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from random import Random

from kedit.data.passages import Passages
from kedit.data.scrambled import Unit, parts_of, shuffled
from kedit.errors import KeditError, at_least
from kedit.model.chat import REPEAT
from kedit.model.lm import LM
from kedit.model.tokenization import asked, in_context, own_bos
from kedit.request import EditRecord, EditRequest, Probe, Variants
from kedit.runtime.option_values import check_values
from kedit.text.prompts import escaped, joined, split, trimmed

log = logging.getLogger(__name__)

KINDS = ("paraphrase_id", "paraphrase_ood", "shuffle_id", "shuffle_ood", "long_context", "long_context_id")
REPLACED = "subject_rephrase"  # asks what paraphrase_id and paraphrase_ood ask
LEAST = 4  # names per record: where the data has fewer, templates fill up
RESERVE = 16  # tokens of the context left free after the longest prompt, for free generation

# Phrases around a name that say nothing new about it. The halves share none, so that what trained on one
# record is unseen on all. "the" goes where the prompt has a determiner before its slot.
TEMPLATES_TRAIN = ("the one called {}", "the well-known {}", '"{}"', "{} (that very one)")
TEMPLATES_TEST = ("the one known as {}", "the often mentioned {}", "the so-called {}", "{} (the one you think of)")
DETERMINER = re.compile(r"\b(?:the|a|an|this|that|its|their|his|her|our)\s+$", re.IGNORECASE)


@dataclass
class QueryConfig:
    """Which variants of every request are made, for methods that train on them and for robustness figures.

    Args:
        paraphrases: Most other names of the subject in a record, from its subject_aliases; where it has fewer
            than 4, phrases around the name fill up to 4. The first half trains, the second tests.
        shuffles: Most scrambled subjects in a record; the first half trains, the second tests.
        shuffle_unit: What is scrambled: token, word or character.
        long_contexts: Texts of each length that are put before the prompt as a test, unseen in training.
        train_long: Texts of each length for training, from another half of the corpus.
        long_words: Lengths of long texts, in words.
        long_tokens: Lengths of long texts, in tokens of the model, e.g. [512]; besides those in words.
        corpus: Where long texts come from, as in the statistics: "self" is text that the model writes itself; a
            local text file (.jsonl: one document per line in "text"); or hf:NAME[:CONFIG][:SPLIT][:COLUMN].
        evaluate_train_long: Also ask with the long texts for training (kind long_context_id).
        seed: Of all draws.
    """

    paraphrases: int = 10
    shuffles: int = 10
    shuffle_unit: Unit = "token"
    long_contexts: int = 1
    train_long: int = 5
    long_words: list[int] = field(default_factory=lambda: [300])
    long_tokens: list[int] = field(default_factory=list)
    corpus: str = "self"
    evaluate_train_long: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_values(vars(self), "data.queries")
        for name in ("paraphrases", "shuffles", "long_contexts", "train_long"):
            at_least(f"data.queries.{name}", getattr(self, name), 0)
        for name in ("long_words", "long_tokens"):
            if any(length < 1 for length in getattr(self, name)):
                raise KeditError(f"data.queries.{name}: {getattr(self, name)} has a length less than 1")

    @property
    def long(self) -> bool:
        """Whether any long text is wanted."""
        return bool(self.long_contexts + self.train_long and self.long_words + self.long_tokens)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of probe that a record may get."""
        lengths = bool(self.long_words + self.long_tokens)
        wanted = {
            "paraphrase_id": self.paraphrases > 0,
            "paraphrase_ood": self.paraphrases > 1,
            "shuffle_id": self.shuffles > 0,
            "shuffle_ood": self.shuffles > 1,
            "long_context": lengths and self.long_contexts > 0,
            "long_context_id": lengths and self.train_long > 0 and self.evaluate_train_long,
        }
        return tuple(kind for kind, yes in wanted.items() if yes)


def with_variants(lm: LM, records: Sequence[EditRecord], config: QueryConfig) -> list[EditRecord]:
    """The records with their variants and with a probe for each of them.

    The wanted answer of every probe is `target_new`, its rival `target_true`. `subject_rephrase` probes are
    dropped, because the new ones ask the same. `meta["variants"]` says what the other names are: `aliases`,
    `templates`, `aliases+templates` (absent without any).

    Args:
        lm: The unedited model: its tokenizer, and its own text where the corpus is "self".
        records: May have variants already; they are replaced.
        config: What to draw.

    Raises:
        KeditError: The corpus of the long texts cannot be read or is too short; a record names no subject.
    """
    for record in records:
        record.request.named("data.queries")
    passages = Passages.read(lm, config.corpus) if config.long and records else None
    results, cut = [], 0
    for record in records:
        request = record.request
        train, test, source = names(record, config)
        orders = _orders(lm, request, config, avoid=[*train, *test])
        long: dict[str, tuple[str, ...]] = {}
        if passages is not None:
            if own_bos(lm, request.text) is None:
                raise KeditError(
                    f"{request.name}: its prompt brings special tokens of its own (a chat template's?), so "
                    "no long text can be put before it; set data.queries.long_contexts and data.queries.train_long to 0"
                )
            subjects = [request.named(), *train, *test, *orders]
            long, shortened = _long(passages, request, subjects, config)
            cut += shortened
        half = (len(orders) + 1) // 2
        variants = Variants(train, test, tuple(orders[:half]), tuple(orders[half:]), **long)
        kept = [probe for probe in record.probes if probe.kind not in (REPLACED, *KINDS)]
        meta = {key: value for key, value in record.meta.items() if key != "variants"}
        meta |= {"variants": source} if source else {}
        probes = (*kept, *_probes(lm, request, variants, config))
        results.append(replace(record, probes=probes, meta=meta, variants=variants))
    if cut:
        log.warning("data.queries: %d long texts were cut to fit into the context of %d tokens", cut, lm.context_length)
    return results


def names(record: EditRecord, config: QueryConfig) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """Other names of the subject: those to train with, those to test with, and what they are.

    Four aliases or more are taken as they are, their first half (the larger) to train. Fewer are divided in the
    same way, and each half is filled up with phrases of its own list.
    """
    request, most = record.request, config.paraphrases
    seen = {request.named("data.queries").casefold()}
    aliases: list[str] = []
    for alias in (" ".join(str(name).split()) for name in record.meta.get("subject_aliases") or ()):
        if alias and alias.casefold() not in seen:
            seen.add(alias.casefold())
            aliases.append(alias)
    aliases = aliases[:most]
    goal = max(len(aliases), min(most, LEAST))
    half = (len(aliases) + 1) // 2
    halves = []
    for own, count, templates in (
        (aliases[:half], (goal + 1) // 2, TEMPLATES_TRAIN),
        (aliases[half:], goal // 2, TEMPLATES_TEST),
    ):
        phrases = [text for t in templates if (text := phrase(request, t)).casefold() not in seen]
        chosen = _random(config, request, templates[0]).sample(phrases, min(max(count - len(own), 0), len(phrases)))
        halves.append((*own, *chosen))
    filled = goal > len(aliases)
    source = "+".join(name for name, yes in (("aliases", aliases), ("templates", filled)) if yes)
    return halves[0], halves[1], source


def phrase(request: EditRequest, template: str) -> str:
    """A template filled with the subject, as it can stand in the request's prompt."""
    before = split(request.prompt)[0]
    if DETERMINER.search(before):
        template = template.removeprefix("the ")
    if not before.strip():
        template = template[:1].upper() + template[1:]
    return template.replace("{}", request.named())


def _orders(lm: LM, request: EditRequest, config: QueryConfig, avoid: Sequence[str]) -> list[str]:
    start = len(split(request.prompt)[0])
    parts = parts_of(lm, request.text, start, start + len(request.named()), config.shuffle_unit)
    return shuffled(parts, config.shuffles, _random(config, request, "shuffle"), avoid)


def _long(
    passages: Passages, request: EditRequest, subjects: Iterable[str], config: QueryConfig
) -> tuple[dict[str, tuple[str, ...]], int]:
    """The texts to put before the prompt, cut so that any of `subjects` and any target fits, and how many were."""
    lm = passages.lm
    targets = [target for target in (request.target_new, request.target_true) if target is not None]
    filled = [joined(request.about(name), target, request.joiner) for name in subjects for target in targets]
    room = room_before(lm, filled)
    texts: dict[str, tuple[str, ...]] = {}
    cut = 0
    for name, lines, count in (
        ("long_train", passages.train, config.train_long),
        ("long_test", passages.test, config.long_contexts),
    ):
        random = _random(config, request, name)
        drawn = [text for n in config.long_words for text in passages.draw(lines, count, random, n)]
        drawn += [text for n in config.long_tokens for text in passages.draw(lines, count, random, n, n)]
        fitting = [passages.fit(text, max(room, 0)) for text in drawn]
        cut += sum(a != b for a, b in zip(drawn, fitting, strict=True))
        texts[name] = tuple(dict.fromkeys(text for text in fitting if text))
    return texts, cut


def room_before(lm: LM, texts: Sequence[str]) -> int:
    """Tokens of the context that are left before the longest of some prompts with their targets; may be negative."""
    reserve = RESERVE if lm.chat is None else RESERVE + REPEAT
    return lm.context_length - reserve - max(len(asked(lm, text)) for text in texts)


def _probes(lm: LM, request: EditRequest, variants: Variants, config: QueryConfig) -> list[Probe]:
    texts = {
        "paraphrase_id": _filled(request, variants.paraphrase_train),
        "paraphrase_ood": _filled(request, variants.paraphrase_test),
        "shuffle_id": _filled(request, variants.shuffle_train),
        "shuffle_ood": _filled(request, variants.shuffle_test),
        "long_context": [in_context(lm, f"{escaped(text)} {{}}", request.text) for text in variants.long_test],
        "long_context_id": [in_context(lm, f"{escaped(text)} {{}}", request.text) for text in variants.long_train],
    }
    chosen = ((kind, text) for kind in config.kinds for text in texts[kind])
    return [Probe(kind, text, request.target_new, request.target_true, joiner=request.joiner) for kind, text in chosen]


def _filled(request: EditRequest, subjects: Iterable[str]) -> list[str]:
    return [trimmed(request.about(subject)) for subject in subjects]


def _random(config: QueryConfig, request: EditRequest, what: str) -> Random:
    """A generator of its own for every record and purpose."""
    return Random(f"{config.seed}/{request.case_id}/{what}")
