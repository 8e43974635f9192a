"""Texts to token ids with the positions that editing needs: the subject's span and the target's tokens.

Positions come from the character offsets of a fast tokenizer on the *whole* string, so that no assumption
is made about how a prefix tokenises by itself (BOS or not, leading spaces, SentencePiece or byte-level).

What is encoded here is a prompt. Of a model that is asked in a chat (`LM.in_chat`) it is the user's message, whatever
else was put before it, and the target is the assistant's answer. Text that is no prompt goes to `LM.encode`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kedit.errors import KeditError
from kedit.text.prompts import Joiner, between, split

if TYPE_CHECKING:
    from kedit.model.lm import LM
    from kedit.request import EditRequest


_SPARE = 8  # tokens that a tokenizer may put around a text


class TooLong(KeditError):
    """A text that does not fit into the model's context. The message names the record or the prompt."""


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


def encode(lm: LM, prompt: str, target: str | None = None, name: str = "prompt", joiner: Joiner = "auto") -> Tokens:
    """Encode `prompt`, followed by `target` where there is one, with `between` between them.

    The target's tokens are those of the joined text that end after the prompt, so they are the tokens
    that the model would have to generate (no lone "▁" piece, no second BOS).

    Raises:
        TooLong: Longer than the model's context; says `name`.
        KeditError: Empty after tokenising; says `name`.
    """
    return _encode(lm, prompt, target, None, name, joiner)


def encode_target(lm: LM, request: EditRequest) -> Tokens:
    """A request's prompt with its new target as it is trained: `LM.target_end` stands behind it.

    Raises:
        TooLong: It does not fit into the context; names the record.
        KeditError: Empty after tokenising; names the record. Or there is no end-of-text token.
    """
    return _trained(lm, encode(lm, request.text, request.target_new, request.name, request.joiner), request.name)


def encode_subject(
    lm: LM,
    template: str,
    subject: str,
    target: str | None = None,
    context: str = "{}",
    name: str = "prompt",
    joiner: Joiner = "auto",
    trained: bool = False,
) -> Tokens:
    """Encode `context` around `template` filled with `subject`, and find the subject's tokens.

    Args:
        lm: Model and tokenizer.
        template: The request's prompt with one `{}` for the subject.
        subject: Text that fills it.
        target: Continuation, without a leading space.
        context: Text with one `{}` where the whole prompt goes. It stands behind a BOS that the prompt brings; a
            prompt with other special tokens stands alone, whatever the context (see `own_bos`).
        name: Named in errors, e.g. `"record 17"`.
        joiner: What stands between prompt and target; in a chat the template says it.
        trained: The target is trained: `LM.target_end` stands behind it.

    Returns:
        Tokens with `subject_first` and `subject_last` set; the last token is the one ROME calls
        `subject_last` (baselines 1.0).

    Raises:
        TooLong: The text is longer than the model's context.
        KeditError: No token covers the subject.
    """
    before, after = split(template)
    lead, trail = split(context)
    bos = own_bos(lm, before + subject + after) if lead or trail else ""
    if bos is None:
        lead = trail = ""
    elif bos:
        lead, before = bos + lead, before.removeprefix(bos)
    start = len(lead) + len(before)
    text = lead + before + subject + after + trail
    tokens = _encode(lm, text, target, (start, start + len(subject)), name, joiner)
    return _trained(lm, tokens, name) if trained else tokens


def own_bos(lm: LM, prompt: str) -> str | None:
    """The BOS that a prompt begins with as text; `""` where it has no special token.

    None where it has special tokens that make it more than a text, as a chat template's has: nothing can be put before
    such a prompt.
    """
    bos = lm.tokenizer.bos_token or ""
    start = bos if bos and prompt.startswith(bos) else ""
    rest = prompt[len(start) :]
    return None if any(special in rest for special in lm.special_texts) else start


def in_context(lm: LM, context: str, prompt: str) -> str:
    """A prompt in a context with one `{}`, placed as `encode_subject` does."""
    lead, trail = split(context)
    bos = own_bos(lm, prompt) if lead or trail else ""
    return prompt if bos is None else bos + lead + prompt.removeprefix(bos) + trail


def check(lm: LM, request: EditRequest) -> None:
    """Whether a request can be encoded.

    Raises:
        TooLong: Its prompt does not fit into the context; names the record.
        KeditError: No token covers its subject; names the record.
    """
    name, joiner = request.name, request.joiner
    if request.subject is None:
        encode_target(lm, request)
    else:
        subject, target = request.subject, request.target_new
        encode_subject(lm, request.prompt, subject, target, name=name, joiner=joiner, trained=True)


def asked(lm: LM, prompt: str, name: str = "prompt") -> list[int]:
    """The token ids with which a model is asked a prompt, however many they are."""
    return lm.encode(prompt, name) if lm.chat is None else lm.offsets(_in_frame(lm, prompt, name), name, whole=True)[0]


def sayable(lm: LM, text: str) -> str:
    """A text that a model wrote, or a corpus has, as it can stand in a prompt: in a chat without special tokens."""
    for special in lm.special_texts if lm.chat is not None else ():
        text = text.replace(special, " ")
    return text


def _in_frame(lm: LM, prompt: str, name: str) -> str:
    assert lm.chat is not None
    special = next((text for text in lm.special_texts if text in prompt), None)
    if special is not None:
        raise KeditError(
            f"{name}: its text has the special token {special!r}, which a chat leaves to its template; "
            f"take it out, or {lm.chat.option.off}"
        )
    return lm.chat.asking(prompt)


def _encode(lm: LM, prompt: str, target: str | None, span: tuple[int, int] | None, name: str, joiner: Joiner) -> Tokens:
    if lm.chat is None:
        text, end, moved, seam = prompt, len(prompt), 0, between(prompt, target or "", joiner)
    else:
        text, seam = _in_frame(lm, prompt, name), lm.chat.seam
        end, moved = len(text), len(lm.chat.before) - (len(prompt) - len(prompt.lstrip()))
    if target is not None:
        text = f"{text}{seam}{target}"
    ids, offsets = lm.offsets(text, name, whole=lm.chat is not None)
    n_prompt = len(ids)
    if target is not None:
        n_prompt = next((i for i, (_, stop) in enumerate(offsets) if stop > end), len(ids))
        if n_prompt == len(ids):
            raise KeditError(f"{name}: the target {target!r} has no tokens in this tokenizer")
    if n_prompt == 0:
        raise KeditError(f"{name}: the prompt {prompt!r} has no tokens in this tokenizer")
    _check_length(lm, len(ids), name)
    first = last = -1
    if span is not None:
        start, stop = span[0] + moved, span[1] + moved
        covering = [i for i, (a, b) in enumerate(offsets[:n_prompt]) if a < stop and b > start and b > a]
        if not covering:
            raise KeditError(f"{name}: no token of {prompt!r} covers the subject {prompt[slice(*span)]!r}")
        first, last = covering[0], covering[-1]
    return Tokens(tuple(ids), n_prompt, first, last)


def _trained(lm: LM, tokens: Tokens, name: str) -> Tokens:
    """The tokens with what stands behind a target that is trained."""
    ids = tokens.ids + lm.target_end
    _check_length(lm, len(ids), name)
    return replace(tokens, ids=ids)


def _check_length(lm: LM, length: int, name: str) -> None:
    if length > lm.context_length:
        raise TooLong(
            f"{name}: {length} tokens, more than the {lm.context_length} of the model's context; shorten the prompt"
        )


def surely_fits(lm: LM, *texts: str, new: int = 0) -> bool:
    """Whether the texts of a prompt fit into the context with `new` tokens, untokenised: a token is at least a byte."""
    frame = 0 if lm.chat is None else lm.chat.size
    return sum(len(text.encode(errors="replace")) for text in texts) + frame + new + _SPARE <= lm.context_length


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
