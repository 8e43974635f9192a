"""Free generation to a natural stop, compared as a whole: what WILD demands ("The Mirage of Model Editing", ACL 2025).

The model gets the prompt and nothing of the answer, neither its words nor its length. It writes greedily until it ends
a sentence, a line or the text. What it wrote must be the answer: SQuAD's exact match. The prompt may stand by itself,
in an instruction, or in a chat: contexts, each with figures of its own.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from kedit.forward.greedy import framed, greedy, prompt_ids
from kedit.model.chat import REPEAT, ChatOption
from kedit.request import Probe
from kedit.text.matching import after_prompt, contains

if TYPE_CHECKING:
    from kedit.delta.lanes import BatchedDeltas
    from kedit.model.lm import LM

TOKENS = 32
"""New tokens at most; more where an answer is longer."""

PERIOD, STOP = ".", ".\n"
"""What ends an answer, besides the model's end-of-text token."""

Context = Literal["none", "qa", "chat"]
"""How a prompt is asked: as the run asks it, in `QA`, in the tokenizer's chat template."""

CHAT = ChatOption("metrics.scoring.wild_contexts", "leave chat out of metrics.scoring.wild_contexts")

CONTEXTS: tuple[Context, ...] = ("none", "qa", "chat")

QA = "Answer the question, or complete the sentence, in as few words as possible.\n\nQuestion: {}\nAnswer:"

_PUNCTUATION = str.maketrans("", "", string.punctuation + "“”‘’«»、。")
_ARTICLES = re.compile(r"\b(a|an|the)\b")


@dataclass(frozen=True, slots=True)
class Said:
    """What a model answered.

    Attributes:
        text: Up to the natural stop.
        match: It is the answer or an alias.
        contains: It says the answer or an alias, anywhere, as words of their own.
    """

    text: str
    match: bool
    contains: bool


def normalised(text: str) -> str:
    """A text as SQuAD compares it: lower case, without punctuation and articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def most_tokens(lm: LM, answer: int) -> int:
    """New tokens at most, by the number of tokens of the answer."""
    return max(TOKENS, answer) + (0 if lm.chat is None else REPEAT)


def wild_answers(
    lm: LM,
    probes: Sequence[Probe],
    lengths: Sequence[int],
    lanes: Sequence[int],
    bank: BatchedDeltas | None = None,
    batch_tokens: int | None = None,
    shared: bool = False,
    contexts: Sequence[Context] = ("none",),
) -> dict[Context, list[Said]]:
    """What the model says to each probe's prompt, up to the natural stop, and whether that is the answer.

    Where the answer or an alias holds a period ("Washington, D.C."), the text may end at any of its periods: the first
    at which it is the answer is taken, or the first of all. In a chat the answer may repeat the prompt first, with its
    periods; what follows is compared.

    Args:
        lm: Model and tokenizer.
        probes: The probes.
        lengths: Tokens of each answer.
        lanes: Lane of each probe, -1 for the unedited model.
        bank: The deltas that `lanes` index.
        batch_tokens: Bound of one batch in padded tokens; None: by device.
        shared: All processes of the run ask for these.
        contexts: How each is asked; prompts of several share the batches.

    Returns:
        For each context an answer per probe.

    Raises:
        TooLong: A prompt that leaves no room; names it.
        KeditError: `chat`, and the tokenizer has no template of use.
    """
    alike: dict[tuple[bool, str, int], list[tuple[Context, int]]] = {}
    for context in contexts:
        asked = asking(lm, context)
        for i, probe in enumerate(probes):
            stop = stop_of(probe, STOP)
            if asked.chat is not None:
                stop = "".join(c for c in stop if c not in probe.text)
            alike.setdefault((asked is lm, stop, most_tokens(asked, lengths[i])), []).append((context, i))
    found: dict[tuple[Context, int], Said] = {}
    for (_, stop, most), members in alike.items():
        asked = asking(lm, members[0][0])
        frames = [_frame(context) for context, _ in members] if any(c == "qa" for c, _ in members) else None
        prompts, of_lane = [probes[i].text for _, i in members], [lanes[i] for _, i in members]
        texts = greedy(asked, prompts, most, of_lane, bank, stop, batch_tokens, shared, frames)
        for (context, i), text in zip(members, texts, strict=True):
            said = text if asked.chat is None else after_prompt(text, probes[i].text)
            found[context, i] = _judged(said, probes[i])
    return {context: [found[context, i] for i in range(len(probes))] for context in contexts}


def asking(lm: LM, context: Context) -> LM:
    """The model as it is asked in a context.

    Raises:
        KeditError: `chat`, and the tokenizer has no template of use.
    """
    return lm.chatting(CHAT) if context == "chat" else lm


def check_room(lm: LM, prompt: str, answer: int, contexts: Sequence[Context], name: str) -> None:
    """Whether a prompt can be asked in all contexts.

    Args:
        lm: Model and tokenizer.
        prompt: The prompt.
        answer: Number of its answer's tokens.
        contexts: How it is asked.
        name: Named in errors.

    Raises:
        TooLong: It leaves no room for what is generated.
        KeditError: `chat`, and a special token in it, or a tokenizer without a template of use.
    """
    for context in contexts:
        asked = asking(lm, context)
        prompt_ids(asked, framed(asked, _frame(context), prompt), most_tokens(asked, answer), name)


def spare(lm: LM, contexts: Sequence[Context]) -> int:
    """No more tokens than these come with a prompt of a short answer: what stands around it, and what is generated."""
    around = [len(_frame(context)) for context in contexts]
    if "chat" in contexts and lm.chat is None:
        chat = asking(lm, "chat").chat
        around.append(0 if chat is None else chat.size + REPEAT)
    return TOKENS + max(around)


def _frame(context: Context) -> str:
    return QA if context == "qa" else ""


def _judged(text: str, probe: Probe) -> Said:
    answers = (probe.answer, *probe.aliases)
    right = {normalised(answer) for answer in answers} - {""}
    ends = [match.start() for match in re.finditer(re.escape(PERIOD), text)] + [len(text)]
    said = [text[:end] for end in ends]  # one, but where the answer holds a period: the generation went on
    match = next((one for one in said if normalised(one) in right), None)
    return Said(said[0] if match is None else match, match is not None, contains(_sentence(text, answers), answers))


def _sentence(text: str, answers: Sequence[str]) -> str:
    """A text up to the first period that is no part of an answer."""
    spans = [m.span() for a in answers if PERIOD in a for m in re.finditer(re.escape(a), text, re.IGNORECASE)]
    ends = (m.start() for m in re.finditer(re.escape(PERIOD), text))
    return text[: next((end for end in ends if not any(a <= end < b for a, b in spans)), len(text))]


def stop_of(probe: Probe, stop: str) -> str:
    """The characters that end a generation, without those that a right answer holds (a newline, say)."""
    return "".join(c for c in stop if not any(c in text for text in (probe.answer, *probe.aliases)))
