"""A device that is pretended: its tensors hold their numbers in host memory, but mix with no tensors of the host.

`KEDIT_TEST_DEVICE=pretended pytest` runs the tests with it where there is no GPU. Every operation runs on the CPU, once
the devices of its tensors were compared as CUDA compares them: a tensor of the host among tensors of the device is an
error, but for numbers (0 dimensions), indices and copies. Reading a tensor of the device into numpy is an error too.
It tells nothing of speed, memory, kernels and rounding. Processes that a test starts know nothing of it.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.accelerators import AcceleratorRegistry, CPUAccelerator
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from kedit.model import architecture, full_precision

COPIES = {"aten::_to_copy", "aten::copy_", "aten::_copy_from", "aten::set_", "aten::is_same_size"}
INDEXED = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index"}
NAME = "pretended"
KEPT: list[Any] = []


class OnDevice(Tensor):
    """A tensor of the pretended device; `raw` is the CPU tensor behind it."""

    raw: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType]

    @staticmethod
    def __new__(cls, raw: Tensor) -> OnDevice:
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, raw.shape, strides=raw.stride(), storage_offset=raw.storage_offset(), dtype=raw.dtype,
            layout=raw.layout, device=torch.device(NAME, 0), requires_grad=raw.requires_grad,
        )  # fmt: skip
        made.raw = raw
        return made

    def __repr__(self, **_: Any) -> str:
        return f"OnDevice({self.raw!r})"

    def tolist(self) -> Any:
        return self.raw.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"can't convert {NAME}:0 device type tensor to numpy. Use Tensor.cpu() first")

    __array__ = numpy  # pyright: ignore[reportAssignmentType]

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["raw"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], meta: None, size: Any, stride: Any) -> OnDevice:
        return OnDevice(inner["raw"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation, on the CPU, after a look at where its tensors are."""
    name = func._schema.name
    tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
    device = kwargs.get("device")
    on_device = any(isinstance(tensor, OnDevice) for tensor in tensors)
    if on_device and name not in COPIES:
        _same_device(name, args, tensors)
    to_device = torch.device(device).type == NAME if device is not None else on_device
    if name == "aten::_fused_sdp_choice":
        return 0  # the way of plain operations: the others are kernels of a real device
    if to_device or on_device:
        kwargs = kwargs | ({"device": torch.device("cpu")} if device is not None else {})
    bare = tree_map_only(OnDevice, lambda tensor: tensor.raw, (args, kwargs))
    out = func(*bare[0], **bare[1])
    if not to_device:
        return out
    if name == "aten::_to_copy" and any(out is tensor for tensor in tree_flatten(bare)[0]):
        out = out.clone()
    out = tree_map_only(Tensor, OnDevice, out)
    return return_and_correct_aliasing(func, args, kwargs, out) if on_device else out


def _same_device(name: str, args: Any, tensors: list[Tensor]) -> None:
    """Raises what CUDA raises, where a tensor of the host is among those of the device."""
    if name in INDEXED:
        tensors = [tensor for tensor in (args[0], *args[2:3]) if isinstance(tensor, Tensor)]
        if not isinstance(args[0], OnDevice):
            tensors += [index for index in args[1] if index is not None]
    for tensor in tensors:
        if not isinstance(tensor, OnDevice) and (tensor.dim() or name in ("aten::cat", "aten::stack")):
            raise RuntimeError(f"{name}: expected all tensors to be on one device, but found {NAME}:0 and cpu")


class PretendedAccelerator(CPUAccelerator):
    """What Lightning's trainer calls `accelerator: pretended`."""

    def setup_device(self, device: torch.device) -> None:
        """Nothing has to be made ready."""

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        return [torch.device(NAME, 0)]

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def name() -> str:
        return NAME


def start() -> None:
    """Give torch the device `pretended`, for the life of the process."""
    _setup_privateuseone_for_python_backend(NAME)
    kernels = torch.library.Library("_", "IMPL")
    kernels.fallback(lambda op, *args, **kwargs: _run(op, args, kwargs), "PrivateUse1")
    inside = torch.library.Library("aten", "IMPL")  # what torch calls where no tensor's own code is asked
    for name in ("_to_copy", "copy_", "detach", "alias", "lift_fresh"):
        op = getattr(torch.ops.aten, name).default
        inside.impl(name, lambda *args, op=op, **kwargs: _run(op, args, kwargs), "PrivateUse1")
    KEPT.extend((kernels, inside))
    unfit = full_precision.unfit  # refuses weights that are no plain parameters, as these are not
    for place in (full_precision, architecture):
        setattr(place, "unfit", lambda module: None if isinstance(module.weight, OnDevice) else unfit(module))  # noqa: B010
    AcceleratorRegistry.register(NAME, PretendedAccelerator)
    torch.__future__.set_swap_module_params_on_conversion(True)
