"""`Codebook`: what a linear map puts out where its input lies near a remembered key (GRACE; baselines 1.12).

It is looked up at every token by itself: a token whose input is within the radius of its nearest key gets that key's
value for output, every other one keeps its own, bit for bit. So it does not matter where a prompt ends, whether a cache
is used, or which texts share a batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kedit.delta.change import Change, LaneStack, OutputPart
from kedit.delta.place import Place
from kedit.errors import KeditError
from kedit.model.architecture import weight

_ROUNDING = 1e-3  # of the squared norms: more than a product in float32, or on a GPU in TF32, can be wrong by


@dataclass(frozen=True)
class Codebook(Change):
    """Entries of one linear map, in the order in which they were made. No two have the same key.

    Attributes:
        keys: `[m, d_in]`, float32.
        values: `[m, d_out]`, float32.
        radii: How far an input may be from its nearest key, `[m]`, float32, at least 0.
        labels: What tells whether two entries mean the same answer, `[m]` int64 (`label_of`).

    Raises:
        ValueError: The parts do not fit together.
    """

    keys: Tensor
    values: Tensor
    radii: Tensor
    labels: Tensor

    kind: ClassVar[str] = "codebook"

    def __post_init__(self) -> None:
        m = len(self.keys)
        if self.keys.ndim != 2 or self.values.ndim != 2 or not len(self.values) == len(self.radii) == m > 0:
            raise ValueError(f"codebook: {m} keys, {len(self.values)} values and {len(self.radii)} radii")
        if self.radii.shape != (m,) or self.labels.shape != (m,) or self.labels.dtype != torch.int64:
            raise ValueError("codebook: radii and labels are no lists of one number for each key")
        if not bool((self.radii >= 0).all()):
            raise ValueError("codebook: a radius is below 0")

    def to(self, device: torch.device | str) -> Codebook:
        """The same entries on `device`."""
        return Codebook(*(tensor.to(device) for tensor in self._parts))

    @property
    def _parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.keys, self.values, self.radii, self.labels

    def check(self, path: str, module: nn.Module) -> None:
        """Keys and values must have the widths of the module."""
        found, mine = tuple(weight(module).shape), (self.values.shape[1], self.keys.shape[1])
        if found != mine:
            raise KeditError(f"this delta has a codebook for {path!r} of shape {mine}, here it is {found}")

    def write(self, place: Place) -> None:
        """Has the module look its inputs up in all entries that were written so far."""
        mine = self.to(weight(place.module).device)
        earlier = place.installed(Codebook)
        together = mine if earlier is None else Codebook.add([earlier, mine])
        place.install(together, lambda: [place.module.register_forward_hook(together.hook)])

    @classmethod
    def add(cls, parts: Sequence[Codebook]) -> Codebook:
        """All entries in order; one whose key was there already takes the place of the earlier one."""
        if len(parts) == 1:
            return parts[0]
        rows: dict[bytes, int] = {}
        source: list[int] = []  # of each entry, its row in all parts one after another
        for i, key in enumerate(torch.cat([part.keys for part in parts]).cpu()):
            at = rows.setdefault(key.numpy().tobytes(), len(source))
            if at == len(source):
                source.append(i)
            else:
                source[at] = i
        index = torch.tensor(source, device=parts[0].keys.device)
        return cls(*(torch.cat(tensors)[index] for tensors in zip(*(part._parts for part in parts), strict=True)))

    def hook(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """Forward hook: values in the place of outputs where an input is near a key; None where none is."""
        near, entry = self.look_up(args[0].detach())
        if not bool(near.any()):
            return None
        return torch.where(near[..., None], self.values[entry].to(output.dtype), output)

    def nearest(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Distance of every query `[n, d_in]` to its nearest key, and which that is: `[n]` float32, `[n]` int64."""
        distances = torch.cdist(queries.float(), self.keys, compute_mode="donot_use_mm_for_euclid_dist")
        return distances.min(1)

    def look_up(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """For inputs `[..., d_in]`, whether each is within the radius of its nearest key, and which that is, `[...]`.

        Distances are exact where a quick product, whose rounding errors are bounded, does not rule an entry out.
        """
        flat = inputs.reshape(-1, inputs.shape[-1]).float()
        near = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
        entry = torch.zeros(len(flat), dtype=torch.long, device=flat.device)
        norms, own = flat.square().sum(1)[:, None], self.keys.square().sum(1)
        rough = norms + own - 2 * flat @ self.keys.T
        maybe = (rough <= self.radii.square() + _ROUNDING * (norms + own)).any(1).nonzero()[:, 0]
        if len(maybe):
            distance, entry[maybe] = self.nearest(flat[maybe])
            near[maybe] = distance <= self.radii[entry[maybe]]
        return near.view(inputs.shape[:-1]), entry.view(inputs.shape[:-1])

    def tensors(self) -> dict[str, Tensor]:
        """`codebook.keys`, `codebook.values`, `codebook.radii`, `codebook.labels`."""
        names = ("keys", "values", "radii", "labels")
        return {f"codebook.{name}": tensor for name, tensor in zip(names, self._parts, strict=True)}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> Codebook | None:
        """From these."""
        if "codebook.keys" not in tensors:
            return None
        return Codebook(*(tensors[f"codebook.{name}"] for name in ("keys", "values", "radii", "labels")))

    def numbers(self) -> Iterable[Tensor]:
        """Keys, values and radii."""
        return self._parts[:3]

    def square_norm(self) -> float:
        """Sum of the squares of the values; nothing is added to a weight."""
        return float(self.values.double().square().sum())

    def extent(self) -> str:
        """Number of entries."""
        return f"{len(self.keys)} entr{'ies' if len(self.keys) > 1 else 'y'}"

    @classmethod
    def stack(cls, parts: Mapping[int, Codebook], n_lanes: int) -> Sequence[LaneStack]:
        """One stack that refers to the lanes' codebooks."""
        return [_CodebookStack(parts)]


class _CodebookStack(LaneStack):
    """A row's inputs are looked up in the codebook of its lane."""

    def __init__(self, parts: Mapping[int, Codebook]) -> None:
        self.parts = parts

    def after(self, lanes: Tensor, device: torch.device) -> OutputPart | None:
        present = [lane for lane in lanes.unique().tolist() if lane in self.parts]
        own = [((lanes == lane).nonzero()[:, 0].to(device), self.parts[lane].to(device)) for lane in present]
        if not own:
            return None

        def part(x: Tensor, y: Tensor) -> Tensor:
            y = y.clone()
            for index, book in own:
                near, entry = book.look_up(x[index])
                y[index] = torch.where(near[..., None], book.values[entry].to(y.dtype), y[index])
            return y

        return part
