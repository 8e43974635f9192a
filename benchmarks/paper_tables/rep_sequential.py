"""Edits that accumulate, with and without REP: what is left of the first n after n edits.

    python benchmarks/paper_tables/rep_sequential.py --config configs/rome_smollm2.yaml --known --counts 10 50 100 \\
        --data ../shared/data/rep_counterfact_test.json --corpus ../shared/data/wikitext2_test.txt \\
        --save rep_sequential_rome

Two runs over the same records in the same order: the editor alone, then with REP. After each of the counts all
records edited so far are measured on the model as it is then.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs as a file, kedit installed or not

from benchmarks.common import save
from benchmarks.paper_tables.editing import editor_of, fit, names, parser, robust_data, rows_file, show
from kedit.evaluation.score import EvalConfig, ProbeScore, score_records
from kedit.methods import REP, EditingModule
from kedit.methods.base.callback import EditCallback
from kedit.methods.base.edit_batch import EditBatch
from kedit.results.robustness import figures
from kedit.results.rows import result_row
from kedit.runtime.run_folder import append_rows, read_rows

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
        measured_at = f"{self.arm}, {n} edits"
        found = zip(self.records[:n], self.base[:n], after, strict=True)
        append_rows(self.path, [result_row(record, b, a, batch.index, measured_at) for record, b, a in found])

    def _score(self, module: EditingModule, n: int) -> list[list[ProbeScore]]:
        return score_records(module.lm, self.records[:n], config=EvalConfig(generate=[]))


def main() -> None:
    """Run both, and save the figures."""
    options = parser(__doc__)
    options.add_argument("--mode", default="trained", choices=["trained", "closed_form"])
    options.add_argument("--counts", type=int, nargs="+", default=[10, 50, 100])
    options.add_argument("--arms", nargs="+", default=["editor", "rep"], choices=["editor", "rep"])
    a = options.parse_args()
    a.records = a.records or max(a.counts)
    path = rows_file(a)
    about: dict[str, Any] = {}
    for arm in a.arms:
        editor = editor_of(a, regime="sequential")
        module = REP(editor, mode=a.mode) if arm == "rep" else editor
        data = robust_data(a, KINDS, long_contexts=0, train_long=1)
        fit(module, data, At(a.counts, arm, path))
        about[arm] = {"method": module.describe(), "data_set": data.describe()}
    lines = figures(list(read_rows(path)))
    show(lines)
    protocol = "sequential regime, one edit at a time; measured after n edits, all n records"
    save(a.save, names(a) | {"protocol": protocol, "runs": about, "figures": lines})


if __name__ == "__main__":
    main()
