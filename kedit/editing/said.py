"""Asking a model, edited or not: `ask`, `edited`, and what may stand for an edit: a delta, an `Edit`, a folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import nn

from kedit.delta import apply
from kedit.delta.delta import Delta
from kedit.delta.serialization import CARD, load_delta
from kedit.editing.held import in_use, lm_of, load
from kedit.errors import KeditError, at_least, shown
from kedit.forward.greedy import greedy
from kedit.model.chat import ChatOption, chat_frame
from kedit.model.fingerprint import fingerprint
from kedit.model.lm import LM, LMConfig

ASKED = ChatOption("chat", "leave chat out", "system")


@runtime_checkable
class _HasDelta(Protocol):
    """An `Edit`."""

    delta: Delta

    @property
    def applied(self) -> bool: ...

    @property
    def model(self) -> Any: ...


Change = Delta | _HasDelta | str | Path
"""What stands for an edit: a delta, an `Edit`, or the folder that one was saved in."""


def ask(
    model: Any,
    prompts: str | Sequence[str],
    tokenizer: Any = None,
    deltas: Change | Sequence[Change] = (),
    max_new_tokens: int = 20,
    device: str = "auto",
    chat: bool = False,
    system: str | None = None,
) -> Any:
    """What a model goes on to say, with or without edits. The model is as it was afterwards.

    Args:
        model: An alias, a folder or a hub id (which is loaded for this call: to ask often, load it once with
            `kedit.load_lm`); an `LM`; or a transformers model, with its `tokenizer`.
        prompts: One text, or a list of them; greedily continued.
        tokenizer: Of a transformers model.
        deltas: Edits that are in effect: deltas, `Edit`s, or folders of saved ones.
        max_new_tokens: Tokens after which a continuation ends at the latest.
        device: Of a model that is loaded here: `auto`, `cpu`, `cuda`.
        chat: Ask as a user of a chat, through the tokenizer's chat template; what comes back is the assistant's answer.
        system: The chat's system message; None: the template's own, if it has one.

    Returns:
        One text for one prompt, a list for a list. Each as it follows its prompt.

    Raises:
        KeditError: No such model, no such delta or one of another model, or a prompt that is too long.
    """
    at_least("max_new_tokens", max_new_tokens, 1)
    changes = [deltas] if isinstance(deltas, Delta | _HasDelta | str | Path) else list(deltas)
    check_prompts(prompts)
    for one in changes:
        if isinstance(one, str | Path) and not Path(one, CARD).is_file():
            load_delta(one)  # says what is wrong before a model is loaded
    with ExitStack() as stack:
        if isinstance(model, str | Path):
            lm = load(LMConfig(str(model)), device)
        else:
            if isinstance(held := getattr(model, "model", None) if isinstance(model, LM) else model, nn.Module):
                stack.enter_context(in_use(held))
            lm = lm_of(model, tokenizer)
        stack.enter_context(edited(lm, *changes))
        if system is not None and not chat:
            raise KeditError("system: only a chat has a system message; give chat too")
        lm = lm.in_chat(chat_frame(lm, system, ASKED)) if chat else lm
        return continuations(lm, prompts, max_new_tokens)


def continuations(lm: LM, prompts: str | Sequence[str], max_new_tokens: int) -> Any:
    """Greedy continuations on a model as it is: one text for one, a list for a list.

    Raises:
        KeditError: A prompt that is no text, empty, or too long for the model's context.
    """
    texts = greedy(lm, check_prompts(prompts), max_new_tokens)
    return texts[0] if isinstance(prompts, str) else texts


def check_prompts(prompts: str | Sequence[str]) -> list[str]:
    """The prompts as a list.

    Raises:
        KeditError: One is no text, or empty.
    """
    asked = [prompts] if isinstance(prompts, str) else list(prompts)
    for prompt in asked:
        if not isinstance(prompt, str) or not prompt.strip():
            raise KeditError(f"prompts: expects texts, not {shown(prompt)}")
    return asked


@contextmanager
def edited(model: Any, *edits: Change) -> Iterator[Any]:
    """Inside the block `model` carries the edits; afterwards its weights are the old ones, bit for bit.

    Also after an exception inside the block, or Ctrl-C. Blocks may be nested, and be left in any order.

    Args:
        model: A transformers model or an `LM`, edited in place.
        edits: Deltas, `Edit`s (one that is applied already is not written twice), or folders of saved ones, in order.

    Yields:
        The same model.

    Raises:
        KeditError: An edit does not fit the model, or its folder is damaged or of another model; another thread has a
            block open on the model.
    """
    inner = model.model if isinstance(model, LM) else model
    if not isinstance(inner, nn.Module):
        raise KeditError(f"model: expects a transformers model or an LM, not {shown(model)}")
    deltas = [delta for one in edits if (delta := _delta(model, inner, one)) is not None]
    device = next((parameter.device for parameter in inner.parameters()), None)
    with apply.edited(inner, *(deltas if device is None else [delta.to(device) for delta in deltas])):
        yield model


def _delta(model: Any, inner: nn.Module, change: Any) -> Delta | None:
    """What is to be written; None where it is there already."""
    if isinstance(change, Delta):
        return change
    if isinstance(change, str | Path):
        lm = model if isinstance(model, LM) else None
        delta, card = load_delta(change, lm)
        if lm is None and card.get("model_fingerprint") != (here := fingerprint(inner)):
            raise KeditError(
                f"{change}: this delta is of another model, {shown(card.get('model'))}, or the model here is edited "
                f"already (fingerprint {here}); kedit.load_delta(...)[0] gives the delta without this check"
            )
        return delta
    if isinstance(change, _HasDelta) and isinstance(change.delta, Delta):
        return None if change.applied and change.model is inner else change.delta
    raise KeditError(f"edits: expects a delta, an Edit or the folder of a saved one, not {shown(change)}")
