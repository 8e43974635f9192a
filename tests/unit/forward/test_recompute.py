"""Layers that run twice: the same numbers to the bit, less memory, and the layers as they were."""

from __future__ import annotations

import pytest
import torch

from kedit.forward.recompute import recomputing
from kedit.forward.replay import Site
from kedit.keyvalue import NLL, KLDivergence, ValueObjective, ValueOptimization
from kedit.methods.locate_then_edit.value_phase import ValuePhase
from kedit.request import EditRequest
from kedit.runtime.live_peak import LivePeak
from tests.support.tiny_models import tiny_lm

REQUESTS = [EditRequest(str(i), "The capital of {} is located in", f"Rome {i}", "Tokyo") for i in range(2)]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("site", [Site("mlp", 1), Site("output", 1), Site("attn", 0)])
def test_same_bits_less_memory(family: str, site: Site) -> None:
    lm = tiny_lm(family, n_layers=6, d_model=64, d_ff=160, vocab_size=600)
    found, peaks = [], []
    for recompute in (False, True):
        objective = ValueObjective(lm, REQUESTS, ["{}", "It rains. {}"], [site], (NLL(), KLDivergence(0.1)))
        phase = ValuePhase(ValueOptimization(objective), 0.5, 3, recompute)
        adam = phase.optimizer()
        with LivePeak([*lm.model.parameters(), *lm.model.buffers()]) as live:
            for _ in range(2):
                adam.zero_grad()
                phase.loss().backward()
                adam.step()
                phase.after_step()
        found.append(phase.lanes.delta.detach().clone())
        peaks.append(live.peak)
    assert float(found[0].abs().max()) > 0
    assert torch.equal(*found)
    assert peaks[1] < 0.7 * peaks[0]


def test_layers_are_as_before() -> None:
    lm = tiny_lm("llama")
    layer = lm.arch.layer(lm.model, 1)
    with recomputing(lm, [1, 2]):
        assert "forward" in vars(layer)
    assert "forward" not in vars(layer)
