"""Models that kedit edits, loaded or taken as they are, and tried: what kedit takes them for is what they are.

Here rather than in `kedit.model`, since trying a model means running it.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import torch
from transformers import PreTrainedModel

from kedit.forward.self_check import check_structure
from kedit.model.lm import LM, LMConfig
from kedit.model.loading import read_model, short

log = logging.getLogger(__name__)


def wrap_lm(model: PreTrainedModel, tokenizer: Any, name: str) -> LM:
    """An `LM` of a model already in memory (tests, notebooks). The model's parameters are frozen in place.

    Args:
        model: Any decoder of transformers.
        tokenizer: A fast tokenizer.
        name: How messages and cards call the model.

    Raises:
        KeditError: kedit cannot edit it; names the check that failed.
    """
    lm = LM(model, tokenizer, name)
    check_structure(lm)
    return lm


def load_lm(config: LMConfig, device: str | torch.device = "cpu") -> LM:
    """Load the model that `config` names, frozen, in eval mode, on `device`.

    Only safetensors are read (nothing is unpickled) and no remote code runs unless `trust_remote_code`.

    Raises:
        KeditError: The model cannot be found, read or edited.
    """
    start = time.perf_counter()
    model, tokenizer = read_model(config, device)
    lm = wrap_lm(model, tokenizer, config.name)
    lm.compiles = config.compile
    log.info("loaded %s (%s) on %s in %.1f s", config.name, short(lm.dtype), device, time.perf_counter() - start)
    return lm
