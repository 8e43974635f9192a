"""Tiny random models of real architectures with real fast tokenizers, built offline in milliseconds.

Their weights are scaled up until attention, gates and norms all matter: hidden states and logits vary
strongly from token to token, so that a wrong position, mask or layer shows in a test.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from kedit.forward.binding import wrap_lm
from kedit.model.lm import LM
from kedit.model.pretrained import quiet_transformers
from tests.support.device import DEVICE

TokenizerKind = Literal["bpe", "sentencepiece", "bpe_bos"]

# Every family of kedit.model.architecture.FAMILIES, with the kind of tokenizer that its models really have.
KINDS: dict[str, TokenizerKind] = {
    "gpt2": "bpe",
    "gptj": "bpe",
    "gpt_neox": "bpe",
    "llama": "sentencepiece",
    "mistral": "sentencepiece",
    "qwen2": "bpe",
    "qwen3": "bpe",
    "gemma": "sentencepiece",
    "gemma2": "sentencepiece",
    "phi": "bpe",
    "phi3": "sentencepiece",
    "opt": "bpe_bos",
    "modernbert-decoder": "bpe",
}

TEXT = """\
The capital of France is Paris. The capital of Italy is Rome. The capital of Japan is Tokyo, and the capital
of Egypt is Cairo. Berlin is a city in Germany; London is a city in England. The Eiffel Tower is located in
Paris, and the Colosseum is located in Rome. The Space Needle is in the city of Seattle. Danielle Darrieux's
mother tongue is French. The mother tongue of Thomas Joannes Stieltjes is Dutch. Steve Jobs was the founder
of Apple. Microsoft was founded by Bill Gates, and its headquarters are in Redmond, Washington. Lionel Messi
plays football. LeBron James plays basketball for the Los Angeles Lakers. Autonomous University of Madrid is
located in Spain. The official language of Brazil is Portuguese. Vincent van Gogh was a Dutch painter who
was born in Zundert in 1853 and died in 1890. Albert Einstein was born in the German city of Ulm in 1879. He
worked as a physicist and he spoke German and English. What is the twin city of Cologne? It is Beijing. Who
is the president of the United States? The language used by Jean Gabin is French. Because of the rain, we
stayed at home. Therefore, the meeting was moved to Monday. You can see the mountains from here. I think
that she is right, but nobody knows. In the north of Spain it rains more often than in the south. Toyota
Camry is produced by Toyota. The name of the country of citizenship of Leonardo da Vinci is Italy. Windows
was developed by Microsoft. Honda Civic, a car, was created by Honda.
"""


@cache
def tiny_tokenizer(kind: TokenizerKind = "bpe", vocab_size: int = 600) -> PreTrainedTokenizerFast:
    """A fast tokenizer trained on `TEXT`; any text can be encoded with it (bytes are in its vocabulary).

    Args:
        kind: `bpe` is GPT-2's (byte level, no BOS), `bpe_bos` is Llama-3's (byte level, BOS added),
            `sentencepiece` is Llama-2's (words begin with "▁", bytes for unknown characters, BOS added).
        vocab_size: Number of tokens, bytes and special ones included.
    """
    if kind == "sentencepiece":
        raw, special = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True)), ["<unk>", "<s>", "</s>"]
        raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        raw.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        reserved = special + [f"<0x{byte:02X}>" for byte in range(256)]
        trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=reserved, show_progress=False)
    else:
        raw, special = Tokenizer(models.BPE()), ["<|endoftext|>", "<|begin|>", "<|end|>"]
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        raw.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    raw.train_from_iterator(TEXT.splitlines(), trainer)
    if kind == "bpe":
        return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=special[0], bos_token=special[0])
    raw.post_processor = processors.TemplateProcessing(single=f"{special[1]} $A", special_tokens=[(special[1], 1)])
    names = {"bos_token": special[1], "eos_token": special[2]}
    if kind == "sentencepiece":
        raw = _as_plain_bytes(raw, special)
        names["unk_token"] = special[0]
    return PreTrainedTokenizerFast(tokenizer_object=raw, **names)


def tiny_model(
    model_type: str = "gpt2",
    n_layers: int = 4,
    d_model: int = 32,
    n_heads: int = 4,
    d_ff: int = 80,
    vocab_size: int = 600,
    context: int = 256,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = DEVICE,
    **overrides: Any,
) -> PreTrainedModel:
    """A fresh random model; the same arguments give the same bits and leave the global RNG alone.

    Args:
        model_type: A key of `KINDS`, or any other decoder of transformers that takes the usual config keys.
        n_layers: Decoder layers.
        d_model: Width of the residual stream.
        n_heads: Attention heads; half as many key-value heads where the architecture groups them.
        d_ff: Width of the keys; not a multiple of `d_model`, so that no transposition goes unnoticed.
        vocab_size: Width of the logits.
        context: Positions.
        seed: Of the weights.
        dtype: Of the weights.
        device: Where they are; the bits are those of the CPU.
        **overrides: Further keys of the architecture's config.
    """
    keys: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": d_model,
        "num_hidden_layers": n_layers,
        "num_attention_heads": n_heads,
        "max_position_embeddings": context,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    if model_type in ("gpt2", "gptj"):
        keys["n_inner"] = d_ff
    elif model_type == "opt":
        keys |= {"ffn_dim": d_ff, "word_embed_proj_dim": d_model}
    else:
        keys["intermediate_size"] = d_ff
    if model_type in ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi3"):
        keys["num_key_value_heads"] = max(1, n_heads // 2)
    if model_type in ("qwen3", "gemma", "gemma2"):
        keys["head_dim"] = d_model // n_heads
    if model_type == "modernbert-decoder":
        keys |= {"cls_token_id": 1, "sep_token_id": 2}
    if model_type == "gptj":
        keys["rotary_dim"] = d_model // n_heads // 2
    config = AutoConfig.for_model(model_type, **(keys | overrides))
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        spread(model)
    return model.to(dtype).to(device).eval()


def tiny_lm(model_type: str = "gpt2", kind: TokenizerKind | None = None, **kwargs: Any) -> LM:
    """A fresh `LM`: `tiny_model(model_type, **kwargs)` with the tokenizer kind of its family, or `kind`."""
    tokenizer = tiny_tokenizer(kind or KINDS.get(model_type, "bpe"), kwargs.get("vocab_size", 600))
    return wrap_lm(tiny_model(model_type, **kwargs), tokenizer, f"tiny-{model_type}")


def save_tiny(path: str | Path, model_type: str = "gpt2", kind: TokenizerKind | None = None, **kwargs: Any) -> Path:
    """Write a tiny model as the Hugging Face folder that `load_lm` reads, and return the folder."""
    lm = tiny_lm(model_type, kind, device="cpu", **kwargs)
    with quiet_transformers():
        lm.model.save_pretrained(path)
        lm.tokenizer.save_pretrained(path)
    return Path(path)


@torch.no_grad()
def spread(model: PreTrainedModel) -> None:
    """Weights under which every map roughly doubles the size of its input; biases and norm gains vary too."""
    vocab_size = model.config.get_text_config().vocab_size
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        elif "wpe" in name or "embed_positions" in name:
            parameter.normal_(std=0.3)
        elif parameter.shape[0] == vocab_size:
            parameter.normal_(std=0.5)
        else:
            parameter.normal_(std=1.5 / min(parameter.shape) ** 0.5)


def _as_plain_bytes(raw: Tokenizer, special: list[str]) -> Tokenizer:
    """The same tokenizer with the byte pieces as ordinary tokens: only `special` may never be split."""
    state = json.loads(raw.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in special]
    return Tokenizer.from_str(json.dumps(state))
