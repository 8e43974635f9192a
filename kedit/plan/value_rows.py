"""The rows that a step of v* runs: how many, how long, and which together."""

from __future__ import annotations

from kedit.forward.replay_groups import group_bounds, group_members, run_cost
from kedit.keyvalue.contexts import ContextConfig
from kedit.model.lm import LM
from kedit.plan.lengths import Lengths
from kedit.plan.passes import RowGroup, value_step


def contexts_of(config: ContextConfig) -> tuple[int, int]:
    """Number of contexts with the bare prompt, and tokens of the longest."""
    if config.texts is not None:
        return 1 + len(config.texts), 12
    return 1 + sum(n for _, n in config.lengths), max((n + 1 for n, _ in config.lengths), default=0)


def value_rows(lm: LM, lengths: Lengths, lanes: int, config: ContextConfig, gpu: bool) -> list[RowGroup]:
    """The rows of a step of v* of the requests with the largest suffixes, in groups as a run makes them.

    Args:
        lm: The shape of the model.
        lengths: Of the texts.
        lanes: Requests side by side.
        config: The contexts that the prompts stand behind.
        gpu: Whether it runs on a GPU, where groups are fewer.
    """
    contexts, longest = contexts_of(config)
    rows: list[tuple[int, int]] = []  # suffix and prefix; of a prompt for the divergence, nothing follows the subject
    for suffix, prefix, _ in lengths.largest(lanes):
        rows += [(suffix, prefix + longest)] * contexts + [(1, prefix)]
    suffixes = [suffix for suffix, _ in rows]
    bounds = group_bounds(suffixes, run_cost(lm, on_cpu=not gpu))
    groups = zip(bounds, group_members(suffixes, bounds), strict=True)
    return [RowGroup(len(inside), bound, max(rows[i][1] for i in inside)) for bound, inside in groups]


def value_bytes(lm: LM, lengths: Lengths, lanes: int, config: ContextConfig, first: int, gpu: bool) -> int:
    """Bytes of a step of v* of the requests with the largest suffixes; `first` is the lowest layer that runs."""
    labels = contexts_of(config)[0] * sum(target for _, _, target in lengths.largest(lanes))
    return value_step(lm, lanes, value_rows(lm, lengths, lanes, config, gpu), labels, first)
