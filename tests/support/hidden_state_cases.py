"""A quick run of STEAM on a tiny model, for the tests of what it compares and draws; later words win."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.device import ACCELERATOR
from tests.support.small_runs import option_words

PLACES = {
    "France": ("Rome", "Paris"),
    "Italy": ("Paris", "Rome"),
    "Japan": ("Cairo", "Tokyo"),
    "Egypt": ("Tokyo", "Cairo"),
    "Spain": ("Rome", "Madrid"),
    "Brazil": ("Apple", "Portuguese"),
}
KNOWLEDGE = [
    {"prompt": f"{start} {thing} {end}", "object": city, "relation": relation}
    for city, things in {"Rome": "AEIOU", "Paris": "BCDFG", "Tokyo": "HJKLM", "Cairo": "NPQRS"}.items()
    for relation, start, end in (("in", "The tower of", "is in"), ("from", "Trains to", "start from"))
    for thing in things
]


def write_files(folder: Path) -> tuple[Path, Path]:
    """Records of five objects, and what is known of four of them."""
    data, base = folder / "facts.jsonl", folder / "base.jsonl"
    rows = [
        {
            "case_id": place,
            "prompt": "The capital of {} is",
            "subject": place,
            "target_new": new,
            "target_true": true,
            "paraphrases": [f"{place} has the capital", f"People in {place} go to"],
        }
        for place, (new, true) in PLACES.items()
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    base.write_text("".join(json.dumps(row) + "\n" for row in KNOWLEDGE))
    return data, base


def steam_words(lm: str, folder: Path, layer: int = 1) -> list[str]:
    """The command, its runs below `folder`/runs."""
    data, base = write_files(folder)
    editor: dict[str, Any] = {
        "class_path": "ROME",
        "init_args": {
            "layer": layer,
            "mom2_adjustment": False,
            "v_num_grad_steps": 4,
            "contexts": {"lengths": [[3, 1]]},
        },
    }
    options = {
        "model": "STEAM",
        "model.editor": json.dumps(editor),
        "model.anchors": json.dumps({"knowledge": [str(base)]}),
        "lm.name": lm,
        "edit.lanes": 2,
        "data": "Records",
        "data.path": data,
        "results.resamples": 20,
        "run.root": folder / "runs",
        "run.name": "one",
        "trainer.accelerator": ACCELERATOR,
    }
    return ["fit", *option_words(options)]


def editor_words(words: list[str]) -> list[str]:
    """The same run by the editor alone."""
    given = dict(zip(words[1::2], words[2::2], strict=True))
    editor = json.loads(given["--model.editor"])
    given = {"--model": editor["class_path"]} | {k: v for k, v in given.items() if not k.startswith("--model")}
    more = {f"--model.{name}": v if isinstance(v, str) else json.dumps(v) for name, v in editor["init_args"].items()}
    return ["fit", *(part for pair in (given | more).items() for part in pair)]


def with_editor(words: list[str], class_path: str | None = None, regime: str = "single", **changes: Any) -> list[str]:
    """The run with another editor or regime, or other options of the editor; None takes an option away."""
    at = words.index("--model.editor") + 1
    editor = json.loads(words[at])
    args = {k: v for k, v in (editor["init_args"] | changes).items() if v is not None}
    editor = {"class_path": class_path or editor["class_path"], "init_args": args}
    return [*words[:at], json.dumps(editor), *words[at + 1 :], "--edit.regime", regime]
