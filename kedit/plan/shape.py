"""A model of which nothing is there but its shape: on the `meta` device, which keeps no number and computes none."""

from __future__ import annotations

import copy
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerFast

from kedit.errors import KeditError
from kedit.model.lm import LM, LMConfig
from kedit.model.loading import dtype_of, read_config, read_tokenizer
from kedit.model.pretrained import quiet_transformers
from kedit.plan.attention import register


class ShapeLM(LM):
    """An `LM` without weights: its modules say what there is to edit, and passes what memory they take."""

    fingerprint = "none"  # type: ignore[assignment]

    @property
    def device(self) -> torch.device:
        """No device."""
        return torch.device("meta")


def shape_lm(config: LMConfig, device: str) -> tuple[ShapeLM, bool]:
    """The shape of the model that `config` names, with its weights' type on a device.

    Args:
        config: The model; of its folder only config.json must be there.
        device: `cpu` or `cuda`, which decides the usual type of the weights.

    Returns:
        The shape, and whether its tokenizer is the model's own.

    Raises:
        KeditError: There is no config, or it is of no model that kedit edits.
    """
    found = read_config(config)
    own = read_tokenizer(config)
    tokenizer = own if getattr(own, "is_fast", False) else bytes_tokenizer()
    return shape_of_config(
        found, dtype_of(config, found, torch.device(device)), tokenizer, config.name
    ), own is tokenizer


def shape_of_config(found: PretrainedConfig, dtype: torch.dtype, tokenizer: Any, name: str) -> ShapeLM:
    """The same of a configuration at hand.

    Raises:
        KeditError: It is of no model that kedit edits.
    """
    found = copy.deepcopy(found)
    try:
        with quiet_transformers(), torch.device("meta"):
            try:
                model = AutoModelForCausalLM.from_config(found, dtype=dtype, attn_implementation=register())
            except (ValueError, ImportError):  # a family with an attention of its own
                model = AutoModelForCausalLM.from_config(found, dtype=dtype)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise KeditError(f"{name}: no model can be made of its config.json: {why}") from None
    return ShapeLM(model, tokenizer, name)


def bytes_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer without training: about one token per character, which suffices for random models."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({token: i for i, token in enumerate(["<eos>", *alphabet])}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>")
