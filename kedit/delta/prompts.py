"""What a model is asked: the one place that knows of texts that edits put before prompts (`kedit.delta.prompt_memory`).

Whoever measures with a prompt calls `prompt_for` right before the prompt is turned into tokens. Text that is no prompt
is left alone: running text whose perplexity is measured, text that statistics are taken of, contexts and keys of other
methods, and what somebody gives to the model by himself. In a chat the texts are part of the user's message.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kedit.delta.shelf import Found, Shelf, shelves_of
from kedit.model.lm import LM
from kedit.model.tokenization import asked, surely_fits

if TYPE_CHECKING:
    from kedit.delta.lanes import BatchedDeltas


def prompt_for(lm: LM, bank: BatchedDeltas | None, lane: int, text: str, room: int = 0) -> str:
    """A prompt, with what the edits in effect put before it.

    What does not fit into the model's context is left out: demonstrations first, then the facts that are least like the
    prompt. A prompt that leaves no room for any fact is asked as it is.

    Args:
        lm: The model, with what is written into it.
        bank: The deltas that `lane` indexes.
        lane: The lane in which the prompt is asked, -1 for none.
        text: The prompt.
        room: Tokens that must have a place behind it.

    Returns:
        The text itself, unchanged, where no edit has anything to say before it.
    """
    shelf = _in_effect(lm, bank, lane)
    found = None if shelf is None else shelf.find(text)
    return text if found is None else _fitting(lm, found, text, room)


def _in_effect(lm: LM, bank: BatchedDeltas | None, lane: int) -> Shelf | None:
    """What the model and the lane remember, as one shelf."""
    own = None if bank is None or lane < 0 else bank.shelf(lane)
    shelves = [*shelves_of(lm.model), *([] if own is None else [own])]
    if len(shelves) < 2:
        return shelves[0] if shelves else None
    joint = Shelf()  # blocks of `edited` in one another: rare, and small
    for shelf in shelves:
        for memory in shelf.memories:
            joint.add(memory)
    return joint


def _fitting(lm: LM, found: Found, text: str, room: int) -> str:
    for start in range(len(found.pieces)):
        parts = (*found.pieces[start:], found.lead, text)
        whole = "".join(parts)
        if surely_fits(lm, *parts, new=room) or len(asked(lm, whole)) + room <= lm.context_length:
            return whole
    return text
