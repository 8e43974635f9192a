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
    asked = {} if lm.chat is None else {"chat": lm.chat.card()}
    if module.ends_targets:
        asked |= {"target_eos": True}
    return asked | {
        "method": type(module).__name__,
        "model": lm.name,
        "model_fingerprint": lm.fingerprint,
        "dtype": str(lm.dtype).removeprefix("torch."),
        "regime": module.regime,
        "seed": module.seed,
    }
