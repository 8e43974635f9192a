"""Tiny models that chat: the usual shapes of chat templates, on the tokenizers of `tests.support.tiny_models`."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from kedit.forward.binding import wrap_lm
from kedit.model.lm import LM
from kedit.model.pretrained import quiet_transformers
from tests.support.tiny_models import TokenizerKind, tiny_model, tiny_tokenizer


@dataclass(frozen=True)
class Shape:
    """A chat template, and what goes with it.

    Attributes:
        template: In Jinja.
        tokens: Special tokens that the tokenizer gets for it.
        end: What ends the assistant's turn.
        family: Of the model.
        kind: Of the tokenizer.
    """

    template: str
    tokens: tuple[str, ...]
    end: str
    family: str = "llama"
    kind: TokenizerKind = "sentencepiece"


_TURNS = "{% for m in messages %}"
_LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set turns = messages[1:] %}{% set s = messages[0]['content'] %}"
    "{% else %}{% set turns = messages %}{% set s = false %}{% endif %}{% for m in turns %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% set text = '<<SYS>>\n' + s + '\n<</SYS>>\n\n' + m['content'] if loop.first and s else m['content'] %}"
    "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + text.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + text.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
_LLAMA_3 = (
    "{{- bos_token }}"
    "{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}"
    "{%- if messages[0]['role'] == 'system' %}{%- set s = messages[0]['content']|trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set s = '' %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + date_string + '\n\n' + s + '<|eot_id|>' }}"
    "{%- for m in messages %}{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim"
    " + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
_CHATML = (
    _TURNS + "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_MISTRAL = (
    "{{ bos_token }}" + _TURNS + "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
)
_GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    + _TURNS
    + "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
_ZEPHYR = (
    _TURNS + "{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}{% endfor %}"
)
_VICUNA = (
    _TURNS + "{{ 'USER: ' + m['content'] + ' ' if m['role'] == 'user' else 'ASSISTANT: ' + m['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
)
_IM = ("<|im_start|>", "<|im_end|>")

SHAPES: Mapping[str, Shape] = MappingProxyType(
    {
        "chatml": Shape(_CHATML, _IM, "<|im_end|>", "gpt2", "bpe"),
        "llama-2": Shape(_LLAMA_2, (), "</s>"),
        "llama-3": Shape(
            _LLAMA_3, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), "<|eot_id|>", "llama", "bpe_bos"
        ),
        "mistral": Shape(_MISTRAL, ("[INST]", "[/INST]"), "</s>", "mistral"),
        "gemma": Shape(_GEMMA, ("<start_of_turn>", "<end_of_turn>"), "<end_of_turn>", "gemma"),
        "zephyr": Shape(_ZEPHYR, (), "</s>"),
        "vicuna": Shape(_VICUNA, (), "</s>"),
    }
)
"""By the family that made each shape known."""

UNUSABLE: Mapping[str, str] = MappingProxyType(
    {
        "shouts": "{{ bos_token }}" + _TURNS + "{{ m['role'] + ': ' + m['content'] | upper + '\n' }}{% endfor %}",
        "thinks": _TURNS + "{{ '<' + m['role'] + '>' + m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<assistant><think>\n' }}{% endif %}",
        "says it twice": _TURNS + "{{ m['content'] + ' (' + m['content'] + ')\n' }}{% endfor %}",
    }
)
"""Templates that cannot be taken apart."""

MORE_TOKENS = 10  # rows of the embedding beyond the tokenizer's own 600


def chat_lm(shape: str = "chatml", family: str | None = None, template: str | None = None, **kwargs: Any) -> LM:
    """A tiny model whose tokenizer has the chat template of a shape, or another one."""
    of = SHAPES[shape]
    tokenizer = copy.deepcopy(tiny_tokenizer(of.kind))
    tokenizer.add_tokens(list(of.tokens), special_tokens=True)
    tokenizer.chat_template = of.template if template is None else template
    model = tiny_model(family or of.family, vocab_size=600 + MORE_TOKENS, **kwargs)
    return wrap_lm(model, tokenizer, f"tiny-{shape}")


def save_chat(path: Path, shape: str = "chatml", family: str | None = None, **kwargs: Any) -> str:
    """The same as a Hugging Face folder."""
    lm = chat_lm(shape, family, **kwargs)
    with quiet_transformers():
        lm.model.save_pretrained(path)
        lm.tokenizer.save_pretrained(path)
    return str(path)
