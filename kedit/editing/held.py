"""A model that a user holds: taken for a while, and left exactly as it was.

Weights, gradients' flags, training modes, random numbers and Ctrl-C are all back afterwards; only what is asked for
(`Edit.apply`) stays.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from kedit.errors import KeditError, shown
from kedit.forward.binding import load_lm, wrap_lm
from kedit.model.lm import LM, LMConfig


@contextmanager
def in_use(model: nn.Module) -> Iterator[None]:
    """Inside, the model is frozen and in eval mode; afterwards every module and parameter is what it was."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval().requires_grad_(False)
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside, Lightning may run: Ctrl-C stays a `KeyboardInterrupt`, and works again afterwards."""
    main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)} if main else {}
    try:
        yield
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning makes a SystemExit of it
            raise KeyboardInterrupt from None
        raise
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def lm_of(model: Any, tokenizer: Any = None, name: str | None = None) -> LM:
    """The `LM` of a model in memory; a transformers model is wrapped, inside `in_use`.

    Raises:
        KeditError: It is no such model, its tokenizer is missing, or kedit cannot edit it.
    """
    if isinstance(model, LM):
        return model
    if not isinstance(model, PreTrainedModel):
        raise KeditError(
            f"model: expects an alias, a folder, a hub id, an LM or a transformers model, not {shown(model)}"
        )
    if tokenizer is None:
        raise KeditError(
            "tokenizer: a transformers model needs its tokenizer beside it: kedit.edit(model, tokenizer, ...)"
        )
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) > 1:
        raise KeditError(f"model: it is spread over {len(devices)} devices; put it on one to edit it")
    return wrap_lm(model, tokenizer, name or str(getattr(model, "name_or_path", "")) or type(model).__name__)


def load(config: LMConfig, device: str = "auto") -> LM:
    """The model that a name stands for, on the chosen device.

    Args:
        config: Which model.
        device: `cpu`, `cuda`, `cuda:1`, or `auto`: a GPU where there is one.

    Raises:
        KeditError: There is no such model or device.
    """
    place = device_of(device)
    try:
        return load_lm(config, place)
    except KeditError as error:  # it names the option of a configuration
        raise KeditError(str(error).replace("lm.name", "model")) from error


def device_of(name: str) -> torch.device:
    """The device of that name; raises as `load`."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise KeditError(f"device: there is no device {shown(name)}; give auto, cpu or cuda") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise KeditError(f"device: {name}: this machine has {torch.cuda.device_count()} GPUs that torch can use")
    if device.type not in ("cpu", "cuda"):
        raise KeditError(f"device: {name}: kedit runs on cpu and cuda")
    return device
