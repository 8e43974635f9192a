"""What is traced: facts as token ids with the place of their subject, and the noise on its embeddings."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kedit.errors import KeditError
from kedit.model.tokenization import encode_subject
from kedit.request import EditRecord

if TYPE_CHECKING:
    from kedit.model.lm import LM


@dataclass(frozen=True)
class Fact:
    """One prompt whose answer the model knows.

    Attributes:
        case_id: The record.
        ids: The prompt's tokens.
        first: Index of the subject's first token.
        last: Index of its last one.
        answer: First token of the true answer, whose probability is traced.
        title: The prompt and the answer, as figures call it.
    """

    case_id: str
    ids: tuple[int, ...]
    first: int
    last: int
    answer: int
    title: str


def facts_of(lm: LM, records: Sequence[EditRecord], who: str = "kedit trace") -> list[Fact]:
    """Records as facts.

    Args:
        lm: The model, as it is asked.
        records: With their true targets.
        who: What needs the subject, for messages.

    Raises:
        KeditError: A record without a subject or a true target, or one that does not fit into the context; names it.
    """
    found = []
    for record in records:
        r = record.request
        if r.target_true is None:
            raise KeditError(f"{r.name}: it has no target_true, the answer that {who} follows")
        tokens = encode_subject(lm, r.prompt, r.named(who), r.target_true, name=r.name, joiner=r.joiner)
        title = f"{r.text.strip()} → {r.target_true}"
        ids = tokens.ids[: tokens.n_prompt]
        found.append(Fact(r.case_id, ids, tokens.subject_first, tokens.subject_last, tokens.target[0], title))
    return found


@torch.no_grad()
def noise_level(lm: LM, facts: Sequence[Fact], factor: float) -> float:
    """sigma: `factor` times the standard deviation of all numbers in the embeddings of the subjects' tokens.

    The paper's section 2.1 and appendix B.1, where the factor is 3.

    Raises:
        KeditError: The model's embeddings cannot be reached.
    """
    ids = torch.tensor([token for fact in facts for token in fact.ids[fact.first : fact.last + 1]], device=lm.device)
    found = lm.arch.embed(lm.model)(ids[None])
    if not isinstance(found, Tensor) or found.shape[:-1] != (1, len(ids)):
        raise KeditError(
            f"{lm.name}: its token embedding gives no vector for each token, so no noise can be added there"
        )
    return factor * float(found.double().std())


def noise_of(fact: Fact, sigma: float, samples: int, seed: int, width: int) -> Tensor:
    """Noise for the subject's tokens, `[samples, tokens of the subject, width]` float32, on the CPU.

    It depends on the seed and on the fact, not on which others are traced.
    """
    digest = hashlib.sha256(f"{seed} {fact.case_id}".encode(errors="surrogatepass")).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return sigma * torch.randn(samples, fact.last + 1 - fact.first, width, generator=generator)
