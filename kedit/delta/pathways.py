"""`Pathways`: the adapters of REP's edits on what one linear map reads, in the order of the edits.

What an adapter computes, and which of many acts on a token, is in `kedit.delta.pathway`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kedit.delta import waits
from kedit.delta.change import Change, InputHook, LaneStack
from kedit.delta.gate_state import GateContext, GateHistory
from kedit.delta.pathway import Pathway, PathwayRouter
from kedit.delta.place import Place
from kedit.delta.single_gates import SingleGates
from kedit.errors import KeditError
from kedit.model.architecture import weight


@dataclass(frozen=True)
class Pathways(Change):
    """Adapters on the keys of one linear map; at most one acts on a token.

    Attributes:
        adapters: In the order of their edits; all of one width.
    """

    adapters: tuple[Pathway, ...]

    kind: ClassVar[str] = "pathways"

    def to(self, device: torch.device | str) -> Pathways:
        """The same adapters on `device`."""
        return Pathways(tuple(adapter.to(device) for adapter in self.adapters))

    def check(self, path: str, module: nn.Module) -> None:
        """The module's inputs must have the width of all adapters."""
        width = weight(module).shape[1]
        if any(adapter.d_in != width for adapter in self.adapters):
            raise KeditError(f"this delta has a pathway of another width than {path!r} ({width}) here")

    def write(self, place: Place) -> None:
        """Puts a router of all adapters that were written so far before the module."""
        mine = self.to(weight(place.module).device)
        earlier = place.installed(Pathways)
        together = mine if earlier is None else Pathways.add([earlier, mine])
        router = PathwayRouter(together.adapters)
        history = place.follow() if router.remembers else None
        place.install(together, lambda: router.install(place.module, history, place.block))

    def extent(self) -> str:
        """Number of adapters."""
        return f"{len(self.adapters)} adapter{'s' * (len(self.adapters) > 1)}"

    @classmethod
    def add(cls, parts: Sequence[Pathways]) -> Pathways:
        """All of them, one after another."""
        return Pathways(tuple(adapter for part in parts for adapter in part.adapters))

    def tensors(self) -> dict[str, Tensor]:
        """`NUMBER/NAME`."""
        parts = enumerate(adapter.tensors() for adapter in self.adapters)
        return {f"{i}/{name}": tensor for i, named in parts for name, tensor in named.items()}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> Pathways | None:
        """From `NUMBER/NAME`."""
        parts: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            number, slash, name = key.partition("/")
            if slash and number.isdecimal():
                parts.setdefault(int(number), {})[name] = tensor
        return cls.unpack([parts[i] for i in sorted(parts)]) if parts else None

    def pack(self) -> Any:
        """The tensors of each, by name."""
        return [adapter.tensors() for adapter in self.adapters]

    @classmethod
    def unpack(cls, packed: Any) -> Pathways:
        """From those.

        Raises:
            TypeError, ValueError: There are other tensors, or a gate lacks a part.
        """
        adapters = tuple(Pathway(**tensors) for tensors in packed)
        if not all(adapter.whole for adapter in adapters):
            raise ValueError("the gate of a pathway lacks a part")
        return Pathways(adapters)

    @classmethod
    def stack(cls, parts: Mapping[int, Pathways], n_lanes: int) -> Sequence[LaneStack]:
        """A router per lane."""
        return [_RouterStack({lane: PathwayRouter(part.adapters) for lane, part in parts.items()}, n_lanes)]


class _RouterStack(LaneStack):
    """The keys of every row pass the pathways of its lane."""

    def __init__(self, routers: dict[int, PathwayRouter], n_lanes: int) -> None:
        self.routers, self.n_lanes = routers, n_lanes
        self.remembers = any(router.remembers for router in routers.values())
        self._single: SingleGates | None = None

    def before(self, lanes: Tensor, history: GateHistory) -> InputHook:
        own = {lane: router.pathways for lane, router in self.routers.items()}
        if waits.waiting_costs(next(iter(own.values()))[0].down.device) and SingleGates.fit(own):
            self._single = self._single or SingleGates({lane: p for lane, (p,) in own.items()}, self.n_lanes)
            return self._single.rows(lanes, history, self.remembers)
        return _MoveRows(self.routers, lanes, history)


class _MoveRows:
    """Forward pre-hook of a stack."""

    def __init__(self, routers: dict[int, PathwayRouter], lanes: Tensor, history: GateHistory) -> None:
        self.routers, self.lanes, self.history = routers, lanes, history
        of_row = lanes.tolist()
        self.present = [lane for lane in sorted(set(of_row)) if lane in routers]
        device = next(iter(routers.values())).pathways[0].down.device
        self._rows = {
            lane: torch.tensor([i for i, of in enumerate(of_row) if of == lane], device=device) for lane in self.present
        }
        self.remembers = any(routers[lane].remembers for lane in self.present)

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        keys = args[0].reshape(len(self.lanes), -1, args[0].shape[-1])
        moved = keys
        texts = self.history.texts(module, keys.shape[:2]) if self.remembers else GateContext()
        seen: list[tuple[Tensor, Tensor]] = []  # rows of a lane, and how wide its gates have been in them
        for lane in self.present:
            rows, router = self._rows[lane].to(keys.device), self.routers[lane]
            own = texts.rows(rows, len(router.pathways))
            native = keys[rows]
            new = router(native, own)
            if new is not native:
                moved = moved.index_copy(0, rows, new)
            if own.widest is not None:
                seen.append((rows, own.widest))
        if seen:
            most = max(len(router.pathways) for router in self.routers.values())
            together = keys.new_zeros(len(keys), most).float()
            for rows, widest in seen:
                together[rows, : widest.shape[1]] = widest
            self.history.note(module, together)
        return (moved.reshape(args[0].shape), *args[1:])
