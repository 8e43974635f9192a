"""Reading a model that a user named: an alias, a local folder or a hub id.

Every way in which a model cannot be loaded is a `KeditError` that says what to give instead.
"""

from __future__ import annotations

import json
import logging
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, try_to_load_from_cache
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel

from kedit.errors import KeditError
from kedit.model import pretrained
from kedit.model.architecture import FAMILIES
from kedit.model.full_precision import check_config, check_left_over
from kedit.model.lm import LMConfig
from kedit.model.pretrained import quiet_transformers

log = logging.getLogger(__name__)

_INSTEAD = f"Give a local Hugging Face folder or one of the aliases: {', '.join(pretrained.ALIASES)}"


def read_model(config: LMConfig, device: str | torch.device = "cpu") -> tuple[PreTrainedModel, Any]:
    """The model and the tokenizer that `config` names, on `device`.

    Tensor after tensor goes from the file to the device, so that the CPU's memory never holds a copy of the model.
    Only safetensors are read (nothing is unpickled) and no remote code runs unless `trust_remote_code`.

    Raises:
        KeditError: The model cannot be found, read or edited.
    """
    source = _source(config.name, config.revision)
    shared: dict[str, Any] = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    device = torch.device(device)
    with quiet_transformers():
        with _readable_errors(config.name, "model"):
            hf_config = AutoConfig.from_pretrained(source, **shared)
            check_decoder(hf_config, config.name)
            check_config(hf_config, config.name)
        with _readable_errors(config.name, "tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(source, **shared)
        with _readable_errors(config.name, "model"):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source,
                config=hf_config,
                dtype=dtype_of(config, hf_config, device),
                device_map=None if device.type == "cpu" else {"": device},
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
    return model, tokenizer


def read_config(config: LMConfig) -> PretrainedConfig:
    """The model's own configuration, of which the weights need not be there.

    Raises:
        KeditError: It cannot be found or read, or it is of no decoder that kedit edits.
    """
    source = _source(config.name, config.revision)
    shared: dict[str, Any] = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    with quiet_transformers(), _readable_errors(config.name, "model"):
        found = AutoConfig.from_pretrained(source, **shared)
        check_decoder(found, config.name)
        check_config(found, config.name)
    return found


def read_tokenizer(config: LMConfig) -> Any:
    """The model's tokenizer; None where it is not there."""
    source = _source(config.name, config.revision)
    try:
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(source, revision=config.revision, local_files_only=True)
    except (OSError, ValueError, RuntimeError, ImportError, AttributeError, KeyError, TypeError):
        return None


def dtype_of(config: LMConfig, hf_config: PretrainedConfig, device: torch.device) -> torch.dtype:
    """Type of the weights: the one that was asked for, or the usual one of the device, which the log says."""
    if config.dtype != "auto":
        return getattr(torch, config.dtype)
    own = own_dtype(hf_config)
    if device.type == "cpu":
        if own != torch.float32:
            log.info(
                "%s: weights in float32, as usual on a CPU; its own type is %s (lm.dtype)", config.name, short(own)
            )
        return torch.float32
    log.info("%s: weights in %s, the model's own type; lm.dtype chooses another", config.name, short(own))
    return own


def own_dtype(hf_config: PretrainedConfig) -> torch.dtype:
    """The type of the weights that a model's config names; float32 where it names none that kedit edits."""
    found = getattr(hf_config, "dtype", None) or getattr(hf_config.get_text_config(), "dtype", None)
    if isinstance(found, str):
        found = getattr(torch, found, None)
    return found if found in (torch.float32, torch.bfloat16, torch.float16) else torch.float32


def short(dtype: torch.dtype) -> str:
    """`bfloat16` of `torch.bfloat16`."""
    return str(dtype).removeprefix("torch.")


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


def check_decoder(config: PretrainedConfig, name: str) -> None:
    """Refuse encoder-decoders and bidirectional encoders.

    Only encoders that *can* be decoders have `is_decoder`, and GPT-NeoX, whose False means nothing.
    """
    encoder = getattr(config, "is_decoder", None) is False and config.model_type not in (*FAMILIES, "gpt_neox_japanese")
    if config.is_encoder_decoder or encoder:
        raise KeditError(f"{name}: a {config.model_type} model is not decoder-only; kedit edits causal language models")
