"""Where the tests run: on a GPU where there is one, or where `KEDIT_TEST_DEVICE` says: `cpu`, `cuda`, `pretended`.

Every tiny model, option of the trainer and command line of the tests takes its place from here, and so does every
tensor that a test makes without naming a device: the same numbers as on the CPU. What kedit makes stays where kedit
puts it; a test may compare it with what is elsewhere. Tests of several processes on one machine stay on the CPU.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

NAME = os.environ.get("KEDIT_TEST_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
if not NAME.startswith("cuda"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # `auto` must not find what the tests do not use
ACCELERATOR = "gpu" if NAME.startswith("cuda") else NAME  # as `trainer.accelerator` calls it
PLACE = "cpu" if NAME == "pretended" else NAME  # as `--device` calls it; kedit takes no other
TESTS = str(Path(__file__).resolve().parents[1])


def skip_without_fork() -> None:
    """Skips a test that forks, where this process has used a GPU: its forks cannot."""
    if torch.cuda.is_initialized():
        pytest.skip("a fork cannot use a GPU that its parent has used")


COMPARED = (torch.equal, torch.allclose, Tensor.equal, Tensor.allclose)


class LinesOfTests(TorchFunctionMode):
    """Inside, tensors that a line of a test makes stand on `DEVICE`; those that it compares need not be together."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, makes = kwargs or {}, func in _device_constructors() and "device" not in (kwargs or {})
        if not (makes or func in COMPARED) or not sys._getframe(1).f_code.co_filename.startswith(TESTS):
            return func(*args, **kwargs)
        if makes:
            made = func(*args, **kwargs)
            return made.detach().to(DEVICE).requires_grad_(made.requires_grad)
        return func(*(tensor.cpu() if isinstance(tensor, Tensor) else tensor for tensor in args), **kwargs)


def back_after(fit: Callable[..., Any]) -> Callable[..., Any]:
    """`Trainer.fit` for lines of tests: Lightning leaves what it has trained on the CPU, from where it comes back."""

    def fitted(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return fit(self, model, *args, **kwargs)
        finally:
            if sys._getframe(1).f_code.co_filename.startswith(TESTS):
                model.to(DEVICE)

    return fitted


if NAME == "pretended":
    from tests.support import pretended

    pretended.start()
DEVICE = torch.device(NAME)
if DEVICE.type != "cpu":
    from lightning.pytorch import Trainer  # here, so that tests on a CPU without runs do not wait for it

    Trainer.fit = back_after(Trainer.fit)
    LinesOfTests().__enter__()  # for good: fixtures of modules and of the session make tensors too
