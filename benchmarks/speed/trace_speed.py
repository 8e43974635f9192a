"""Causal tracing in sweeps against one restoration at a time, in one run: the same facts, noise and numbers.

    OMP_NUM_THREADS=1 python benchmarks/speed/trace_speed.py

Two ways, fact by fact in turns, so that what else the machine does slows both down alike:

- `one_by_one`: a full forward pass of the noisy rows for every restoration, with hooks on the model's own modules.
  Tokens before the subject are left out here too, as nothing can change there.
- `kedit`: `kedit.causal_tracing.trace`.

Shares are of CPU seconds, on a GPU of wall seconds. Equality: the largest difference of a probability.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs as a file, kedit installed or not

from benchmarks.common import get_lm, read_requests, save, speed_parser, timed
from benchmarks.speed.measured import clock_of
from kedit.causal_tracing import PARTS, Fact, Part, TraceConfig, facts_of, noise_level, trace, window_of
from kedit.causal_tracing.facts import noise_of
from kedit.causal_tracing.restoration import spans_of
from kedit.data import read_facts
from kedit.model.lm import LM
from kedit.request import EditRecord

Hook = Callable[[Any, Any, Any], Any]


class OneByOne:
    """The definition: every restoration is a forward pass of its own."""

    def __init__(self, lm: LM, fact: Fact, sigma: float, config: TraceConfig) -> None:
        self.lm, self.fact, self.config = lm, fact, config
        self.noise = noise_of(fact, sigma, config.samples, config.seed, lm.d_model).to(lm.device)
        self.clean: dict[tuple[Part, int], Tensor] = {}

    def traced(self) -> dict[Part, Tensor]:
        """Part -> mean probability of the answer, `[tokens, n_layers]`."""
        fact, n = self.fact, self.lm.arch.n_layers
        places: list[tuple[Part, int]] = [(part, i) for part in PARTS for i in range(n)]
        self._run([(self._module(*place), self._keeping(place)) for place in places], noisy=False)
        found: dict[Part, Tensor] = {}
        for part in PARTS:
            spans = spans_of(part, n, window_of(self.config, n))
            found[part] = torch.tensor(
                [
                    [
                        float(self._run([(self._module(part, i), self._restoring(part, i, t)) for i in range(*span)]))
                        for span in spans
                    ]
                    for t in range(fact.first, len(fact.ids))
                ]
            )
        return found

    def _module(self, part: Part, layer: int) -> torch.nn.Module:
        arch, model = self.lm.arch, self.lm.model
        if part == "state":
            return arch.layer(model, layer)
        return arch.module(model, "mlp" if part == "mlp" else "attn", layer)

    def _keeping(self, place: tuple[Part, int]) -> Hook:
        def hook(_: Any, args: Any, output: Any) -> None:
            self.clean[place] = (output[0] if isinstance(output, tuple) else output).clone()

        return hook

    def _restoring(self, part: Part, layer: int, token: int) -> Hook:
        def hook(_: Any, args: Any, output: Any) -> Any:
            new = (output[0] if isinstance(output, tuple) else output).clone()
            new[:, token] = self.clean[part, layer][0, token]
            return (new, *output[1:]) if isinstance(output, tuple) else new

        return hook

    @torch.no_grad()
    def _run(self, hooks: list[tuple[torch.nn.Module, Hook]], noisy: bool = True) -> Tensor:
        lm, fact = self.lm, self.fact

        def corrupt(_: Any, args: Any, output: Tensor) -> Tensor:
            output = output.clone()
            output[:, fact.first : fact.last + 1] += self.noise.to(output.dtype)
            return output

        if noisy:
            hooks = [(lm.arch.embed(lm.model), corrupt), *hooks]
        ids = torch.tensor([fact.ids], device=lm.device).repeat(len(self.noise) if noisy else 1, 1)
        with ExitStack() as stack:
            for module, hook in hooks:
                stack.callback(module.register_forward_hook(hook).remove)
            logits = lm.model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[:, -1].float()
        return logits.softmax(-1)[:, fact.answer].double().mean()


def main() -> None:
    """Trace some facts both ways, and print and save the figures."""
    parser = speed_parser(__doc__, "facts of kedit's own train split")
    parser.add_argument("--facts", type=int, default=3)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--most-tokens", type=int, default=9, help="of a prompt: the slow way is slow")
    a = parser.parse_args()
    lm = get_lm(a.model, a.dtype, a.device)
    if a.data is None:
        records = [record for record in read_facts("train") if record.meta["known"]]
        random.Random(0).shuffle(records)
    else:
        records = [EditRecord(request, ()) for request in read_requests(a.data, 100)]
    facts = [fact for fact in facts_of(lm, records) if len(fact.ids) <= a.most_tokens][: a.facts]
    config, clock = TraceConfig(samples=a.samples), clock_of(a.device)
    sigma = noise_level(lm, facts, config.noise)
    spent: dict[str, list[float]] = {"one_by_one": [], "kedit": []}
    apart, moved = 0.0, 0.0
    trace(lm, facts[:1], config, ["mlp"], True, sigma=sigma)  # what is made at the first call
    for fact in facts:
        naive, seconds = timed(OneByOne(lm, fact, sigma, config).traced, a.device)
        spent["one_by_one"].append(seconds[clock])
        (own,), seconds = timed(lambda fact=fact: trace(lm, [fact], config, sigma=sigma), a.device)
        spent["kedit"].append(seconds[clock])
        for part in PARTS:
            apart = max(apart, float((naive[part] - own.restored[part]).abs().max()))
            moved = max(moved, float(own.effect(part).abs().max()))
        print(fact.title, {name: round(each[-1], 2) for name, each in spent.items()})
    figures = {
        "settings": vars(a) | {"threads": torch.get_num_threads(), "unit": f"{clock} seconds", "sigma": sigma},
        "tokens": [[len(fact.ids), len(fact.ids) - fact.first] for fact in facts],
        "restorations": sum(3 * lm.arch.n_layers * (len(fact.ids) - fact.first) for fact in facts),
        "seconds": spent,
        "times_faster": sum(spent["one_by_one"]) / sum(spent["kedit"]),
        "largest_difference_of_a_probability": apart,
        "largest_effect": moved,
    }
    print({name: figures[name] for name in ("times_faster", "largest_difference_of_a_probability", "largest_effect")})
    print("saved", save(a.save or f"trace_speed_{a.device}", figures).name)


if __name__ == "__main__":
    main()
