"""Runs that one process and several do alike: `python -m tests.support.process_cases JOBS` does them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from tests.support.hidden_state_cases import write_files
from tests.support.tiny_models import TEXT

LAYERS = {"MEMIT": "layers", "EMMET": "layers"}
ADAPTER = {"steps": 4, "positives": 6, "negatives": 8, "rank": 2, "others": 3, "phrases": 0, "confusable_names": 0}
STATISTICS = {"tokens": 600, "batch_tokens": 100, "sequence_length": 50}
ADAPTER |= {"corpus_tokens": 60, "contexts": 1}


def editor(name: str, **more: Any) -> dict[str, Any]:
    """An editor on a tiny model."""
    several = name in ("MEMIT", "PMET", "AlphaEdit")
    layers = {"layers": [0, 1]} if several else {"layers": [1]} if name == "EMMET" else {"layer": 1}
    args = {"v_num_grad_steps": 4, "contexts": {"lengths": [[3, 1]]}}
    return {"class_path": name, "init_args": args | layers | {"stats": STATISTICS} | more}


def model(name: str) -> dict[str, Any]:
    """The method of a case."""
    method, _, *rest = name.split("-")
    if method in ("ROME", "RROME", "MEMIT", "EMMET", "PMET", "AlphaEdit"):
        stats = {"tokens": 2500, "batch_tokens": 100, "sequence_length": 50} if rest else STATISTICS
        return editor(method, stats=stats)
    if method == "PAC":
        train = {"lr": 0.01, "passes": 3, "mini_batch": 2}
        return {"class_path": "PAC", "init_args": {"train": train}}
    if method == "GRACE":
        return {"class_path": method, "init_args": {"layer": 2, "steps": 4}}
    if method == "UltraEdit":
        return {"class_path": method, "init_args": {"eta": 1e-4, "warmup": 6, "chunk": 2}}
    if method == "LoRA":
        return {"class_path": "LoRA", "init_args": {"steps": 3, "mini_batch": 2}}
    if method in ("FT", "LocFT"):
        return {"class_path": method, "init_args": {"steps" if method == "FT" else "epochs": 3, "mini_batch": 2}}
    if method in ("Retrieval", "IKE"):
        return {"class_path": method, "init_args": {} if method == "Retrieval" else {"k": 2}}
    if method == "KN":
        return {"class_path": "KN", "init_args": {"refine": True, "contexts": {"lengths": [[3, 2]]}}}
    more: dict[str, Any] = {"adapter": ADAPTER} if method == "REP" else {}
    if method == "STEAM":
        more = {"anchors": {"knowledge": ["base.jsonl"]}, "compare": "compare" in rest}
    return {"class_path": method, "init_args": {"editor": editor(rest[0]), **more}}


MORE: dict[str, dict[str, Any]] = {
    "ROME-single": {"data.queries": {"shuffles": 2, "long_words": [10], "corpus": "text.txt"}, "texts.enabled": True},
    "RROME-sequential": {"metrics.eval_at": [2, 4]},
    "MEMIT-batch": {"data.batch_size": 5},
    "EMMET-sequential": {"data.batch_size": 3, "metrics.scoring.batch_tokens": 60},
    "FT-single": {},
    "LocFT-batch": {"data.batch_size": 5},
    "PMET-batch": {"data.batch_size": 5},
    "AlphaEdit-sequential": {"data.batch_size": 3},
    "REP-single-ROME": {"similarity.enabled": True, "data.queries": {"shuffles": 2, "long_words": []}},
    "REP-sequential-MEMIT": {"data.batch_size": 4},
    "PAC-single": {"importance.enabled": True},
    "PAC-sequential": {"data.batch_size": 4},
    "LoRA-sequential": {"data.batch_size": 4},
    "STEAM-single-ROME-compare": {"latent.enabled": True, "latent.max_edits": 3},
    "STEAM-batch-MEMIT": {"data.batch_size": 6},
    "GRACE-sequential": {},
    "UltraEdit-batch": {"data.batch_size": 3, "metrics.scoring.generate": []},
    "UltraEdit-sequential": {"data.batch_size": 3, "metrics.scoring.generate": []},
    "Retrieval-sequential": {"data.batch_size": 3, "texts.enabled": True},
    "IKE-single": {"metrics.scoring.generate": ["rewrite", "paraphrase"]},
    "PRUNE-sequential-MEMIT": {"data.batch_size": 4},
    "RECT-single-MEMIT": {},
    "KN-single": {},
    "KN-sequential": {},
}
CASES = tuple(MORE)
STATS = "EMMET-sequential-stats"
"""A run whose statistics are not taken from another's."""


def case_words(name: str, lm: str, root: Path, count: int) -> list[str]:
    """The command of a case: its run below `root`, its files beside that, the same for every number of processes."""
    files = root.parent
    files.mkdir(parents=True, exist_ok=True)
    data, base = write_files(files)
    (files / "text.txt").write_text(TEXT)
    lanes = 0 if name.startswith(("PAC", "LoRA")) else 2  # two requests side by side
    edit = {"regime": name.split("-")[1], "lanes": lanes}
    whole = {
        "lm": {"name": lm},
        "edit": edit,
        "model": model(name),
        "data": {"class_path": "Records", "init_args": {"path": str(data)}},
    }
    text = json.dumps(whole).replace('"base.jsonl"', json.dumps(str(base)))
    config = files / f"{name}.json"
    config.write_text(text)
    options = {"run.root": root, "run.name": name, "trainer.accelerator": "cpu", "trainer.devices": count}
    options |= {"results.resamples": 20, "robustness.resamples": 20}
    words = ["fit", "--config", str(config)]
    for option, value in (options | MORE.get(name, {})).items():
        said = value if isinstance(value, str | Path) else json.dumps(value)
        words += [f"--{option}", str(said).replace("text.txt", str(files / "text.txt"))]
    return words


def main() -> None:
    """Run the jobs of a file: command lines, some with a cache of their own."""
    from kedit.cli import main as kedit

    for job in json.loads(Path(sys.argv[1]).read_text()):
        if "cache" in job:
            os.environ["KEDIT_CACHE"] = job["cache"]
        kedit(job["words"])


if __name__ == "__main__":
    main()
