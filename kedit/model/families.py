"""Where things are in the decoders of Hugging Face: canonical names -> module paths, as a table of data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType


@dataclass(frozen=True)
class Family:
    """One row of the table. Paths below `layers` are relative to a layer, the others to the model.

    Args:
        layers: The list of decoder layers, e.g. `model.layers`.
        attn: Attention block of a layer.
        mlp: Feed-forward block of a layer. OPT has no such module: there it is the same as `mlp_out`.
        mlp_out: The linear map of the feed-forward block whose input is the *key* and output the *value*.
        mlp_in: The linear maps that read the residual stream, the gate first where there is one.
        embed: Token embedding.
        norm: Final norm.
        head: Output embedding (`lm_head`).
        between: What stands between the final norm and the head, in the order in which it runs.
    """

    layers: str
    attn: str
    mlp: str
    mlp_out: str
    mlp_in: tuple[str, ...]
    embed: str
    norm: str
    head: str
    between: tuple[str, ...] = ()


_LLAMA = Family(
    layers="model.layers",
    attn="self_attn",
    mlp="mlp",
    mlp_out="mlp.down_proj",
    mlp_in=("mlp.gate_proj", "mlp.up_proj"),
    embed="model.embed_tokens",
    norm="model.norm",
    head="lm_head",
)

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2"), _LLAMA),
        "phi3": replace(_LLAMA, mlp_in=("mlp.gate_up_proj",)),  # gate and up in one matrix, the gate's rows first
        "phi": Family(
            layers="model.layers",
            attn="self_attn",
            mlp="mlp",
            mlp_out="mlp.fc2",
            mlp_in=("mlp.fc1",),
            embed="model.embed_tokens",
            norm="model.final_layernorm",
            head="lm_head",
        ),
        "gpt2": Family(
            layers="transformer.h",
            attn="attn",
            mlp="mlp",
            mlp_out="mlp.c_proj",
            mlp_in=("mlp.c_fc",),
            embed="transformer.wte",
            norm="transformer.ln_f",
            head="lm_head",
        ),
        "gptj": Family(
            layers="transformer.h",
            attn="attn",
            mlp="mlp",
            mlp_out="mlp.fc_out",
            mlp_in=("mlp.fc_in",),
            embed="transformer.wte",
            norm="transformer.ln_f",
            head="lm_head",
        ),
        "gpt_neox": Family(
            layers="gpt_neox.layers",
            attn="attention",
            mlp="mlp",
            mlp_out="mlp.dense_4h_to_h",
            mlp_in=("mlp.dense_h_to_4h",),
            embed="gpt_neox.embed_in",
            norm="gpt_neox.final_layer_norm",
            head="lm_head",
        ),
        "opt": Family(
            layers="model.decoder.layers",
            attn="self_attn",
            mlp="fc2",  # OPT's layers hold fc1 and fc2 themselves, and call them on flattened [B*T, d] input
            mlp_out="fc2",
            mlp_in=("fc1",),
            embed="model.decoder.embed_tokens",
            norm="model.decoder.final_layer_norm",
            head="lm_head",
        ),
        "modernbert-decoder": Family(
            layers="model.layers",
            attn="attn",
            mlp="mlp",
            mlp_out="mlp.Wo",
            mlp_in=("mlp.Wi",),  # gate and up in one matrix, the gate's rows first
            embed="model.embeddings.tok_embeddings",
            norm="model.final_norm",
            head="decoder",
            between=("lm_head",),  # a dense layer and a norm
        ),
    }
)
