"""`ChatFrame`: what a tokenizer's chat template puts around a user's message, and before the assistant's answer.

The template is rendered with messages that stand for any other. From then on texts are put together from its parts, so
that the place of every character is known. Which texts are prompts, and so are framed: `kedit.model.tokenization`.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from kedit.errors import BROKEN, KeditError, shown

if TYPE_CHECKING:
    from kedit.model.lm import LM

REPEAT = 32
"""Tokens that a generated answer gets beyond those of plain prompts: chat models repeat the prompt first."""

_SAMPLES = (("Kedit asks this.", "Kedit hears that."), ("Who {is} it?\n\nSay.", "Hm: kedit.\n- Yes?"))
_DATE = "%A Friday, %a Fri, %B July, %b Jul, %d 26, %-d 26, %e 26, %m 07, %Y 2024, %y 24, %H 12, %M 00, %S 00"
_NOW = "{%- macro strftime_now(format) -%}{{ format FILTERS }}{%- endmacro %}".replace(
    "FILTERS", " ".join(f"| replace('{code}', '{value}')" for code, value in map(str.split, _DATE.split(", ")))
)
"""What templates that write today's date get in its place: a run must be the same tomorrow."""


@dataclass(frozen=True)
class ChatOption:
    """The option that asks for a chat, as errors call it.

    Attributes:
        name: Its name.
        off: What to do so that prompts are plain.
        system: Name of the option that has the system message.
    """

    name: str = "data.chat"
    off: str = "set data.chat: false"
    system: str = "data.system"


DATA_CHAT = ChatOption()


@dataclass(frozen=True)
class ChatFrame:
    """The parts of a chat of one question and one answer: `before`, the message, `after`, `seam`, the answer.

    Attributes:
        before: All before the user's message, with the template's BOS and its system message.
        after: From the end of the message to where the answer begins: the generation prompt.
        seam: Spaces that belong to the answer's first word, as in `[/INST] Paris`; mostly none.
        end: What ends the assistant's turn, e.g. `<|im_end|>`; `""` where there is nothing.
        end_id: The token that `end` is; None where it is not one token of the model.
        option: What asked for it.
    """

    before: str
    after: str
    seam: str
    end: str
    end_id: int | None
    option: ChatOption = field(default=DATA_CHAT, compare=False)

    def asking(self, message: str) -> str:
        """All that stands before the answer to a message. White space around a message is no part of it."""
        return f"{self.before}{message.strip()}{self.after}"

    def cut(self, answer: str) -> str:
        """An answer without the end of the turn, and what follows it, where these are in its text."""
        return answer.partition(self.end)[0] if self.end else answer

    @cached_property
    def size(self) -> int:
        """Bytes of what is put around a message: it has no more tokens."""
        return len(f"{self.before}{self.after}{self.seam}".encode(errors="replace"))

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that stand for the frame."""
        text = "\0".join((self.before, self.after, self.seam, self.end))
        return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]

    def protocol(self) -> dict[str, Any]:
        """What a protocol says of it: numbers of other frames, or of plain prompts, are of another protocol."""
        return {"chat": True, "chat_frame": self.fingerprint}

    def card(self) -> dict[str, Any]:
        """All of it, JSON-able."""
        about = asdict(self)
        del about["option"]
        return {"frame": self.fingerprint, **about}


def chat_frame(lm: LM, system: str | None = None, option: ChatOption = DATA_CHAT) -> ChatFrame:
    """The frame that the model's chat template makes.

    Args:
        lm: The model: its tokenizer.
        system: The system message; None: the template's own, if it has one. A template that says today's date says
            26 July 2024.
        option: Named in errors.

    Raises:
        KeditError: No template, one that fails, or one that cannot be taken apart; a token that the model lacks.
    """
    if not getattr(lm.tokenizer, "chat_template", None):
        raise KeditError(
            f"{option.name}: the tokenizer of {lm.name} has no chat template; {option.off}, or take a model that chats"
        )
    found = {_frame(lm, system, option, *sample) for sample in _SAMPLES}
    frame = found.pop()
    if frame is None or found:
        raise KeditError(
            f"{option.name}: the chat template of {lm.name} cannot be taken apart: it changes messages, or an answer "
            f"in it does not stand right behind the generation prompt (a model that thinks first?); {option.off}"
        )
    if system and system.strip() not in frame.asking(""):
        raise KeditError(f"{option.system}: the chat template of {lm.name} leaves it out; say it in the prompts")
    ids = lm.tokenizer(frame.asking("a"), add_special_tokens=False)["input_ids"]
    lm.check_ids(ids, f"{option.name}: what the chat template of {lm.name} puts around a prompt")
    return frame


def _frame(lm: LM, system: str | None, option: ChatOption, message: str, answer: str) -> ChatFrame | None:
    """The frame, as one message and one answer show it; None where they are not found in what is rendered."""
    asking = _rendered(lm, system, option, ("user", message))
    answered = _rendered(lm, system, option, ("user", message), ("assistant", answer))
    if [asking.count(message), answered.count(message), answered.count(answer)] != [1, 1, 1]:
        return None
    before, prompt = asking.split(message)
    start, rest = answered.split(message)
    middle, _, rest = rest.partition(answer)
    if start != before or not middle.startswith(prompt.rstrip(" ")):
        return None
    after = middle.rstrip(" ")
    end, end_id = _end(lm, rest.lstrip())
    return ChatFrame(before, after, middle[len(after) :], end, end_id, option)


def _rendered(lm: LM, system: str | None, option: ChatOption, *turns: tuple[str, str]) -> str:
    """A chat as the template writes it; with the generation prompt where the user has the last word."""
    said = turns if system is None else (("system", system), *turns)
    messages = [{"role": role, "content": content} for role, content in said]
    try:
        template = lm.tokenizer.get_chat_template()
        return lm.tokenizer.apply_chat_template(
            messages,
            chat_template=_NOW + template if "strftime_now" in template else template,
            tokenize=False,
            add_generation_prompt=turns[-1][0] == "user",
        )
    except (TemplateError, *BROKEN) as error:
        name = option.name if system is None else option.system
        why = shown(" ".join(str(error).split()), 160)
        raise KeditError(f"{name}: the chat template of {lm.name} refuses such a chat: {why}") from None


def _end(lm: LM, rest: str) -> tuple[str, int | None]:
    """What ends the assistant's turn, given what stands behind its answer, and the token that it is."""
    tokens = {*lm.tokenizer.get_added_vocab(), *lm.special_texts} - {""}
    text = max((token for token in tokens if rest.startswith(token)), key=len, default=None)
    if text is None:
        return rest.partition("\n")[0].rstrip(), None
    end_id = lm.tokenizer.convert_tokens_to_ids(text)
    return text, end_id if end_id < lm.n_tokens else None
