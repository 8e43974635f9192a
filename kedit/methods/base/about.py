"""What results keep of the method, whichever it is: model, precision, regime, seed, chat template."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kedit.methods.base.module import EditingModule


def about(module: EditingModule) -> dict[str, Any]:
    """Provenance of a method before its own options; JSON-able.

    Args:
        module: With its model loaded.
    """
    lm = module.lm
    chat = {} if lm.chat is None else {"chat": lm.chat.card()}
    eos = {"target_eos": True} if module.ends_targets else {}
    return chat | eos | {
        "method": type(module).__name__,
        "model": lm.name,
        "model_fingerprint": lm.fingerprint,
        "dtype": str(lm.dtype).removeprefix("torch."),
        "regime": module.regime,
        "seed": module.seed,
    }
