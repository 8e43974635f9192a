"""The model card of an exported folder: what it is, which facts it changes, its numbers, and how to load it.

`README.md` is for people and model hubs, `edit_card.json` says the same to programs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from kedit.delta.delta import Delta
from kedit.export.folder import RECORD
from kedit.export.measure import Efficacy
from kedit.export.requests import method_of, requests_of, settings_of
from kedit.model.lm import LM
from kedit.model.pretrained import ALIASES
from kedit.results.tables import interval, number
from kedit.runtime.files import write_json, write_text
from kedit.version import __version__

if TYPE_CHECKING:
    from kedit.export.hf import Rounding

SHOWN = 50
"""Requests and matrices that the card lists; `edit_card.json` has all."""
TELLS = (
    "**This folder tells which subjects were edited.** The requests are listed below. Without the list the change "
    "itself still points at them: what it reads are the directions of the edited subjects. Do not publish it where "
    "the subjects must not be known."
)
_IS = {
    "peft": "A LoRA adapter that changes single facts of its base model.",
    "merged": "The base model with single facts changed in its weights.",
    "beside": "The **unedited** base model, with a change of single facts beside it that is no weight.",
}


@dataclass(frozen=True)
class Exported:
    """What was exported.

    Attributes:
        form: `peft`; `merged` into the weights; or `beside` them.
        lm: The unedited model.
        delta: The change.
        card: The delta's card.
        dtype: Of the written tensors.
        in_folder: Where it will be, for the examples.
        rounding: Of each matrix in half precision.
        efficacy: Of the requests that were asked.
    """

    form: Literal["peft", "merged", "beside"]
    lm: LM
    delta: Delta
    card: Mapping[str, Any]
    dtype: str
    in_folder: Path
    rounding: Sequence[Rounding] = ()
    efficacy: Sequence[Efficacy] = ()


def write_card(folder: Path, what: Exported) -> None:
    """Writes `README.md` and `edit_card.json`."""
    write_text(folder / "README.md", as_markdown(what))
    record = {
        "format": 1,
        "form": what.form,
        "dtype": what.dtype,
        "kedit": __version__,
        "rounding": [asdict(line) for line in what.rounding],
        "efficacy": [line.as_row() for line in what.efficacy],
        "card": {key: value for key, value in what.card.items() if key not in ("format", "checksums")},
    }
    write_json(folder / RECORD, record)


def as_markdown(what: Exported) -> str:
    """The card as Markdown, with the header that model hubs read."""
    header = {
        "base_model": base_name(what.lm),
        "base_model_relation": "adapter" if what.form == "peft" else "finetune",
        "library_name": "peft" if what.form == "peft" else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["kedit", "knowledge-editing", *(["lora"] if what.form == "peft" else [])],
    }
    parts = [
        "---\n" + yaml.safe_dump(header, sort_keys=False, allow_unicode=True).strip() + "\n---",
        f"# {base_name(what.lm)}, edited with {method_of(what.card)}",
        _IS[what.form] + " Made with kedit. Its licence is that of the base model.",
        f"> {TELLS}",
        "## How to load it",
        "\n\n".join(_loading(what)),
        "## What it is",
        _table(("", ""), list(_facts(what))),
        "## Edited facts",
        *_requests(what),
        *_numbers(what.card),
        *_rounding(what),
        *_settings(what.card),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def base_name(lm: LM) -> str:
    """The model's name; of a path on this machine its last part alone."""
    return Path(lm.name).name if Path(lm.name).is_absolute() else lm.name


def _loading(what: Exported) -> Iterator[str]:
    name, folder, half = base_name(what.lm), what.in_folder.name, what.dtype in ("bfloat16", "float16")
    base = f'AutoModelForCausalLM.from_pretrained("{name}", dtype="{str(what.lm.dtype).removeprefix("torch.")}")'
    if what.lm.name in ALIASES:
        base = f'kedit.load_lm(kedit.LMConfig("{name}")).model  # the alias that kedit fetches; or its own folder'
    imports = "import kedit" if what.lm.name in ALIASES else "from transformers import AutoModelForCausalLM"
    if what.form == "peft":
        yield _code(
            imports,
            "from peft import PeftModel",
            "",
            f"base = {base}",
            f'model = PeftModel.from_pretrained(base, "{folder}", adapter_name="edit")',
            'model.load_adapter("ANOTHER_FOLDER", "other"); model.set_adapter("other")  # swap edits',
            "model = model.merge_and_unload()  # or keep the one that is set, in the weights",
        )
        yield (
            "In float32 this is the edit exactly, to rounding. In a half-precision base the adapter stays in float32 "
            "and is added to the outputs: nothing of it is rounded away. `merge_and_unload` rounds it into the weights."
        )
    elif what.form == "merged":
        kind = f', dtype="{what.dtype}"' if half else ""
        yield _code(
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f'model = AutoModelForCausalLM.from_pretrained("{folder}"{kind})',
            f'tokenizer = AutoTokenizer.from_pretrained("{folder}")',
        )
    else:
        yield _code("import kedit", "", f'lm = kedit.load_edited("{folder}")', "lm.model, lm.tokenizer  # edited")
        yield (
            "transformers alone loads the unedited model from here. `lm.model.generate` uses adapters and codebooks. "
            "Texts that stand before prompts are put there by `lm.prompt(text)`."
        )


def _facts(what: Exported) -> Iterator[tuple[str, str]]:
    card, lm = what.card, what.lm
    yield "base model", f"{base_name(lm)}, {str(lm.dtype).removeprefix('torch.')}"
    yield "its fingerprint", f"`{card.get('model_fingerprint', lm.fingerprint)}`"
    yield "method", method_of(card)
    for key in ("regime", "seed"):
        if key in card:
            yield key, str(card[key])
    n, kinds = len(what.delta.paths), ", ".join(kind.__name__ for kind in what.delta.kinds)
    yield "changed", f"{n} module{'s' if n > 1 else ''}, kinds: {kinds}"
    yield "norm of the change", f"{what.delta.norm():.6g}"
    yield "written in", what.dtype
    made = card.get("provenance") or {}
    packages = {"kedit": made.get("kedit", __version__), **(made.get("packages") or {})}
    yield "edited with", ", ".join(f"{name} {number}" for name, number in packages.items())
    exporters = {"kedit": __version__, **{name: version(name) for name in ("torch", "transformers", "peft")}}
    yield "exported with", ", ".join(f"{name} {number}" for name, number in exporters.items())
    if made.get("commit"):
        yield "commit", f"`{made['commit']}`"


def _requests(what: Exported) -> Iterator[str]:
    requests = requests_of(what.card)
    if not requests:
        yield "The delta's card names none."
        return
    asked = {line.case_id: line for line in what.efficacy}
    written = any(line.written is not None for line in what.efficacy)
    columns = ["record", "prompt", "subject", "new target", "old target"]
    columns += ["p before", "p edited", *(["p as written"] if written else [])] if asked else []
    rows = []
    for request in requests[:SHOWN]:
        row = [request.case_id, request.prompt, request.subject or "", request.target_new, request.target_true or ""]
        if asked:
            line = asked.get(request.case_id)
            numbers = [] if line is None else [line.before, line.edited, *([line.written] if written else [])]
            row += [f"{n:.4f}" for n in numbers if n is not None] or [""] * (3 if written else 2)
        rows.append(tuple(row))
    yield _table(tuple(columns), rows)
    if len(requests) > SHOWN:
        yield f"{len(requests) - SHOWN} more are in `{RECORD}`."
    if asked:
        some = "" if len(asked) == len(requests) else f" {len(asked)} of {len(requests)} were asked."
        means = "probability of the new target after the prompt (geometric mean over its tokens, teacher forced)"
        yield f"p: {means}.{some}"


def _numbers(card: Mapping[str, Any]) -> Iterator[str]:
    """What the run measured, where the card has it."""
    results, protocol = card.get("results"), card.get("protocol")
    if not isinstance(results, Mapping) or not isinstance(protocol, Mapping):
        return
    data = card.get("data") or {}
    yield "## Numbers of its run"
    yield (
        f"{data.get('records', '?')} records of {data.get('name', '?')}, regime {protocol.get('regime')}, seed "
        f"{card.get('seed')}; percent, mean over records. {str(protocol.get('scorer', '')).capitalize()}. "
        "A fact by itself is in the table above; these are means over the run that made it."
    )
    rows = []
    for moment, kinds in results.items():
        for kind, metrics in kinds.items():
            for metric, cell in metrics.items():
                if metric in ("success", "exact", "generated", "unchanged"):
                    numbers = (number(cell.get("before")), number(cell.get("after")), interval(cell.get("ci")))
                    rows.append((moment, kind, metric, *numbers))
    yield _table(("measured at", "probe", "metric", "before", "after", "95 % interval"), rows)


def _rounding(what: Exported) -> Iterator[str]:
    if not what.rounding:
        return
    worst = sorted(what.rounding, key=lambda line: -line.error)
    yield f"## Rounding to {what.dtype}"
    yield (
        "error: the part of the change that rounding lost or altered, relative to its norm; from about 1 on nothing is "
        "left of it. It is large where the change is small beside the weights."
    )
    rows = [(f"`{line.parameter}`", f"{line.norm:.4g}", f"{line.error:.4f}") for line in worst[:SHOWN]]
    yield _table(("parameter", "norm of the change", "error"), rows)


def _settings(card: Mapping[str, Any]) -> Iterator[str]:
    if settings := settings_of(card):
        yield "## Settings of the method"
        yield _table(("option", "value"), [(f"`{key}`", f"`{value}`") for key, value in settings.items()])


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    """One cell: a bar or a line break in it would end it."""
    return " ".join(str(text).replace("|", "\\|").split())


def _code(*lines: str) -> str:
    return "\n".join(["```python", *lines, "```"])
