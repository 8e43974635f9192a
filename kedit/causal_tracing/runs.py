"""The clean and the corrupted runs of one fact, with all that restorations need of them, in one forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.pytorch_utils import Conv1D

from kedit.causal_tracing.facts import Fact, noise_of
from kedit.errors import KeditError
from kedit.forward.logits import frozen

if TYPE_CHECKING:
    from kedit.model.lm import LM

Part = Literal["state", "mlp", "attention"]
"""What is restored: the residual stream that leaves a layer, or what its MLP or its attention adds to it."""

PARTS: tuple[Part, ...] = ("state", "mlp", "attention")
_HEAD_ROWS = 256  # whose logits are there at once


class Runs:
    """One clean and some corrupted runs of a fact. Only tokens from the subject's first on are kept, S of them.

    Args:
        lm: The model, unedited.
        fact: The fact.
        sigma: Standard deviation of the noise.
        samples: Corrupted runs, N.
        seed: Of the noise.

    Attributes:
        inputs: Corrupted input of every layer, and at last what leaves the top one, `[N, S, d_model]` each.
        clean: Part -> clean output of every layer's, `[S, d_model]` each.
        modules: Part -> the module whose output that is, of every layer.
        keys: Of every layer's attention in the corrupted runs, `[N, heads, T, head_dim]` each, all tokens.
        values: The same of the values.
        in_tuple: Whether this model's layers return their output in a tuple.
        p_clean: Probability of the answer in the clean run.
        p_corrupted: In the corrupted ones, `[N]`.

    Raises:
        KeditError: The noise cannot be put on the model's embeddings.
    """

    def __init__(self, lm: LM, fact: Fact, sigma: float, samples: int, seed: int) -> None:
        self.lm, self.fact, self.n = lm, fact, samples
        layers = [lm.arch.layer(lm.model, i) for i in range(lm.arch.n_layers)]
        self.inputs: list[Tensor] = []
        self.clean: dict[Part, list[Tensor]] = {part: [torch.empty(0)] * len(layers) for part in PARTS}
        self.modules: dict[Part, list[nn.Module]] = {part: list(layers) for part in PARTS}
        self.in_tuple = False
        cache = DynamicCache()
        ids = torch.tensor([fact.ids], device=lm.device).repeat(1 + samples, 1)
        with frozen(lm.model), self._listening(layers, sigma, seed):
            call(lm, ids, 0, cache)
        kept: list[Any] = cache.layers
        self.keys: list[Tensor] = [block.keys[1:] for block in kept]
        self.values: list[Tensor] = [block.values[1:] for block in kept]
        self.p_clean = float(self.probability(self.clean["state"][-1][-1:])[0])
        self.p_corrupted = self.probability(self.inputs[-1][:, -1])

    @torch.no_grad()
    def probability(self, hidden: Tensor) -> Tensor:
        """Probability of the answer after states that leave the top layer, `[rows, d_model]` -> `[rows]`."""
        found = []
        for part in hidden.split(_HEAD_ROWS):
            logits = self.lm.arch.logits(self.lm.model, part)
            logits = logits if logits.dtype == torch.float64 else logits.float()
            found.append((logits[:, self.fact.answer] - logits.logsumexp(-1)).exp())
        return torch.cat(found)

    @contextmanager
    def _listening(self, layers: Sequence[nn.Module], sigma: float, seed: int) -> Iterator[None]:
        """Inside, the one forward pass gets its noise, and what is kept of it is kept."""
        lm, first = self.lm, self.fact.first
        heard: list[bool] = []

        def corrupt(_: nn.Module, args: Any, output: Any) -> Any:
            fits = isinstance(output, Tensor) and output.shape[:-1] == (1 + self.n, len(self.fact.ids))
            heard.append(fits)
            return self._noisy(output, sigma, seed) if fits else output

        def enter(_: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            self.inputs.append(hidden[1:, first:].clone())

        with ExitStack() as stack:
            stack.callback(lm.arch.embed(lm.model).register_forward_hook(corrupt).remove)
            for i, layer in enumerate(layers):
                stack.callback(layer.register_forward_pre_hook(enter, with_kwargs=True).remove)
                self._keep(stack, "mlp", i, [lm.arch.module(lm.model, "mlp_out", i)])
                self._keep(stack, "attention", i, _maps(lm.arch.module(lm.model, "attn", i)))
                self._keep(stack, "state", i, [layer])
            yield
        if heard != [True]:
            raise KeditError(
                f"{lm.name}: its embeddings cannot be reached, so no noise can be put on a subject: in a forward pass "
                f"{lm.arch.family.embed} gives the vectors of all tokens {sum(heard)} times, not once"
            )

    def _noisy(self, embeddings: Tensor, sigma: float, seed: int) -> Tensor:
        """The embeddings with noise on the subject in all rows but the first."""
        span = slice(self.fact.first, self.fact.last + 1)
        noise = noise_of(self.fact, sigma, self.n, seed, embeddings.shape[-1]).to(embeddings.device)
        embeddings = embeddings.clone()
        embeddings[1:, span] = (embeddings[1:, span] + noise).to(embeddings.dtype)
        return embeddings

    def _keep(self, stack: ExitStack, part: Part, layer: int, modules: Sequence[nn.Module]) -> None:
        """Keeps what the last of some modules to run gives: the last map of an attention block is its output."""
        top = part == "state" and layer == self.lm.arch.n_layers - 1

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            hidden = hidden.reshape(1 + self.n, -1, hidden.shape[-1])  # OPT's MLP works on flattened rows
            if hidden.shape[-1] != self.lm.d_model:
                return
            self.clean[part][layer], self.modules[part][layer] = hidden[0, self.fact.first :].clone(), module
            if part == "state":
                self.in_tuple = isinstance(output, tuple)
            if top:
                self.inputs.append(hidden[1:, self.fact.first :].clone())

        for module in modules:
            stack.callback(module.register_forward_hook(hook).remove)


def call(lm: LM, ids: Tensor, start: int, cache: DynamicCache) -> None:
    """One pass without the head over `ids: [rows, S]`, whose first token is the prompt's `start`-th."""
    positions = start + torch.arange(ids.shape[1], device=ids.device)[None]
    mask = torch.ones(len(ids), start + ids.shape[1], dtype=torch.long, device=ids.device)
    lm.model.base_model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions.expand(len(ids), -1),
        past_key_values=cache,
        use_cache=True,
    )


def _maps(block: nn.Module) -> list[nn.Module]:
    """The linear maps of a block; some blocks (BLOOM's attention) add the residual to what the last of them gives."""
    return [module for module in block.modules() if isinstance(module, (nn.Linear, Conv1D))] or [block]
