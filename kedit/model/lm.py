"""A frozen language model with its tokenizer and module map: `LM`, and `load_lm` to get one.

The tokenizer's own policy is kept (does it add a BOS?), never guessed from the model's name. Every way
in which a model cannot be loaded is a `KeditError` that says what to give instead.
"""

from __future__ import annotations

import json
import logging
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import constants, try_to_load_from_cache
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel

from kedit.errors import KeditError
from kedit.forward.self_check import check_structure
from kedit.model import pretrained
from kedit.model.architecture import FAMILIES, check_maps, find_arch
from kedit.model.fingerprint import fingerprint
from kedit.model.full_precision import check_config, check_left_over, check_plain
from kedit.model.pretrained import quiet_transformers

log = logging.getLogger(__name__)

_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
_INSTEAD = f"Give a local Hugging Face folder or one of the aliases: {', '.join(pretrained.ALIASES)}"


@dataclass
class LMConfig:
    """Which language model is edited.

    Args:
        name: An alias (smollm2-135m), a local Hugging Face folder, or a hub id.
        dtype: Type of the frozen weights; deltas and solves keep their own precision.
        revision: Branch, tag or commit of a hub id.
        attn_implementation: Attention kernel (sdpa, eager, flash_attention_2); null lets transformers choose.
        trust_remote_code: Run the Python code that a hub repository brings. Only for authors you trust.
    """

    name: str = "smollm2-135m"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    revision: str | None = None
    attn_implementation: str | None = None
    trust_remote_code: bool = False


class LM:
    """A decoder-only model, frozen and in eval mode, with its fast tokenizer and its module map.

    Args:
        model: Any decoder of transformers. Its parameters are frozen here.
        tokenizer: A fast tokenizer (kedit needs character offsets).
        name: How messages and cards call the model.

    Raises:
        KeditError: A slow tokenizer, quantised weights, or a model that is not a decoder kedit understands; what kedit
            takes it for is tried on it (kedit.forward.self_check).
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
        self.packs: bool | None = None  # whether texts can be packed into one row; kedit.forward.packing finds out
        check_structure(self)

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

    @cached_property
    def pad_id(self) -> int:
        """Filler for batches: the pad token, else EOS, else 0. Always masked, so which one never matters."""
        ids = (self._known(self.tokenizer.pad_token_id), self.eos_id)
        return next((i for i in ids if i is not None), 0)

    def encode(self, text: str, name: str | None = None) -> list[int]:
        """Token ids with the tokenizer's own BOS policy, never with an EOS at the end; raises as `offsets` does."""
        return self.offsets(text, name)[0]

    def offsets(self, text: str, name: str | None = None) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids as `encode` gives them and, for each, its characters `text[start:end]` (BOS: `(0, 0)`).

        Args:
            text: Any text.
            name: How an error calls it, e.g. `"record 17"`; None quotes its beginning.

        Raises:
            KeditError: The tokenizer makes a token of it that the model does not have.
        """
        out = self.tokenizer(text, return_offsets_mapping=True)
        end = len(out["input_ids"]) - self._n_back
        ids, spans = list(out["input_ids"][:end]), [(a, b) for a, b in out["offset_mapping"][:end]]
        self.check_ids(ids, name or f"the text {text[:40]!r}")
        front = self._n_front
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


def wrap_lm(model: PreTrainedModel, tokenizer: Any, name: str) -> LM:
    """An `LM` of a model already in memory (tests, notebooks). The model's parameters are frozen in place."""
    return LM(model, tokenizer, name)


def load_lm(config: LMConfig, device: str | torch.device = "cpu") -> LM:
    """Load the model that `config` names, frozen, in eval mode, on `device`.

    Only safetensors are read (nothing is unpickled) and no remote code runs unless `trust_remote_code`.

    Raises:
        KeditError: The model cannot be found, read or edited.
    """
    start = time.perf_counter()
    source = _source(config.name, config.revision)
    shared: dict[str, Any] = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    with quiet_transformers():
        with _readable_errors(config.name, "model"):
            hf_config = AutoConfig.from_pretrained(source, **shared)
            _check_decoder(hf_config, config.name)
            check_config(hf_config, config.name)
        with _readable_errors(config.name, "tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(source, **shared)
        with _readable_errors(config.name, "model"):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source,
                config=hf_config,
                dtype=getattr(torch, config.dtype),
                attn_implementation=config.attn_implementation,
                use_safetensors=True,
                output_loading_info=True,
                **shared,
            )
    model, info = loaded
    if info["missing_keys"]:
        some = sorted(info["missing_keys"])
        raise KeditError(
            f"{config.name}: {len(some)} tensors are missing from its weights, {some[0]} for one; "
            "the folder is incomplete or holds another kind of model"
        )
    check_left_over(model, info["unexpected_keys"], config.name)
    lm = LM(model.to(device), tokenizer, config.name)
    log.info("loaded %s (%s) on %s in %.1f s", config.name, config.dtype, device, time.perf_counter() - start)
    return lm


def _source(name: str, revision: str | None) -> str:
    """Folder or hub id that transformers should read for an alias, a folder or a hub id."""
    if name in pretrained.ALIASES:
        return str(pretrained.fetch(name))
    folder = Path(os.path.expanduser(name))  # Path.expanduser fails where there is no such user
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise KeditError(f"lm.name: the folder {name} has no config.json; give a Hugging Face model folder")
        return str(folder)
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise KeditError(f"lm.name: there is no folder {name}")
    with _readable_errors(name, "model"):
        if isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str) or _hub_answers():
            return name
    raise KeditError(f"lm.name: {name} is no folder here, and the model hub cannot be reached. {_INSTEAD}")


def _hub_answers() -> bool:
    """Whether the hub can be reached at all: transformers alone would retry for half a minute."""
    if constants.is_offline_mode():
        return False
    try:
        urllib.request.urlopen(constants.ENDPOINT, timeout=10).close()
    except urllib.error.HTTPError:
        return True  # it answered, if only to refuse this page
    except OSError as error:
        return isinstance(getattr(error, "reason", None), ssl.SSLError)  # transformers knows the user's CAs
    return True


@contextmanager
def _readable_errors(name: str, part: str) -> Iterator[None]:
    """Turn what transformers raises for a model or tokenizer that cannot be read into one line."""
    try:
        yield
    except SafetensorError as error:
        raise KeditError(f"{name}: its safetensors file is truncated or damaged ({error})") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise KeditError(f"{name}: a JSON file of its {part} cannot be read ({error})") from None
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        if "ignore_mismatched_sizes" in why:
            why = "tensors in its files have other shapes than its config.json says (quantised, or of another model?)"
        raise KeditError(f"{name}: the {part} cannot be loaded: {why}. {_INSTEAD}") from None


def _check_decoder(config: PretrainedConfig, name: str) -> None:
    """Refuse encoder-decoders and bidirectional encoders.

    Only encoders that *can* be decoders have `is_decoder`, and GPT-NeoX, whose False means nothing.
    """
    encoder = getattr(config, "is_decoder", None) is False and config.model_type not in (*FAMILIES, "gpt_neox_japanese")
    if config.is_encoder_decoder or encoder:
        raise KeditError(f"{name}: a {config.model_type} model is not decoder-only; kedit edits causal language models")


def _special_tokens(tokenizer: Any) -> tuple[int, int]:
    """How many tokens the tokenizer itself puts before and after a text."""
    mask = tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"]
    return mask.index(0), mask[::-1].index(0)
