"""The mapping: for every method of EasyEdit that kedit has, its keys and what becomes of them. Nothing but data.

Keys and values are those of the files in EasyEdit's `hparams/`; the ROME and MEMIT repositories, where `layers`,
`v_lr` and the others come from, have the same ones in JSON, without `alg_name` and `model_name`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from kedit.cli.easyedit.rules import (
    Rule,
    bound,
    check_down,
    enough_tokens,
    folder,
    grace_place,
    layers,
    layers_or_all,
    lora_rank,
    matrices,
    number,
    one_layer,
    one_of,
    pairs,
    text,
    texts,
    ultraedit_places,
    whole,
    yes_or_no,
)

Table = Mapping[str, Rule]

_NOT_READ = Rule(note="kedit finds the modules in the model itself")
_UNUSED = Rule(note="nothing reads it, in EasyEdit either")

COMMON: Table = MappingProxyType(
    {
        "alg_name": Rule(note="see model.class_path"),
        "alg": Rule(note="see model.class_path"),
        "model_name": Rule("lm.name", text),
        "fp16": Rule("lm.dtype", one_of({True: "float16", False: "float32"}, "lm.dtype is float32")),
        "bf16": Rule("lm.dtype", one_of({True: "bfloat16", False: "float32"}, "lm.dtype is float32")),
        "device": Rule(note="a run takes the first GPU that it sees: CUDA_VISIBLE_DEVICES=N chooses it"),
        "model_parallel": Rule(only=(False,), note="a model is not split over GPUs; they share out the edits "
                                                   "(trainer.devices)"),
        "stats_dir": Rule(note="statistics are kept in kedit's cache (KEDIT_CACHE)"),
        "results_dir": Rule(note="run.root is the folder of all runs"),
        "max_length": Rule(note="no text is cut off"),
        "use_chat_template": Rule(only=(False,), note="prompts go to the model as they are; data.chat: true puts them "
                                                      "through the tokenizer's chat template"),
        "enable_thinking": Rule(only=(False,), note="there is no such switch"),
        "evaluation_type": Rule(note="answers are compared, not judged; metrics.scoring.wild lets them end naturally"),
        "api_key": Rule(note="no judge is asked; its value is not copied", secret=True),
        "layer_module_tmp": _NOT_READ,
        "mlp_module_tmp": _NOT_READ,
        "attn_module_tmp": _NOT_READ,
        "ln_f_module": _NOT_READ,
        "lm_head_module": _NOT_READ,
    }
)  # fmt: skip

_BATCH: Table = {
    "batch_size": Rule(
        "data.batch_size", whole, "it counts in the batch and sequential regimes; single edits one by one"
    ),
}
_VALUE: Table = {
    "fact_token": Rule(only=("subject_last",), note="it edits at the subject's last token"),
    "v_num_grad_steps": Rule("model.v_num_grad_steps", whole),
    "v_lr": Rule("model.v_lr", number),
    "v_loss_layer": Rule(note="the loss is of the model's own output, which is that of its last layer"),
    "v_weight_decay": Rule("model.v_weight_decay", number),
    "clamp_norm_factor": Rule("model.clamp_norm_factor", number),
    "kl_factor": Rule("model.kl_factor", number),
    "rewrite_module_tmp": Rule(convert=check_down, note="the output map of the feed-forward block, which kedit finds"),
    "mom2_dataset": Rule(
        only=(),
        note="C is taken over text that the model itself writes, which needs no data; for Wikipedia: "
        "model.stats.corpus: hf:wikimedia/wikipedia:20231101.en",
    ),
    "mom2_n_samples": Rule(
        "model.stats.tokens", enough_tokens, "it counts documents, model.stats.tokens tokens: at least 4 times d_in"
    ),
    "mom2_dtype": Rule(
        "model.stats.dtype",
        one_of({"float32": "float32", "float64": "float64"}, "it sums in float32 (model.stats.dtype)"),
    ),
}
_ONE_LAYER: Table = _VALUE | {
    "layers": Rule("model.layer", one_layer),
    "mom2_adjustment": Rule("model.mom2_adjustment", yes_or_no),
    "context_template_length_params": Rule("model.contexts.lengths", pairs),
}  # fmt: skip
_MANY_LAYERS: Table = _VALUE | _BATCH | {
    "layers": Rule("model.layers", layers),
    "layer_selection": Rule(only=("all",), note="it edits all the layers that are named"),
    "mom2_adjustment": Rule(note="C is always used, as in EasyEdit's code of this method"),
    "mom2_update_weight": Rule("model.mom2_update_weight", number),
}  # fmt: skip
_TRAINED: Table = {
    "layers": Rule("model.layers", layers_or_all),
    "num_steps": Rule("model.steps", whole),
    "batch_size": Rule("model.mini_batch", whole, "requests of an optimiser step; of an edit batch: data.batch_size"),
    "lr": Rule("model.lr", number),
    "weight_decay": Rule("model.weight_decay", number),
    "kl_factor": _UNUSED,
}


@dataclass(frozen=True)
class Method:
    """A method of EasyEdit.

    Args:
        name: What papers call it.
        class_path: kedit's class.
        keys: The file's keys.
        regime: The regime of EasyEdit's usual call.
        absent: Keys that older files lack -> what EasyEdit did without them.
        without: Keys that older files lack -> what is to know then.
    """

    name: str
    class_path: str
    keys: Table
    regime: str = "single"
    absent: Mapping[str, Any] = field(default_factory=dict)
    without: Mapping[str, str] = field(default_factory=dict)


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "rome": Method("ROME", "ROME", _ONE_LAYER),
        "rrome": Method("R-ROME", "RROME", _ONE_LAYER),
        "memit": Method("MEMIT", "MEMIT", _MANY_LAYERS),
        "emmet": Method(
            "EMMET",
            "EMMET",
            _MANY_LAYERS
            | {
                "emmet_lambda": Rule("model.emmet_lambda", number),
                "update_norm_lambda": Rule(only=(0,), note="it adds nothing but model.stats.ridge to C"),
            },
        ),
        "pmet": Method(
            "PMET",
            "PMET",
            _MANY_LAYERS
            | {
                "nll_loss_factor": Rule(only=(1,), note="the target's loss has the weight 1"),
                "rewrite_module_tmps": _NOT_READ,
            },
        ),
        "alphaedit": Method(
            "AlphaEdit",
            "AlphaEdit",
            _MANY_LAYERS
            | {
                "mom2_update_weight": _UNUSED,
                "nullspace_threshold": Rule("model.nullspace_threshold", number, "what it keeps depends on the text of "
                                            "the statistics: nullspace_rank in run.json says how many directions"),
                "L2": Rule("model.l2", number),
                "P_loc": Rule(note="the projections are computed from the statistics and cached; no file is read"),
            },
        ),
        "ft": Method(
            "FT",
            "FT",
            _TRAINED
            | {
                "norm_constraint": Rule("model.norm_constraint", bound),
                "objective_optimization": Rule(
                    "model.loss",
                    one_of({"target_new": "target_new", "prompt_last": "prompt_last"}, "model.loss is target_new"),
                ),
                "rewrite_module_tmp": Rule("model.matrices", matrices),
            },
            without={"objective_optimization": "EasyEdit's versions without this key differ in the loss; "
                                               "model.loss is target_new (FT-M), the other is prompt_last (FT-L)"},
        ),
        "lora": Method(
            "LoRA",
            "LoRA",
            _TRAINED
            | {
                "lora_type": Rule("model.kind", one_of({"lora": "lora", "adalora": "adalora"}, "model.kind is lora")),
                "rank": Rule("model.r", lora_rank, "peft's AdaLoRA does not read this rank and takes 12, which is what "
                             "was trained; with lora_type lora it is as given"),
                "lora_alpha": Rule("model.alpha", number),
                "lora_dropout": Rule("model.dropout", number),
                "norm_constraint": Rule(only=(False, None), note="its changes have no bound"),
                "target_modules": Rule("model.target_modules", texts),
            },
            absent={"lora_type": "adalora"},
        ),
        "grace": Method(
            "GRACE",
            "GRACE",
            {
                "inner_params": Rule("model.*", grace_place),
                "edit_lr": Rule("model.lr", number),
                "n_iter": Rule("model.steps", whole),
                "eps": Rule("model.eps", number),
                "dist_fn": Rule(only=("euc",), note="distances are Euclidean"),
                "val_init": Rule("model.init", one_of({"cold": "cold", "warm": "warm"}, "model.init is cold")),
                "val_train": Rule(only=("sgd",), note="a value is trained by Adam"),
                "val_reg": Rule(only=(None, "None"), note="a value is not regularised"),
                "reg": Rule(note="model.stop_loss ends a value's training early; 0.0: never"),
                "replacement": Rule(only=(), note="every token is looked up by itself, not the prompt's last alone"),
                "eps_expand": Rule(only=("coverage",), note="a radius grows to cover what has the same answer"),
                "num_pert": _UNUSED,
                "dropout": Rule(only=(0,), note="there is no dropout"),
                "batch_size": Rule(only=(1,), note="requests are edited one after another"),
            },
            regime="sequential",
        ),
        "kn": Method(
            "KN",
            "KN",
            {
                "lr_scale": _UNUSED,
                "n_toks": _UNUSED,
                "refine": Rule("model.refine", yes_or_no),
                "batch_size": Rule(note="it changes no number: kedit takes as many rows as fit"),
                "steps": Rule("model.steps", whole, "with 1 the gradient is taken at no activation at all; "
                              "kedit's own value is 20"),
                "adaptive_threshold": Rule("model.adaptive_threshold", number),
                "p": Rule("model.p", number),
            },
        ),
        "ike": Method(
            "IKE",
            "IKE",
            {
                "k": Rule("model.k", whole, "demonstrations are facts of kedit that are not edited; your own train_ds: "
                          "model.demonstrations: FILE"),
                "sentence_model_name": Rule("model.encoder", folder),
            },
        ),
        "ultraedit": Method(
            "UltraEdit",
            "UltraEdit",
            {
                "inner_params": Rule("model.*", ultraedit_places),
                "lr": Rule("model.eta", number),
                "token": Rule(
                    "model.tokens", one_of({"mask": "all", "ans": "answer"}, "model.tokens is answer"),
                    "EasyEdit's mask is every token that is no padding; kedit's own value is answer"
                ),
                "batch_size": Rule("data.batch_size", whole),
                "batch_size_once": Rule("model.chunk", whole),
                "half": Rule("lm.dtype", one_of({True: "float16", False: "float32"}, "lm.dtype is float32")),
                "editor_batch_size": Rule(note="it changes no number"),
                "n_edits": Rule(note="data.limit is the number of records"),
                "dropout": Rule(only=(0,), note="there is no dropout"),
                "no_grad_layers": Rule(only=(None, "null"), note="no parameter has a gradient"),
                "silent": Rule(note="KEDIT_LOG=WARNING"),
                "archive": Rule(note="nothing is trained ahead"),
                "model_class": _NOT_READ,
                "class_name": _NOT_READ,
                "tokenizer_class": _NOT_READ,
                "tokenizer_name": Rule(note="the tokenizer is the model's own"),
            },
            regime="sequential",
        ),
        "locft": Method(
            "LocFT-BF",
            "LocFT",
            {
                "model_name_or_path": Rule("lm.name", text),
                "layer": Rule("model.layer", whole),
                "rewrite_module": Rule("model.matrices", matrices),
                "lr": Rule("model.lr", number),
                "num_steps": Rule("model.epochs", whole),
                "batch_size": Rule("model.mini_batch", whole),
                "data_path": Rule(note="data.class_path and data.path name your records"),
                "save_model_dir": Rule(note="a delta is kept in the run's folder"),
            },
            regime="batch",
        ),
    }
)  # fmt: skip
"""alg_name in small letters without hyphens -> method."""

NAMES: Mapping[str, str] = MappingProxyType({"locftbf": "locft"})
"""Other spellings."""
