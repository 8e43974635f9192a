"""Every decoder type that transformers has: a tiny random one, what kedit says of it, and whether that is true.

`python -m tests.support.families` tries them all (minutes) and compares with `kedit/model/known_models.json`;
`--write` writes that table; names of types try those alone. A type is

- `right`: it is accepted, and an edit on it does what full forward passes say that it should (`prove`);
- `refused`: a `KeditError` says why;
- `not tried`: no tiny one can be built here, with the reason;
- `wrong`: accepted, and an edit on it goes wrong. There must be none.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from kedit.errors import BROKEN, KeditError
from kedit.forward.binding import wrap_lm
from kedit.model import known_models
from kedit.model.known_models import Known
from kedit.model.loading import check_decoder
from kedit.model.pretrained import quiet_transformers
from tests.support.family_proof import Wrong, prove
from tests.support.tiny_models import spread, tiny_tokenizer

TYPES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
MOST = 20_000_000  # parameters of a tiny model

# What the usual sizes are called. A type's config gets those of the keys that it has.
SIZES: dict[int, str] = {
    600: "vocab_size",
    256: "max_position_embeddings n_positions max_seq_len n_ctx",
    80: "intermediate_size ffn_dim n_inner decoder_ffn_dim encoder_ffn_dim ffn_hidden_size d_ff d_inner dim_ff",
    40: "moe_intermediate_size expert_ffn_hidden_size image_size",
    32: "hidden_size d_model n_embd dim emb_dim word_embed_proj_dim embedding_size hidden_dim d_embed",
    16: "q_lora_rank kv_lora_rank o_lora_rank patch_size",
    8: "head_dim attention_head_dim qk_rope_head_dim qk_nope_head_dim v_head_dim d_kv mamba_n_heads",
    4: "num_hidden_layers n_layers n_layer num_layers decoder_layers encoder_layers num_decoder_layers depth "
    "num_encoder_layers num_attention_heads n_heads n_head num_heads decoder_attention_heads encoder_attention_heads "
    "num_decoder_attention_heads num_encoder_attention_heads num_experts num_local_experts n_routed_experts "
    "moe_num_experts",
    2: "num_key_value_heads num_kv_heads num_experts_per_tok moe_k top_k n_group topk_group moe_topk moe_top_k "
    "expansion_ratio",
}

# What some need beside them.
MORE: dict[str, dict[str, Any]] = {
    "gptj": {"rotary_dim": 4},
    "codegen": {"rotary_dim": 4},
    "moshi": {"sliding_window": 256},  # its cache slides and its attention does not: never shorter than a text
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "mamba2": {"num_heads": 8},
    "zamba2": {"hybrid_layer_ids": [1, 3]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "minicpm3": {"num_key_value_heads": 4},
    "youtu": {"num_key_value_heads": 4},
    "dots1": {"num_key_value_heads": 4},
    "dots3_note_text": {"num_key_value_heads": 4},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gemma4_unified_assistant": {"num_kv_shared_layers": 0},
    "gemma4_assistant": {"hidden_size_per_layer_input": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "gemma4_text": {"vocab_size_per_layer_input": 600, "hidden_size_per_layer_input": 8},
    "reformer": {"is_decoder": True},
    "zaya": {"num_experts_per_tok": 1},
}


def tiny_config(kind: type[PretrainedConfig], model_type: str = "") -> PretrainedConfig:
    """A config of `kind` with the usual sizes made small, also in the configs inside it."""
    base = kind()
    has = base.to_dict().keys() | kind.attribute_map.keys()
    keys: dict[str, Any] = {key: size for size, names in SIZES.items() for key in names.split() if key in has}
    kinds = list(dict.fromkeys(getattr(base, "layer_types", None) or ()))
    own = kind.attribute_map.get("layer_types", "layer_types")
    if 1 < len(kinds) <= 4 and not isinstance(getattr(kind, own, None), property):
        keys["layer_types"] = [kinds[i % len(kinds)] for i in range(4)]
    if isinstance(getattr(base, "sliding_window", None), int):
        keys["sliding_window"] = 8
    keys |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    inside: Any = kind.sub_configs
    for name in inside:
        inner = getattr(base, name, None)
        if isinstance(inner, PretrainedConfig):
            keys[name] = tiny_config(type(inner), str(inner.model_type)).to_dict()
    return kind(**(keys | MORE.get(model_type, {})))


def tiny_of(model_type: str) -> PreTrainedModel:
    """A tiny random model of any type.

    Raises:
        KeditError: It cannot be built; says why.
    """
    try:
        config = tiny_config(CONFIG_MAPPING[model_type], model_type)
        with torch.device("meta"):
            size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
        if size > MOST:
            raise KeditError(f"the usual keys of a config leave it {size / 1e6:,.0f} million parameters")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            spread(model)
    except (ImportError, StrictDataclassError, *BROKEN) as error:
        raise KeditError(f"no tiny one can be built: {_line(error)[:120]}") from error
    return model.eval()


def try_type(model_type: str) -> Known:
    """Build a tiny model of a type, bind it, and prove an edit on it."""
    with quiet_transformers():
        try:
            model = tiny_of(model_type)
        except KeditError as error:
            return Known("not tried", str(error))
        try:
            check_decoder(model.config, model_type)
            lm = wrap_lm(model, tiny_tokenizer("bpe"), model_type)
        except KeditError as error:
            return Known("refused", _reason(error, model_type))
        try:
            prove(lm)
        except (KeditError, Wrong, *BROKEN) as error:
            return Known("wrong", f"{type(error).__name__}: {_line(error)[:200]}")
    return Known("right")


def compared(found: dict[str, Known], table: dict[str, Known]) -> list[str]:
    """What the table says otherwise, one line each; reasons are compared by their states alone."""
    lines = [f"{kind} is wrong: {known.reason}" for kind, known in found.items() if known.state == "wrong"]
    for kind, known in found.items():
        told = table.get(kind)
        if known.state != "wrong" and (told is None or told.state != known.state):
            lines.append(f"{kind} is {known.state} ({known.reason}); the table says {told and told.state}")
    return lines


def main(words: Iterable[str] | None = None) -> int:
    """Try the types that are named, or all; the exit status is 1 where something is wrong or not as in the table."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.support.families", description="Try decoder types of transformers."
    )
    parser.add_argument("types", nargs="*", help="model types; without any, all")
    parser.add_argument("--write", action="store_true", help="write kedit/model/known_models.json")
    options = parser.parse_args(words if words is None else list(words))
    found: dict[str, Known] = {}
    for kind in options.types or TYPES:
        found[kind] = try_type(kind)
        sys.stdout.write(f"{kind}: {found[kind].state}{': ' * bool(found[kind].reason)}{found[kind].reason}\n")
        sys.stdout.flush()
    states = [known.state for known in found.values()]
    sys.stdout.write(", ".join(f"{states.count(state)} {state}" for state in sorted(set(states))) + "\n")
    if options.write and "wrong" not in states:
        known_models.write({"transformers": transformers.__version__, "torch": torch.__version__}, found)
        return 0
    lines = compared(found, known_models.table())
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return int(bool(lines))


def _reason(error: KeditError, model_type: str) -> str:
    """What is said of a refused model, without its name."""
    text = _line(error).removeprefix(f"{model_type}: ").removesuffix(". See docs/models.md")
    return re.sub(r"^.*?kedit (cannot find its way in a|does not edit this) model of type '[^']*': ", "", text)


def _line(error: BaseException) -> str:
    return " ".join((str(error).strip() or type(error).__name__).split())


if __name__ == "__main__":
    raise SystemExit(main())
