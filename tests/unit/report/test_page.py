"""`kedit report`: the page stands by itself, says what `kedit compare` says, and no text of a model gets out of it."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kedit.cli import main
from kedit.report.page import PAGE_BYTES
from kedit.report.records import records
from kedit.sweeps.arms import of_folders
from kedit.sweeps.compare import compare
from kedit.sweeps.measures import measures_of
from tests.support.comparison_cases import random_row, refused, write_run
from tests.support.report_cases import HOSTILE, extra_files, row, three_arms

VOID = {"meta", "input", "img", "br", "hr", "link"}
LOADS = {"src", "srcset", "href", "action", "data", "poster", "background", "xlink:href"}


class Read(HTMLParser):
    """A page's elements, ids, links, tables and scripts; refuses one that is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self._heading = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("h2", "h3"):
            self._heading = dict(attrs).get("id") or ""
        if tag == "table":
            self.tables[self._heading] = []
        if tag == "tr":
            self.tables[self._heading].append([])
        if tag in ("td", "th"):
            self.tables[self._heading][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))
        if "td" in self.open or "th" in self.open:
            self.tables[self._heading][-1][-1] += data


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    return three_arms(tmp_path / "runs")


def made(folders: list[str], *options: str) -> tuple[str, Read]:
    """The page of some runs, as it is written and as it is read."""
    main(["report", *folders, "--out", "out", "--resamples", "200", *options])
    text = Path("out/report.html").read_text()
    return text, Read(text)


def test_every_link_stays_on_the_page_and_nothing_is_fetched(folders: list[str]) -> None:
    extra_files(Path(folders[0]))
    text, page = made(folders, "--against", "rome")
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = [attrs["href"] or "" for tag, attrs in page.tags if tag == "a"]
    assert len(links) > 10
    assert {link.removeprefix("#") for link in links} <= set(ids)
    assert all(link.startswith("#") for link in links)
    for tag, attrs in page.tags:
        assert tag not in ("link", "img", "iframe", "object", "base", "embed")
        assert not any(name.startswith("on") for name in attrs)
        assert tag == "a" or not LOADS & set(attrs) - {"data"}
    style = next(data for tag, data in page.texts if tag == "style")
    assert "url(" not in style
    assert "@import" not in style
    for heading in ("paths", "similarity", "cosines", "ability", "judges", "records", "configs", "provenance"):
        assert f'id="{heading}"' in text


def test_tables_have_scopes_and_figures_have_names(folders: list[str]) -> None:
    _, page = made(folders)
    assert all(attrs.get("scope") in ("col", "row") for tag, attrs in page.tags if tag == "th")
    drawn = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert drawn
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in drawn)
    assert ("html", {"lang": "en"}) in page.tags


def test_a_hostile_text_stays_a_text(folders: list[str]) -> None:
    """In a prompt, an answer, a config, a file name and a judge's answer."""
    run = Path(folders[1])
    (run / "config.yaml").write_text(json.dumps({"model": HOSTILE}))
    extra_files(run)
    text, page = made(folders, "--title", HOSTILE)
    scripts = [attrs for tag, attrs in page.tags if tag == "script"]
    assert [attrs.get("type") for attrs in scripts] == ["application/json", None]
    assert "<script>document" not in text
    assert "<img" not in text
    assert "<!-- " not in text
    assert "owned" in text
    digest = base64.b64encode(hashlib.sha256(script_of(text).encode()).digest()).decode()
    policy = next(attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv"))
    assert f"script-src 'sha256-{digest}'" in str(policy)
    assert "default-src 'none'" in str(policy)


def script_of(text: str) -> str:
    return text.rpartition("<script>")[2].partition("</script>")[0]


def data_of(text: str) -> dict[str, Any]:
    return json.loads(text.partition('id="data">')[2].partition("</script>")[0])


def test_what_the_model_said_is_all_in_the_page(folders: list[str]) -> None:
    text, _ = made(folders)
    data = data_of(text)
    (table,) = data["tables"]
    strings = data["strings"]
    assert table["arms"] == ["rome", "memit", "ft"]
    assert [record[0] for record in table["records"]] == [f"case-{n}" for n in range(12)]
    case, prompt, new, old, probes, arms = table["records"][3]
    assert [strings[n] for n in (prompt, new, old)] == ["Subject 3 is in", "Answer3", "old"]
    assert [strings[probe[0]] for probe in probes] == ["rewrite", "paraphrase", "neighborhood"]
    for nth, error, answers in arms:
        rows = [json.loads(line) for line in Path(folders[nth], "results.jsonl").read_text().splitlines()]
        own = next(row for row in rows if row["case_id"] == case)
        after = own["probes"][0]["after"]
        assert error == 0
        assert strings[answers[0][1]] == f"Answer3 says {table['arms'][nth]}"
        word = "yes" if after["exact"] else "prefers" if after["success"] else "no"
        assert strings[answers[0][0]] == word
        assert answers[0][3] == int(after["wild_match"])
        near = own["probes"][2]
        same = near["before"]["top1"] == near["after"]["top1"]
        assert strings[answers[2][0]] == ("same" if same else "changed")
    assert any(said.startswith(HOSTILE[:60]) for said in strings)


def test_numbers_are_those_of_compare(folders: list[str]) -> None:
    _, page = made(folders, "--against", "ft", "--resamples", "200")
    names = "efficacy/success,locality/unchanged,efficacy/wild,cpu_seconds,perplexity"
    (table,) = compare(of_folders([Path(f) for f in folders], False), measures_of(names), "ft", True, 200).tables
    groups = {"efficacy/success": "edits", "locality/unchanged": "edits", "efficacy/wild": "free",
              "cpu_seconds": "costs", "perplexity": "costs"}  # fmt: skip
    for measure in table.measures:
        group = groups[measure.name]
        name = measure.name.replace("_", " ").replace("/", ", ")
        head, *rows = page.tables[f"table-1-{group}"]
        at = next(n for n, text in enumerate(head) if text.split("\xa0")[0] == name)
        digits = 2 if group == "costs" else 1
        for arm in table.arms:
            cell = arm.cells[measure.name]
            shown = next(row for row in rows if row[0] == arm.name)[at]
            assert shown.split()[0] == f"{cell.mean:.{digits}f}"
            if cell.ci[0] != cell.ci[1]:
                assert shown.split(maxsplit=1)[1] == f"[{cell.ci[0]:.{digits}f}, {cell.ci[1]:.{digits}f}]"
        head, *rows = page.tables[f"table-1-{group}-difference"]
        at = next(n for n, text in enumerate(head) if text.split("\xa0")[0] == name)
        for arm in table.arms:
            if arm.name != "ft":
                change = arm.differences[measure.name]
                shown = next(row for row in rows if row[0] == arm.name)[at].split()[0]
                sign = f"{round(change.mean, digits) + 0.0:+.{digits}f}"
                assert shown == sign + ("*" if change.off_zero and change.ci[0] != change.ci[1] else "")
    exact = list(csv.DictReader(Path("out/tables/table-1-edits.csv").read_text().splitlines()))
    values = {row["arm"]: float(row["efficacy, success (%)"]) for row in exact if row["arm"] in ("rome", "ft")}
    assert values == {arm.name: arm.cells["efficacy/success"].mean for arm in table.arms if arm.name in values}


def test_protocols_are_never_in_one_table(folders: list[str], tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    rows = [row(case, "rome", random) for case in range(12)]
    for one in rows:
        one["protocol"] = {**one["protocol"], "regime": "batch"}
    other = write_run(tmp_path / "runs" / "batch", rows, regime="batch")
    _, page = made([*folders, str(other)])
    assert [line[0] for line in page.tables["table-1-edits"]][1:] == ["unedited model", "rome", "memit", "ft"]
    assert [line[0] for line in page.tables["table-2-edits"]][1:] == ["unedited model", "batch"]


def test_what_differs_and_what_files_say(folders: list[str]) -> None:
    extra_files(Path(folders[2]))
    _, page = made(folders)
    differs = {line[0]: line[1:] for line in page.tables["configs-differ"][1:]}
    assert differs == {"model.class_path": ["ROME", "MEMIT", "FT"], "model.lr": ["0", "1", "2"]}
    assert page.tables["general"][1] == ["ft", "ours", "acc", "end", "50.00 ± 1.00", "47.25 ± 1.50", "-2.75", "40"]
    assert page.tables["general"][2] == ["ft", "new", "acc", "", "", "1.00", "", ""]
    assert page.tables["judge"][1][2:] == ["rewrite", "after", "62.5", "50.0", "75.0", "8"]
    assert len(page.tables["judge-split"]) == 2
    assert page.tables["rep-similarity"][1][:6] == ["ft", "5", "paraphrase id", "subject last", "0.250", "1.000"]


def test_seeds_are_put_together(folders: list[str]) -> None:
    """In the tables; configs and provenance stay those of each run, and answers are the first seed's."""
    more = []
    for seed in (0, 1):
        random = np.random.default_rng(seed)
        rows = [row(case, "rome", random) for case in range(12)]
        more.append(str(write_run(Path(f"runs/twice_seed{seed}"), rows, seed)))
    text, page = made([folders[0], *more], "--seeds")
    assert [line[0] for line in page.tables["table-1-edits"]][2:] == ["rome (1 seed)", "twice (2 seeds)"]
    assert "±" in page.tables["table-1-edits"][3][1]
    assert [line[0] for line in page.tables["runs"]][1:] == ["rome", "twice, seed0", "twice, seed1"]
    assert data_of(text)["tables"][0]["arms"] == ["rome", "twice"]
    assert page.tables["table-1-ranks"][1][0] in ("rome", "twice")


def test_one_run_is_enough_and_unfinished_ones_are_named(folders: list[str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    Path("runs/begun").mkdir()
    Path("runs/begun/run.json").write_text("{}")
    text, page = made([folders[0], "runs/begun"])
    assert "not finished, left out: runs/begun" in text
    assert "not finished, left out: runs/begun" in caplog.text
    assert [line[0] for line in page.tables["table-1-edits"]][1:] == ["unedited model", "rome"]
    assert "table-1-ranks" not in page.tables


def test_files_that_are_damaged_are_named(folders: list[str]) -> None:
    run = Path(folders[0])
    extra_files(run)
    for name in ("importance.csv", "general.json", "judge.json", "judge.jsonl", "config.yaml"):
        (run / name).write_text("layer,kind,rank,score\nx,y,z,w\n: {")
    text, _ = made(folders)
    for name in ("importance.csv", "general.json", "judge.json", "judge.jsonl", "config.yaml"):
        assert f"left out, as it is damaged: {run / name}" in text


def test_mistakes_are_told_in_a_line(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("runs/begun").mkdir()
    Path("runs/begun/run.json").write_text("{}")
    Path("file").write_text("")
    refused(["report"], "what is to be reported?", capsys)
    refused(["report", "runs/begun"], "nothing is finished: runs/begun", capsys)
    refused(["report", "runs/none"], "runs/none", capsys)
    refused(["report", *folders, "--against", "romme"], "there is no arm romme", capsys)
    refused(["report", *folders, "--out", "file"], "file", capsys)
    refused(["report", *folders, "--records", "-1"], "records: -1 is less than 0", capsys)
    refused(["report", *folders, "--metrics", "efficacy/nothing"], "metrics: there is no", capsys)


def test_records_are_left_out_where_the_page_would_be_too_large(folders: list[str]) -> None:
    """As many as there is room for, and the page says so; at least one."""
    (table,) = compare(of_folders([Path(f) for f in folders], False), measures_of("main")).tables
    every = records({"T": table}, lambda _: None, 200, PAGE_BYTES)
    assert (every.shown, every.of) == (12, 12)
    size = len(json.dumps(every.data, ensure_ascii=False, separators=(",", ":")))
    few = records({"T": table}, lambda _: None, 200, size // 2)
    assert 1 < few.shown < 12
    assert len(json.dumps(few.data, ensure_ascii=False, separators=(",", ":"))) <= size // 2 + 1000
    assert records({"T": table}, lambda _: None, 200, 10).shown == 1
    text, _ = made(folders, "--records", "5")
    assert "5 of 12 records" in text
    assert len(data_of(text)["tables"][0]["records"]) == 5
    text, _ = made(folders, "--records", "0")
    assert 'id="data"' not in text


def test_rows_of_an_older_kedit_can_be_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without texts, requests, costs or configs."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    run = write_run(tmp_path / "old", [random_row(case, random) for case in range(4)])
    _, page = made([str(run)])
    assert "table-1-edits" in page.tables
