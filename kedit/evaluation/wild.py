"""Free generation to a natural stop, compared as a whole: what WILD demands ("The Mirage of Model Editing", ACL 2025).

The model gets the prompt and nothing of the answer, neither its words nor its length. It writes greedily until it ends
a sentence, a line or the text. What it wrote must be the answer: SQuAD's exact match.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kedit.forward.greedy import greedy
from kedit.model.chat import REPEAT
from kedit.request import Probe
from kedit.text.matching import after_prompt

if TYPE_CHECKING:
    from kedit.delta.lanes import BatchedDeltas
    from kedit.model.lm import LM

TOKENS = 32
"""New tokens at most; more where an answer is longer."""

PERIOD, STOP = ".", ".\n"
"""What ends an answer, besides the model's end-of-text token."""

_PUNCTUATION = str.maketrans("", "", string.punctuation + "“”‘’«»、。")
_ARTICLES = re.compile(r"\b(a|an|the)\b")


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
) -> list[tuple[str, bool]]:
    """What the model says to each probe's bare prompt, up to the natural stop, and whether that is the answer.

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

    Raises:
        TooLong: A prompt that leaves no room; names it.
    """
    alike: dict[tuple[str, int], list[int]] = {}
    for i, probe in enumerate(probes):
        stop = stop_of(probe, STOP)
        if lm.chat is not None:
            stop = "".join(c for c in stop if c not in probe.text)
        alike.setdefault((stop, most_tokens(lm, lengths[i])), []).append(i)
    found: list[tuple[str, bool]] = [("", False)] * len(probes)
    for (stop, most), members in alike.items():
        prompts, of_lane = [probes[i].text for i in members], [lanes[i] for i in members]
        texts = greedy(lm, prompts, most, of_lane, bank, stop, batch_tokens, shared)
        for i, text in zip(members, texts, strict=True):
            said = text if lm.chat is None else after_prompt(text, probes[i].text)
            found[i] = _judged(said, probes[i])
    return found


def _judged(text: str, probe: Probe) -> tuple[str, bool]:
    answers = {normalised(answer) for answer in (probe.answer, *probe.aliases)} - {""}
    ends = [match.start() for match in re.finditer(re.escape(PERIOD), text)] + [len(text)]
    said = [text[:end] for end in ends]  # one, but where the answer holds a period: the generation went on
    right = next((one for one in said if normalised(one) in answers), None)
    return (said[0], False) if right is None else (right, True)


def stop_of(probe: Probe, stop: str) -> str:
    """The characters that end a generation, without those that a right answer holds (a newline, say)."""
    return "".join(c for c in stop if not any(c in text for text in (probe.answer, *probe.aliases)))
