"""The pretended device: it computes what the CPU computes, and complains of tensors in the wrong place."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.support.paths import ROOT

CODE = """
import torch
from tests.support.device import DEVICE
from tests.support.tiny_models import tiny_model

def refused(run, error):
    try:
        run()
    except error:
        return True
    return False

ids = torch.tensor([[1, 2, 3]], device="cpu")
here, there = tiny_model("llama", device="cpu"), tiny_model("llama", device=DEVICE)
expected, found = here(ids).logits, there(ids.to(DEVICE)).logits
assert found.device.type == "pretended"
torch.testing.assert_close(found.cpu(), expected, atol=1e-3, rtol=1e-3)
found.sum().backward()
expected.sum().backward()
weight, same = (model.model.layers[1].mlp.down_proj.weight for model in (here, there))
torch.testing.assert_close(same.grad.cpu(), weight.grad, atol=1e-2, rtol=1e-2)
assert refused(lambda: there(ids), RuntimeError)
assert refused(lambda: found + expected, RuntimeError)
assert refused(lambda: torch.cat([found, expected]), RuntimeError)
assert refused(lambda: expected[found[0, :, 0].long()], RuntimeError)
assert refused(lambda: found.detach().numpy(), TypeError)
# a number may come from the host, and so may an index
assert float((found * torch.tensor(2.0, device="cpu")).sum()) == 2 * float(found.sum())
assert found.detach()[0, ids[0] - 1].shape == (3, 600)
"""


def test_tensors_of_two_devices_do_not_mix() -> None:
    env = os.environ | {"KEDIT_TEST_DEVICE": "pretended"}
    done = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
