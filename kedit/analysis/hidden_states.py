"""How an edit moves the hidden states where the new object is predicted: cosines to its anchor, LogitLens, a plane.

Measured on the unedited model and under deltas, as lanes (STEAM; specs/steam.md 7.4 to 7.6). What the numbers mean:
docs/anchors.md. From them to CSV: `kedit.analysis.hidden_states_report`; the drawing is in
`kedit.analysis.hidden_states_figure`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from kedit.delta.delta import Delta
from kedit.delta.lanes import BatchedDeltas
from kedit.forward.residual_stream import states
from kedit.methods.steam import Anchor, probe
from kedit.model.tokenization import Tokens, encode
from kedit.request import EditRecord

if TYPE_CHECKING:
    from kedit.model.lm import LM

BASE = "base"
"""The arm of the unedited model; other arms are lists of deltas."""


@dataclass(frozen=True)
class Lens:
    """What `lm_head(final norm(h))` says of one token, of some states and all layers.

    Attributes:
        p: Its probability, `[n, n_layers]`.
        rank: Its place among all tokens, 1 the most probable, `[n, n_layers]`.
    """

    p: Tensor
    rank: Tensor


@dataclass(frozen=True)
class Native:
    """What the unedited model does where it says objects by itself: the other side of every comparison.

    Attributes:
        centre: Mean of the objects' anchors, `[n_layers, d_model]`.
        own: Leave-one-out cosines of references to their object's anchor, raw and centred, `[2, n_layers]`.
        other: To the anchors of other objects, likewise.
        lens: Probability and rank of each object's first token, `[n_objects, n_layers]`: the mean (of the rank, the
            median) over its references.
        n_references: Of all objects.
    """

    centre: Tensor
    own: Tensor
    other: Tensor
    lens: Lens
    n_references: int

    @property
    def n_objects(self) -> int:
        """Objects that have references."""
        return len(self.lens.p)


@dataclass(frozen=True)
class Curves:
    """One arm of some edits, layer by layer, at their bare prompts.

    Attributes:
        raw: Cosine to the anchor, `[n, n_layers]`.
        centred: The same less the mean over objects; NaN where fewer than two objects have references.
        lens: Of the new object's first token.
    """

    raw: Tensor
    centred: Tensor
    lens: Lens


def prompts_of(lm: LM, record: EditRecord, paraphrases: bool = True) -> dict[str, Tokens]:
    """The request's prompt, then its paraphrases: text -> its tokens with the new object after them."""
    r = record.request
    texts = [r.text]
    if paraphrases:
        texts += [probe.text for probe in record.probes if probe.kind == "paraphrase"]
    return {text: encode(lm, text, r.target_new, r.name, r.joiner) for text in texts}


@torch.no_grad()
def lens(lm: LM, hidden: Tensor, tokens: Sequence[int]) -> Lens:
    """LogitLens of states.

    Args:
        lm: Its final norm and head are used, unedited.
        hidden: States after every block, `[n, n_layers, d_model]`.
        tokens: The token looked at in each row.
    """
    wanted = torch.tensor(tokens, device=lm.device)[:, None]
    p, rank = hidden.new_empty(hidden.shape[:2]), hidden.new_empty(hidden.shape[:2])
    for layer in range(hidden.shape[1]):
        logits = lm.arch.logits(lm.model, hidden[:, layer].to(lm.device, lm.dtype)).float()
        own = logits.gather(1, wanted)
        p[:, layer] = (own - logits.logsumexp(-1, keepdim=True)).exp()[:, 0].cpu()
        rank[:, layer] = 1 + (logits > own).sum(-1).cpu()
    return Lens(p, rank)


def native(lm: LM, anchors: Iterable[Anchor]) -> Native | None:
    """The references' side; None where fewer than two objects have states of two references."""
    anchors = [anchor for anchor in anchors if anchor.hidden is not None and anchor.n > 1]
    found = [anchor.hidden for anchor in anchors if anchor.hidden is not None]
    if len(found) < 2:
        return None
    by_layer = probe(found)
    ps, ranks = [], []
    for anchor, hidden in zip(anchors, found, strict=True):
        seen = lens(lm, hidden, [encode(lm, r.text, r.answer, joiner=r.joiner).target[0] for r in anchor.used])
        ps.append(seen.p.mean(0))
        ranks.append(seen.rank.median(0).values)
    return Native(
        centre=torch.stack([hidden.mean(0) for hidden in found]).mean(0),
        own=torch.tensor([[p.own for p in by_layer], [p.own_centred for p in by_layer]]),
        other=torch.tensor([[p.other for p in by_layer], [p.other_centred for p in by_layer]]),
        lens=Lens(torch.stack(ps), torch.stack(ranks)),
        n_references=sum(len(hidden) for hidden in found),
    )


def arm_states(lm: LM, prompts: Sequence[Sequence[Tokens]], arms: Mapping[str, Sequence[Delta]]) -> dict[str, Tensor]:
    """States where the new object's first token is predicted, unedited and under every arm.

    Args:
        lm: The unedited model.
        prompts: Of each edit.
        arms: Name -> a delta of each edit.

    Returns:
        Name (and `BASE`) -> `[n_prompts of all edits, n_layers, d_model]`.
    """
    rows = [(i, t) for i, own in enumerate(prompts) for t in own]
    deltas = [delta for own in arms.values() for delta in own]
    lanes = [-1] * len(rows) + [place * len(prompts) + i for place in range(len(arms)) for i, _ in rows]
    texts = [t for _ in range(1 + len(arms)) for _, t in rows]
    found = states(
        lm,
        [(lane, t.ids[: t.n_prompt]) for lane, t in zip(lanes, texts, strict=True)],
        [t.n_prompt - 1 for t in texts],
        BatchedDeltas(lm.model, deltas) if deltas else None,
    )
    return dict(zip((BASE, *arms), found.split(len(rows)), strict=True))


def curves(
    lm: LM, records: Sequence[EditRecord], anchors: Tensor, arms: Mapping[str, Sequence[Delta]], centre: Tensor | None
) -> dict[str, Curves]:
    """Cosines and LogitLens of edits at their bare prompts, arm by arm.

    Args:
        lm: The unedited model.
        records: The edits.
        anchors: phi of each, `[n, n_layers, d_model]`.
        arms: Name -> a delta of each edit.
        centre: Mean over objects, `[n_layers, d_model]`.
    """
    prompts = [list(prompts_of(lm, record, paraphrases=False).values()) for record in records]
    found = arm_states(lm, prompts, arms)
    firsts = [own[0].target[0] for own in prompts]
    return {
        name: Curves(
            F.cosine_similarity(hidden, anchors, dim=-1),
            torch.full(hidden.shape[:2], float("nan"))
            if centre is None
            else F.cosine_similarity(hidden - centre, anchors - centre, dim=-1),
            lens(lm, hidden, firsts),
        )
        for name, hidden in found.items()
    }


@dataclass(frozen=True)
class Plane:
    """Two principal axes of some points.

    Attributes:
        mean: `[d]`.
        axes: `[2, d]`, orthonormal; the sign of each makes its largest entry positive.
        share: Share of the points' variance along each, `[2]`.
    """

    mean: Tensor
    axes: Tensor
    share: Tensor

    @classmethod
    def of(cls, points: Tensor) -> Plane:
        """PCA of `[n, d]`, n >= 3."""
        points = points.double()
        mean = points.mean(0)
        _, size, axes = torch.linalg.svd(points - mean, full_matrices=False)
        axes = axes[:2]
        sign = axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
        return cls(mean, axes * sign, (size**2 / (size**2).sum())[:2])

    def project(self, points: Tensor) -> Tensor:
        """`[n, d]` -> `[n, 2]`."""
        return (points.double() - self.mean) @ self.axes.T


@dataclass(frozen=True)
class Scene:
    """One edit in the plane of the unedited states, at some layers.

    Attributes:
        case_id: The edit.
        title: What it says.
        texts: Group (`reference`, `phi`, `base`, arms) -> the prompts of its points.
        points: Layer -> group -> `[n, 2]`.
        cosines: Layer -> group -> cosines of its states to phi, `[n]`.
        shares: Layer -> share of the variance of the fitted points along the axes, `[2]`.
    """

    case_id: str
    title: str
    texts: dict[str, list[str]]
    points: dict[int, dict[str, Tensor]]
    cosines: dict[int, dict[str, Tensor]]
    shares: dict[int, Tensor]


def scene(lm: LM, record: EditRecord, anchor: Anchor, arms: Mapping[str, Delta], depths: Sequence[int]) -> Scene:
    """One edit's prompts under every arm, in planes fitted on the references and the unedited prompts alone.

    Args:
        lm: The unedited model.
        record: The edit.
        anchor: Of its object, with the states of its references.
        arms: Name -> its delta.
        depths: Layers.
    """
    if anchor.hidden is None or anchor.mean is None:
        raise ValueError("a scene needs the states of the references")
    prompts = prompts_of(lm, record)
    found = {"reference": anchor.hidden, "phi": anchor.mean[None]}
    found |= arm_states(lm, [list(prompts.values())], {name: [delta] for name, delta in arms.items()})
    texts = {name: list(prompts) for name in (BASE, *arms)}
    points, cosines, shares = {}, {}, {}
    for layer in depths:
        here = {name: hidden[:, layer] for name, hidden in found.items()}
        plane = Plane.of(torch.cat([here["reference"], here[BASE]]))
        points[layer] = {name: plane.project(h) for name, h in here.items()}
        cosines[layer] = {name: F.cosine_similarity(h, here["phi"], dim=-1) for name, h in here.items()}
        shares[layer] = plane.share
    r = record.request
    return Scene(
        r.case_id,
        f"{r.text.strip()} → {r.target_new}",
        {"reference": [ref.text for ref in anchor.used], "phi": [""]} | texts,
        points,
        cosines,
        shares,
    )


def depths_of(n_layers: int, edited: int, aligned: Sequence[int]) -> list[int]:
    """Layers of a scene: just above the edited one, the middle and the end of the aligned ones, the last but one.

    Where some of these are the same, layers halfway between others take their places, up to four in all.
    """
    wanted = {edited + 1, aligned[len(aligned) // 2], aligned[-1], n_layers - 2}
    found = sorted(layer for layer in wanted if 0 <= layer < n_layers)
    while len(found) < 4:
        gap, below = max(((b - a, a) for a, b in pairwise(found)), default=(0, 0))
        if gap < 2:
            break
        found = sorted([*found, below + gap // 2])
    return found
