"""`LM`: a frozen language model with its tokenizer and module map. How one is got is in `kedit.forward.binding`.

The tokenizer's own policy is kept (does it add a BOS?), never guessed from the model's name.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from kedit.errors import KeditError
from kedit.model.architecture import check_maps, find_arch
from kedit.model.chat import ChatFrame, ChatOption, chat_frame
from kedit.model.fingerprint import fingerprint
from kedit.model.full_precision import check_plain
from kedit.runtime.room import Room

_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


@dataclass
class LMConfig:
    """Which language model is edited.

    Args:
        name: An alias (smollm2-135m), a local Hugging Face folder, or a hub id.
        dtype: Type of the frozen weights; deltas and solves keep their own precision. auto: float32 on a CPU, and what
            the model's config says on a GPU.
        revision: Branch, tag or commit of a hub id.
        attn_implementation: Attention kernel (sdpa, eager, flash_attention_2); null lets transformers choose.
        trust_remote_code: Run the Python code that a hub repository brings. Only for authors you trust.
        compile: The layers that every step of v* runs go through `torch.compile`: a minute before the first edit,
            faster steps after it, and numbers that differ by rounding. Other passes run as ever.
    """

    name: str = "smollm2-135m"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    revision: str | None = None
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    compile: bool = False


class LM:
    """A decoder-only model, frozen and in eval mode, with its fast tokenizer and its module map.

    Nothing has been tried on it yet: `kedit.forward.binding` makes one of which that can be said.

    Args:
        model: Any decoder of transformers. Its parameters are frozen here.
        tokenizer: A fast tokenizer (kedit needs character offsets).
        name: How messages and cards call the model.

    Attributes:
        chat: What stands around a prompt; None: nothing, prompts are plain text (`in_chat`).
        ends_targets: Whether a target that is trained ends with the token that ends a text (`ending_targets`).
        compiles: Whether the layers that v* replays run through `torch.compile`.
        room: How much work with it is known to fit into memory at once.

    Raises:
        KeditError: A slow tokenizer, quantised weights, or a model that is not a decoder kedit understands.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Any, name: str) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise KeditError(
                f"{name}: its tokenizer ({type(tokenizer).__name__}) is a slow one; kedit needs the "
                "character offsets of a fast one. Convert it once, so that the folder holds a tokenizer.json"
            )
        check_plain(model, name)
        config = model.config.get_text_config()
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name
        self.arch = find_arch(model)
        check_maps(self.arch, model, name)
        self.d_model: int = config.hidden_size
        lengths = (getattr(config, key, None) for key in _CONTEXT_KEYS)
        self.context_length: int = next((n for n in lengths if n), 2048)
        self._n_front, self._n_back = _special_tokens(tokenizer)
        self.check_ids(tokenizer("a")["input_ids"][: self._n_front], f"{name}: what its tokenizer puts before texts")
        self._packs: bool | None = None
        self.chat: ChatFrame | None = None
        self._chatting: dict[ChatOption, LM] = {}
        self.ends_targets = False
        self.compiles = False
        self.room = Room()

    def in_chat(self, frame: ChatFrame | None) -> LM:
        """The same model, asked in a chat: its prompts stand in the frame. Text that is no prompt is as ever."""
        other = copy(self)
        other.chat = frame
        other._chatting = {}
        return other

    def chatting(self, option: ChatOption) -> LM:
        """The same model, asked in the chat of its own template; itself where it is asked in one already.

        Args:
            option: What asks for a chat.

        Raises:
            KeditError: Its tokenizer has no template of use (`chat_frame`).
        """
        if self.chat is not None:
            return self
        if option not in self._chatting:
            self._chatting[option] = self.in_chat(chat_frame(self, option=option))
        return self._chatting[option]

    def ending_targets(self, ends: bool) -> LM:
        """The same model, whose trained targets end with `end_id`, or do not. Nothing that is measured knows of it."""
        if ends == self.ends_targets:
            return self
        other = copy(self)
        other.ends_targets = ends
        other._chatting = {}
        return other

    @property
    def target_end(self) -> tuple[int, ...]:
        """What stands behind a target that is trained: nothing, or the token that ends a text.

        Raises:
            KeditError: There is no such token.
        """
        if not self.ends_targets:
            return ()
        if self.end_id is None:
            raise KeditError(f"edit.target_eos: the tokenizer of {self.name} has no end-of-text token; set it to false")
        return (self.end_id,)

    @property
    def protocol(self) -> dict[str, Any]:
        """What a protocol says of how it is asked: nothing of plain prompts."""
        return {} if self.chat is None else self.chat.protocol()

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.model.dtype

    @property
    def vocab_size(self) -> int:
        """Width of the logits; some models pad it beyond the tokenizer's last token."""
        return self.model.config.get_text_config().vocab_size

    @property
    def packs(self) -> bool | None:
        """Whether texts can be packed into one row; None: nobody has tried yet (`kedit.forward.packing` does)."""
        return self._packs

    def note_packing(self, possible: bool) -> None:
        """Remembers whether texts can be packed into one row."""
        self._packs = possible

    @cached_property
    def fingerprint(self) -> str:
        """Content hash of the weights as they are at the *first* access: ask for it before any edit."""
        return fingerprint(self.model)

    @property
    def adds_bos(self) -> bool:
        """Whether the tokenizer puts a token of its own before every text."""
        return self._n_front > 0

    @cached_property
    def n_tokens(self) -> int:
        """Rows of the token embedding: the model knows the ids below. A tokenizer with added tokens may have more."""
        return self.arch.embed(self.model).get_parameter("weight").shape[0]

    @property
    def eos_id(self) -> int | None:
        """The tokenizer's end-of-text token; None where it has none, or one that the model does not know."""
        return self._known(self.tokenizer.eos_token_id)

    @property
    def end_id(self) -> int | None:
        """The token that ends an answer: the assistant's turn in a chat, otherwise (and if it is none) the text."""
        end = None if self.chat is None else self.chat.end_id
        return self.eos_id if end is None else end

    @cached_property
    def pad_id(self) -> int:
        """Filler for batches: the pad token, else EOS, else 0. Always masked, so which one never matters."""
        ids = (self._known(self.tokenizer.pad_token_id), self.eos_id)
        return next((i for i in ids if i is not None), 0)

    def encode(self, text: str, name: str | None = None) -> list[int]:
        """Token ids with the tokenizer's own BOS policy, never with an EOS at the end; raises as `offsets` does."""
        return self.offsets(text, name)[0]

    def offsets(
        self, text: str, name: str | None = None, whole: bool = False
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids as `encode` gives them and, for each, its characters `text[start:end]` (BOS: `(0, 0)`).

        Args:
            text: Any text.
            name: How an error calls it, e.g. `"record 17"`; None quotes its beginning.
            whole: The text has all its special tokens, as a chat has: the tokenizer adds none.

        Raises:
            KeditError: The tokenizer makes a token of it that the model does not have.
        """
        out = self.tokenizer(text, return_offsets_mapping=True, add_special_tokens=not whole)
        end = len(out["input_ids"]) - (0 if whole else self._n_back)
        ids, spans = list(out["input_ids"][:end]), [(a, b) for a, b in out["offset_mapping"][:end]]
        self.check_ids(ids, name or f"the text {text[:40]!r}")
        front = 0 if whole else self._n_front
        if front and ids[front : 2 * front] == ids[:front]:  # the text brings the tokenizer's BOS itself: one is enough
            ids, spans = ids[front:], spans[front:]
        return ids, spans

    @cached_property
    def special_texts(self) -> tuple[str, ...]:
        """The special tokens, as they are written in a text."""
        added = self.tokenizer.added_tokens_decoder.values()
        found = [*self.tokenizer.all_special_tokens, *(token.content for token in added if token.special)]
        return tuple(dict.fromkeys(found))

    @cached_property
    def knows_all_tokens(self) -> bool:
        """Whether the model has every token that its tokenizer may make of a text."""
        return max(self.tokenizer.get_vocab().values(), default=0) < self.n_tokens

    def check_ids(self, ids: Sequence[int], name: str) -> None:
        """Refuse token ids that the embedding has no row for.

        Raises:
            KeditError: Names the text and the token.
        """
        if max(ids, default=0) < self.n_tokens:
            return
        unknown = next(i for i in ids if i >= self.n_tokens)
        raise KeditError(
            f"{name}: the model does not have the token {self.tokenizer.convert_ids_to_tokens(unknown)!r} ({unknown}) "
            f"of its tokenizer, only those below {self.n_tokens}. Leave it out, or resize the model's embeddings"
        )

    def _known(self, token: int | None) -> int | None:
        return token if token is not None and 0 <= token < self.n_tokens else None

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, as it is: special tokens are shown, spaces are not tidied."""
        return self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)


def _special_tokens(tokenizer: Any) -> tuple[int, int]:
    """How many tokens the tokenizer itself puts before and after a text."""
    mask = tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"]
    return mask.index(0), mask[::-1].index(0)
