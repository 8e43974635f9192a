"""Edits that accumulate, with and without REP: what is left of the first n after n edits.

    python benchmarks/rep_sequential.py --data ../shared/data/rep_counterfact_test.json --known \\
        --corpus ../shared/data/wikitext2_test.txt --counts 10 50 100 --save rep_sequential_rome

Two runs over the same records in the same order: the editor alone, then with REP. After each of the counts all
records edited so far are measured on the model as it is then.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from common import save
from lightning.pytorch import Trainer

from kedit import methods
from kedit.batch import EditBatch
from kedit.callbacks.base import EditCallback
from kedit.cli.quiet import quiet_lightning
from kedit.contexts import ContextConfig
from kedit.data import RobustQueries
from kedit.evaluate import EvalConfig, ProbeScore, score
from kedit.lm import LMConfig
from kedit.methods import REP, EditingModule
from kedit.queries import QueryConfig
from kedit.results import result_row
from kedit.robustness import figures

KINDS = ["rewrite", "paraphrase_id", "paraphrase_ood", "shuffle_id", "shuffle_ood", "neighborhood"]


class At(EditCallback):
    """Measures every record edited so far after some numbers of edits."""

    def __init__(self, counts: list[int], arm: str, path: Path) -> None:
        self.counts, self.arm, self.path = counts, arm, path
        self.base: list[list[ProbeScore]] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.records = [record for batch in trainer.datamodule.batches for record in batch]
        self.base = self._score(pl_module, len(self.records))

    def on_edit_end(self, trainer: Any, module: EditingModule, batch: EditBatch) -> None:
        n = module.edits_done
        if n % 10 == 0:
            print(f"{self.arm}: {n} edits", flush=True)
        if n not in self.counts:
            return
        after = self._score(module, n)
        with self.path.open("a", encoding="utf-8") as file:
            for record, b, a in zip(self.records[:n], self.base, after, strict=False):
                row = result_row(record, b, a, batch.index, f"{self.arm}, {n} edits")
                file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def _score(self, module: EditingModule, n: int) -> list[list[ProbeScore]]:
        counts = [len(record.probes) for record in self.records[:n]]
        probes = [probe for record in self.records[:n] for probe in record.probes]
        flat = iter(score(module.lm, probes, config=EvalConfig(generate=[])))
        return [[next(flat) for _ in range(count)] for count in counts]


def main() -> None:
    """Run both, and save the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--corpus", required=True, help="text for the long contexts that train")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--editor", default="ROME")
    parser.add_argument("--mode", default="trained", choices=["trained", "closed_form"])
    parser.add_argument("--known", action="store_true", help="only facts that the model gives itself")
    parser.add_argument("--counts", type=int, nargs="+", default=[10, 50, 100])
    parser.add_argument("--max-probes", type=int, help="probes of each kind in a record")
    parser.add_argument("--contexts", type=int, default=5, help="of each length; 10 is the published number")
    parser.add_argument("--rows", type=Path, help="file for the result rows")
    parser.add_argument("--save", required=True)
    a = parser.parse_args()
    path = a.rows or Path("runs") / f"{a.save}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    about: dict[str, Any] = {}
    for arm in (a.editor, f"{a.editor} with REP"):
        options = {"contexts": ContextConfig([[5, a.contexts], [10, a.contexts]])} if "ROME" in a.editor else {}
        module = getattr(methods, a.editor)(lm=LMConfig(a.model), regime="sequential", seed=0, **options)
        if arm != a.editor:
            module = REP(module, mode=a.mode)
        data = RobustQueries(
            a.data,
            known=a.known,
            limit=max(a.counts),
            shuffle_seed=0,
            probe_kinds=KINDS,
            max_probes=a.max_probes,
            queries=QueryConfig(corpus=a.corpus, long_contexts=0, train_long=1),
        )
        with quiet_lightning():
            trainer = Trainer(
                accelerator="auto",
                devices=1,
                max_epochs=-1,
                callbacks=[At(a.counts, arm, path)],
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                reload_dataloaders_every_n_epochs=1,
                num_sanity_val_steps=0,
            )
            trainer.fit(module, datamodule=data)
        about[arm] = {"method": module.describe(), "data_set": data.describe()}
    lines = figures([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()])
    for line in lines:
        print(f"{line['when']:28s}{line['kind']:18s}{line['after']:7.1f} [{line['ci_low']:.1f}, {line['ci_high']:.1f}]")
    protocol = "sequential regime, one edit at a time; measured after n edits, all n records"
    save(a.save, {"protocol": protocol, "data": Path(a.data).name, "runs": about, "figures": lines})


if __name__ == "__main__":
    main()
