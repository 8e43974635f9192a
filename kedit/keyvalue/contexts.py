"""Context templates: short texts that the model itself wrote, put before the prompt while editing.

Sampled once per run, from the unedited model, by a seed, and stored with the run (upstream samples them
unseeded into a module-level list; baselines Part 4, trap 1).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field

from kedit.errors import KeditError, at_least, shown
from kedit.forward.sampling import sample
from kedit.model.lm import LM
from kedit.model.tokenization import sayable
from kedit.runtime.option_values import check_values
from kedit.text.prompts import slots

STARTERS = ("The", "Therefore", "Because", "I", "You")


@dataclass
class ContextConfig:
    """How the context templates are made.

    Args:
        lengths: Pairs [tokens, how many]: ROME's published recipe is 10 texts of 5 tokens and 10 of 10.
            Together with the bare prompt that makes 21 contexts. An empty list edits on the bare prompt alone.
        top_k: Each token is drawn from this many most probable ones.
        seed: Seed of the draw; None: that of the run, so that runs of several seeds have contexts of their own.
        texts: Ready-made templates, each with one {} where the prompt goes; when given, nothing is sampled.
    """

    lengths: list[list[int]] = field(default_factory=lambda: [[5, 10], [10, 10]])
    top_k: int = 5
    seed: int | None = None
    texts: list[str] | None = None

    def __post_init__(self) -> None:
        check_values(vars(self), "model.contexts")
        at_least("model.contexts.top_k", self.top_k, 1)
        if any(len(pair) != 2 or pair[0] < 2 or pair[1] < 1 for pair in self.lengths):
            raise KeditError(f"contexts.lengths expects pairs [tokens >= 2, how many >= 1], got {self.lengths}")
        for text in self.texts or ():
            if slots(text) != 1:
                raise KeditError(f"contexts.texts: {shown(text)} needs exactly one {{}}, where the prompt goes")


def context_templates(lm: LM, config: ContextConfig, run_seed: int = 0) -> list[str]:
    """The bare `"{}"` first, then the texts, each ending in `". {}"`.

    Args:
        lm: The unedited model.
        config: What to sample.
        run_seed: Seed of the draw where the config names none.

    Returns:
        Templates with one `{}`; ROME's 21 with the defaults (baselines 1.0, "Context templates").
    """
    if config.texts is not None:
        return ["{}", *(text for text in config.texts if text != "{}")]
    templates = ["{}"]
    seed = run_seed if config.seed is None else config.seed
    for group, (length, count) in enumerate(config.lengths):
        starts = [lm.encode(STARTERS[i % len(STARTERS)]) for i in range(count)]
        longest = max(len(start) for start in starts)
        drawn = sample(lm, starts, max(1, length - longest), top_k=config.top_k, seed=seed * 1000 + group)
        templates += [_clean(lm, ids) + ". {}" for ids in drawn]
    return templates


def context_groups(config: ContextConfig, contexts: Sequence[str]) -> list[int]:
    """Sizes of the groups that `contexts` were made in: the bare prompt, then one per pair of `lengths`, or the texts.

    Args:
        config: What `contexts` were made from.
        contexts: As `context_templates` gave them.
    """
    sizes = [count for _, count in config.lengths] if config.texts is None else [len(contexts) - 1]
    return [1, *(size for size in sizes if size)]


def _clean(lm: LM, ids: Sequence[int]) -> str:
    """One line of plain text without braces: what may stand before a prompt."""
    special = set(lm.tokenizer.all_special_ids)
    text = unicodedata.normalize("NFKD", sayable(lm, lm.decode([i for i in ids if i not in special])))
    return re.sub(r"\s+", " ", text.replace("{", " ").replace("}", " ")).strip()
