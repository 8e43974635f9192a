"""Training passes that begin at the lowest layer with nodes: what enters it is the same in every step of a run."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from torch import Tensor

from kedit.forward.cached_inputs import CachedInputs
from kedit.methods.pac.locality import LocalityTerm
from kedit.methods.pac.requests import Logits, Request, Texts
from kedit.methods.pac.tracing.select import TraceConfig
from kedit.model.lm import LM

log = logging.getLogger(__name__)


def cached_passes(lm: LM, config: TraceConfig, requests: Iterable[Request], locality: LocalityTerm | None) -> Logits:
    """What gives logits of the texts of a run without running the layers below those with nodes.

    Args:
        lm: The model, of which nothing below the lowest layer with nodes ever changes.
        config: Names the layers with nodes.
        requests: All that will be trained, or asked.
        locality: Whose prompts may be drawn.
    """
    first = min(config.layers or [0])
    asked = [text.ids[:-1] for request in requests for text in (request.text, request.original)]
    prompts = [] if locality is None else locality.prompts
    texts = list(dict.fromkeys(asked + prompts))
    inputs, index = CachedInputs(lm, texts, first), {text: i for i, text in enumerate(texts)}
    log.info("what enters layer %d is kept for %d texts: %.1f MB", first, len(texts), inputs.nbytes / 1e6)

    def logits(texts: Texts, rows: Tensor, cols: Tensor) -> Tensor:
        return inputs.logits([index[text] for text in texts], rows, cols)

    return logits
