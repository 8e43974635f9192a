"""Texts to token ids with the positions that editing needs: the subject's span and the target's tokens.

Positions come from the character offsets of a fast tokenizer on the *whole* string, so that no assumption
is made about how a prefix tokenises by itself (BOS or not, leading spaces, SentencePiece or byte-level).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kedit.errors import KeditError

if TYPE_CHECKING:
    from kedit.lm import LM
    from kedit.requests import EditRequest


@dataclass(frozen=True, slots=True)
class Tokens:
    """One text as token ids.

    Attributes:
        ids: Every token: prompt, then target (if there is one).
        n_prompt: How many tokens belong to the prompt; `ids[n_prompt:]` are the target's.
        subject_first: Index of the subject's first token, or -1 if no subject was given.
        subject_last: Index of the subject's last token, or -1 if no subject was given.
    """

    ids: tuple[int, ...]
    n_prompt: int
    subject_first: int = -1
    subject_last: int = -1

    @property
    def target(self) -> tuple[int, ...]:
        """Token ids of the target."""
        return self.ids[self.n_prompt :]


def encode(lm: LM, prompt: str, target: str | None = None, name: str = "prompt") -> Tokens:
    """Encode `prompt`, followed by a space and `target` where there is one.

    The target's tokens are those of the joined text that end after the prompt, so they are the tokens
    that the model would have to generate (no lone "▁" piece, no second BOS).

    Raises:
        KeditError: Empty after tokenising, or longer than the model's context; says `name`.
    """
    return _encode(lm, prompt, target, None, name)


def encode_subject(
    lm: LM, template: str, subject: str, target: str | None = None, context: str = "{}", name: str = "prompt"
) -> Tokens:
    """Encode `context` around `template` filled with `subject`, and find the subject's tokens.

    Args:
        lm: Model and tokenizer.
        template: The request's prompt with one `{}` for the subject.
        subject: Text that fills it.
        target: Continuation, without a leading space.
        context: Text with one `{}` where the whole prompt goes.
        name: Named in errors, e.g. `"record 17"`.

    Returns:
        Tokens with `subject_first` and `subject_last` set; the last token is the one ROME calls
        `subject_last` (baselines 1.0).

    Raises:
        KeditError: No token covers the subject, or the text is longer than the context.
    """
    before, _, after = template.partition("{}")
    lead, _, trail = context.partition("{}")
    start = len(lead) + len(before)
    text = lead + before + subject + after + trail
    return _encode(lm, text, target, (start, start + len(subject)), name)


def check(lm: LM, request: EditRequest) -> None:
    """Whether a request can be encoded.

    Raises:
        KeditError: Its prompt does not fit into the context, or no token covers its subject; names the record.
    """
    name = f"record {request.case_id}"
    if request.subject is None:
        encode(lm, request.prompt, request.target_new, name)
    else:
        encode_subject(lm, request.prompt, request.subject, request.target_new, name=name)


def _encode(lm: LM, prompt: str, target: str | None, span: tuple[int, int] | None, name: str) -> Tokens:
    text = prompt if target is None else f"{prompt} {target}"
    ids, offsets = lm.offsets(text, name)
    n_prompt = len(ids)
    if target is not None:
        n_prompt = next((i for i, (_, end) in enumerate(offsets) if end > len(prompt)), len(ids))
        if n_prompt == len(ids):
            raise KeditError(f"{name}: the target {target!r} has no tokens in this tokenizer")
    if n_prompt == 0:
        raise KeditError(f"{name}: the prompt {prompt!r} has no tokens in this tokenizer")
    if len(ids) > lm.context_length:
        raise KeditError(
            f"{name}: {len(ids)} tokens, more than the {lm.context_length} of the model's context; shorten the prompt"
        )
    first = last = -1
    if span is not None:
        covering = [i for i, (a, b) in enumerate(offsets[:n_prompt]) if a < span[1] and b > span[0] and b > a]
        if not covering:
            raise KeditError(f"{name}: no token of {prompt!r} covers the subject {prompt[slice(*span)]!r}")
        first, last = covering[0], covering[-1]
    return Tokens(tuple(ids), n_prompt, first, last)


def pad_right(rows: list[tuple[int, ...]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Right-pad token ids to one batch.

    Returns:
        `ids: [n, T]` and `mask: [n, T]` (1 where a token is real), both int64.
    """
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[i, : len(row)] = 1
    return ids.to(device), mask.to(device)
