"""Files of records, for every reader: what is accepted says what the file says, record by record."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from kedit.cli import main
from kedit.data import read_counterfact, read_mquake, read_records, read_robust, read_zsre
from kedit.request import EditRecord
from tests.fuzz.damage import damaged
from tests.fuzz.harness import Case, Said, Wrong
from tests.fuzz.mutate import as_json, changed
from tests.fuzz.seeds import COUNTERFACT, FLAT, MEND, MQUAKE, RECORDS, ROBUST, ZSRE
from tests.support.device import ACCELERATOR
from tests.support.small_runs import QUICK_ROME, option_words
from tests.support.tiny_models import save_tiny

RUNS = 0.04  # share of the cases whose records are edited, where they are accepted

Rows = list[dict[str, Any]]
Wish = tuple[str, str]
"""A request's text and its new target, without white space around them."""


@dataclass(frozen=True)
class Form:
    """A form of data.

    Args:
        read: Its reader.
        data: Its data module, by the name that the command knows.
        rows: Records in it.
        wishes: What an object of the file asks for, read independently of kedit; None where that is open.
        listed: Whether there is a paraphrase probe for every paraphrase.
        own: What else must be so of the records of a file; raises `Wrong`.
    """

    read: Callable[[Path], list[EditRecord]]
    data: str
    rows: Rows
    wishes: Callable[[dict[str, Any]], list[Wish] | None]
    listed: bool = False
    own: Callable[[list[EditRecord], Rows], None] | None = None


class DataFiles:
    """Small files of every form, changed as values, as text and as bytes."""

    name, seconds = "data", 60.0
    runs = RUNS

    def __init__(self, folder: Path) -> None:
        self.model = str(save_tiny(folder / "model", "llama", n_layers=2, d_model=16, d_ff=40, context=128))
        self.forms = {
            "records": Form(read_records, "Records", RECORDS, _flat, True),
            "counterfact": Form(read_counterfact, "CounterFact", COUNTERFACT, _official, True),
            "flat": Form(read_counterfact, "CounterFact", FLAT, _flat, True),
            "robust": Form(read_robust, "RobustQueries", ROBUST, _flat),
            "mquake": Form(read_mquake, "MQuAKE", MQUAKE, _cases),
            "zsre": Form(read_zsre, "ZsRE", ZSRE, _zsre),
            "mend": Form(read_zsre, "ZsRE", MEND, _mend),
        }
        self.fields = FIELDS

    def case(self, chance: Random, folder: Path) -> Case:
        """One file of one form."""
        name = chance.choice(list(self.forms))
        form, rows, changes = self.forms[name], self.forms[name].rows, []
        misspelt: set[str] = set()
        for _ in range(chance.choice([0, 1, 1, 1, 1, 2, 3])):
            rows, change, path = changed(rows, chance)
            changes.append(change)
            if not isinstance(rows, list):
                break
            if len(path) == 2 and "misspelt as" in change and isinstance(path[1], str):
                misspelt |= {name for row in rows if isinstance(row, dict) for name in row if name not in self.fields}
        lines = chance.random() < 0.6 and isinstance(rows, list)
        options: dict[str, Any] = {"ensure_ascii": chance.random() < 0.4}
        if lines:
            text = "".join(as_json(row, chance, **options) + "\n" for row in rows)
        else:
            text = as_json(rows, chance, indent=chance.choice([None, 1]), **options)
        data = text.encode("utf-8", "surrogatepass")
        if not changes or chance.random() < 0.15:
            data, change = damaged(data, chance, text=True)
            changes.append(change)
        ending = (
            chance.choice(["json", "jsonl", "csv", "txt"]) if chance.random() < 0.04 else "jsonl" if lines else "json"
        )
        path = folder / f"{name}.{ending}"
        path.write_bytes(data)
        model = self.model if chance.random() < self.runs else None
        change = f"{name}{', run' if model else ''}: {'; '.join(changes)}"
        return Case(change, lambda said: _run(form, path, misspelt, said, model))


def _run(form: Form, path: Path, misspelt: set[str], said: Said, model: str | None = None) -> str:
    """Reads the file, and holds the records against it; with a model, edits them too."""
    records = form.read(path)
    objects = _objects(path)
    try:
        wished = [form.wishes(row) for row in objects]
    except (AttributeError, KeyError, TypeError) as error:
        raise Wrong(f"accepted what has not its form: {error!r}") from error
    if None not in wished:
        found = [(plain(record.request.text), plain(record.request.target_new)) for record in records]
        wanted = [wish for wishes in wished for wish in wishes or ()]
        if len(found) != len(wanted):
            raise Wrong(f"records lost or made up: {len(found)} of {len(wanted)}")
        for mine, theirs in zip(wanted, found, strict=True):
            if mine != theirs:
                raise Wrong(f"another text: {theirs} of {mine}")
    if form.listed:
        _check_paraphrases(records, objects)
    if form.own is not None:
        form.own(records, objects)
    if len({record.request.case_id for record in records}) != len(records):
        raise Wrong(f"ids are not unique: {[record.request.case_id for record in records]}")
    for record in records:
        _check(record)
    metas = {name for record in records for name in record.meta}
    for name in misspelt & {name for row in objects for name in row}:
        if name not in metas and repr(name)[1:-1] not in said.text and name not in said.text:
            raise Wrong(f"a field read past in silence: {name!r}")
    if model is not None:
        _edit(form, path, model, records)
        return "edited"
    return "read"


def _edit(form: Form, path: Path, model: str, records: list[EditRecord]) -> None:
    """Edits the records one by one: each has a row, and what is written is in folders of the run."""
    run = path.parent / "run"
    options = QUICK_ROME | {
        "lm.name": model,
        "model.layer": 0,
        "model.v_num_grad_steps": 2,
        "data": form.data,
        "data.path": path,
        "results.resamples": 50,
        "run.root": path.parent,
        "run.name": run.name,
        "trainer.accelerator": ACCELERATOR,
    }
    main(["fit", *option_words(options)])
    rows = [json.loads(line) for line in (run / "results.jsonl").read_text(encoding="utf-8").split("\n") if line]
    if sorted(row["case_id"] for row in rows) != sorted(record.request.case_id for record in records):
        raise Wrong(f"rows of other records: {[row['case_id'] for row in rows]}")
    if {entry.name for entry in path.parent.iterdir()} != {run.name, path.name}:
        raise Wrong("it wrote outside of its folder")
    deltas = [file.relative_to(run).parts for file in run.rglob("delta.safetensors")]
    if len(deltas) != sum(row["status"] == "edited" for row in rows) or {len(parts) for parts in deltas} - {3}:
        raise Wrong(f"deltas of other records: {deltas}")


def _objects(path: Path) -> Rows:
    """What the file holds; read by the rules of JSON alone, to which a carriage return is white space."""
    lines, error = path.suffix == ".jsonl", None
    for end in ("", None):  # as they are; any of them as a line's end
        try:
            with path.open(encoding="utf-8-sig", newline=end) as file:
                text = file.read()
            rows = [json.loads(line) for line in text.split("\n") if line.strip()] if lines else json.loads(text)
        except (ValueError, RecursionError) as caught:
            error = caught
            continue
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise Wrong("accepted what is no list of objects")
        return rows
    raise Wrong(f"accepted what is no JSON: {error}") from error


def _check(record: EditRecord) -> None:
    """Whether a record is one that can be edited, measured and written down."""
    request = replace(record.request)  # which checks itself
    if not isinstance(request.case_id, str) or not request.case_id.strip():
        raise Wrong(f"an empty id: {request.case_id!r}")
    if request.subject is not None and request.subject not in request.text:
        raise Wrong(f"the text lacks the subject: {request}")
    for probe in record.probes:
        texts = (probe.text, probe.answer, *probe.aliases)
        if not all(isinstance(text, str) and text.strip() for text in texts):
            raise Wrong(f"a probe without text or answer: {probe}")
        if probe.rival is not None and (not isinstance(probe.rival, str) or not probe.rival.strip()):
            raise Wrong(f"a probe with an empty rival: {probe}")
    try:
        json.dumps([repr(request)[:0], record.meta], ensure_ascii=False).encode()
        for text in (request.case_id, request.text, request.target_new, request.target_true or "", *_texts(record)):
            text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise Wrong(f"a record that cannot be written: {error}") from error


def _texts(record: EditRecord) -> Iterator[str]:
    for probe in record.probes:
        yield from (probe.text, probe.answer, probe.rival or "", *probe.aliases)


def _check_paraphrases(records: list[EditRecord], rows: Rows) -> None:
    """A probe for every paraphrase that the file has."""
    for record, row in zip(records, rows, strict=True):
        given = first_of(row, "paraphrases", "paraphrase_prompts", "rephrase_prompt", "rephrase")
        texts = given if isinstance(given, list) else [given] if given is not None else []
        wanted = sum(bool(str(text).strip()) for text in texts)
        found = sum(probe.kind == "paraphrase" for probe in record.probes)
        if wanted != found:
            raise Wrong(f"paraphrases lost: {found} of {wanted} in {row}")


def first_of(row: dict[str, Any], *names: str) -> Any:
    """The first of these fields that is there."""
    return next((row[name] for name in names if row.get(name) is not None), None)


def plain(text: str) -> str:
    return text.strip()


def _wish(prompt: Any, subject: Any, target: Any) -> list[Wish] | None:
    if "{{" in prompt or "}}" in prompt:
        return None  # braces that mean themselves
    prompt = prompt.strip()
    return [(plain(prompt if subject is None else prompt.replace("{}", subject.strip())), plain(target))]


def _flat(row: dict[str, Any]) -> list[Wish] | None:
    if "requested_rewrite" in row:
        return _official(row)
    return _wish(row["prompt"], row["subject"], first_of(row, "target_new", "target"))


def _official(row: dict[str, Any]) -> list[Wish] | None:
    rewrite = row.get("requested_rewrite")
    if rewrite is None:
        return _flat(row)
    fields = {**row, **rewrite}
    target = fields["target_new"] if fields.get("target_new") is not None else fields.get("target")
    fields["target_new"] = target["str"] if isinstance(target, dict) else target
    return _wish(fields["prompt"], fields["subject"], fields["target_new"])


def _cases(row: dict[str, Any]) -> list[Wish] | None:
    rewrites = row["requested_rewrite"]
    found = [_official({"requested_rewrite": r}) for r in ([rewrites] if isinstance(rewrites, dict) else rewrites)]
    return None if None in found else [wish for wishes in found for wish in wishes or ()]


def _zsre(row: dict[str, Any]) -> list[Wish] | None:
    if "src" in row or "alt" in row:
        return _mend(row)
    target, truths = first_of(row, "target_new", "target"), first_of(row, "target_true", "ground_truth")
    if not target.strip() or target.strip() in answers(truths):
        return []
    return _wish(row["prompt"], row.get("subject"), target)


def _mend(row: dict[str, Any]) -> list[Wish] | None:
    if "src" not in row and "alt" not in row:
        return _zsre(row)
    if not row["alt"].strip() or row["alt"].strip() in answers(row.get("answers")):
        return []
    return _wish(row["src"], row.get("subject"), row["alt"])


def answers(value: Any) -> list[str]:
    found, waiting = [], [value]
    while waiting:  # lists may be nested deeply
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif value is not None:
            found.append(value.strip())
    return found


FIELDS = frozenset(
    name for rows in (RECORDS, COUNTERFACT, FLAT, MQUAKE, ROBUST, ZSRE, MEND) for row in rows for name in row
)
