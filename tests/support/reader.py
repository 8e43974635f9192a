"""A reader of the documentation, who does what a page says, block after block, in a folder of the source tree.

What stands in for what the reader has (`tests/support/stand_ins.py`): a tiny random model for SmolLM2 and every other
model, the small files of tests/fixtures/ for data sets, 400 tokens for statistics, one step of one edit batch for a run
(`fast_dev_run`), made-up result rows for the runs of a sweep. Names, options, imports, files and their order are the
page's own.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import re
import runpy
import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import yaml

from kedit.cli import main
from kedit.cli.commands import slurm
from kedit.cli.commands.fit import parsed
from kedit.data import read_records
from kedit.sweeps.spec import read_sweep
from tests.support.code_blocks import SHELL, Block, Command, commands_of, is_known, values
from tests.support.config_files import CONFIGS
from tests.support.judge_stub import stub_server
from tests.support.paths import ROOT
from tests.support.stand_ins import make_results, stand_in

BASE = "configs/rome_smollm2.yaml"
"""The configuration that a fragment of one is put into."""
SMALL: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "fit": ("--trainer.accelerator=cpu", "--trainer.fast_dev_run=true", "--data.limit=2", "--data.known=false"),
        "sweep": ("--dry-run",),
        "slurm submit": ("--dry-run",),
        "probe-anchors": ("--data.limit=4", "--data.known=false"),
        "trace": ("--data.limit=4", "--trace.samples=1"),
    }
)
"""Command -> what is put behind its words."""
LONG = ("fit", "edit", "probe-anchors", "trace")
"""Commands that are not run again where another page has them too."""
KNOWS_NOTHING = "the anchor probe needs two objects with references, this run has 0"
SAME_OUTPUT = ("config", "ls")
"""Commands that print the same with any model: what a page shows is compared."""


@dataclass
class Reader:
    """Reads one page.

    Attributes:
        folder: Where the reader works; the current folder.
        model: A tiny model's folder.
        done: Commands that were run before, on other pages too.
        patch: Undone when the test ends.
        names: What the page's Python has defined.
    """

    folder: Path
    model: str
    done: set[tuple[str, ...]]
    patch: pytest.MonkeyPatch
    names: dict[str, Any] = field(default_factory=lambda: {"__name__": "page"})

    def read(self, block: Block) -> None:
        """Does what a block says."""
        if block.title is not None:
            (self.folder / block.title).write_text(block.text, encoding="utf-8")
        if block.language in SHELL:
            for command in commands_of(block):
                self.run(command, block)
        elif block.language == "python":
            self.python(block)
        elif block.language == "yaml":
            check_yaml(block)
        elif block.language in ("json", "jsonl"):
            check_records(block, self.folder)

    def python(self, block: Block) -> None:
        """Runs a block; its lines are those of the page in a traceback."""
        if block.title is None:
            exec(compile("\n" * (block.line - 1) + block.text, block.page, "exec"), self.names)
            return
        name = Path(block.title).stem
        self.patch.syspath_prepend(str(self.folder))
        self.patch.setitem(sys.modules, name, types.ModuleType(name))  # forgotten when the test ends
        del sys.modules[name]
        module = importlib.import_module(name)
        for test in (value for key, value in vars(module).items() if key.startswith("test_")):
            test()

    def run(self, command: Command, block: Block) -> None:
        """Runs a command in this process."""
        first, *words = command.words
        if command.env.get("PYTHONPATH") == ".":
            self.patch.syspath_prepend(str(self.folder))
        if first == "kedit":
            printed = self.kedit(words)
            if words[0] in SAME_OUTPUT and command.printed:
                lines = [[line.rstrip() for line in text.splitlines()] for text in (printed, command.printed)]
                assert lines[0] == lines[1], f"{block.place}: another output\n{printed}"
        elif first == "python":
            self.script(words)
        else:
            assert is_known(command), f"{block.place}: {first}?"

    def script(self, words: list[str]) -> None:
        """`python -c CODE`, or a script, whose own parser is asked for its help: it must know the options."""
        if words[0] == "-c":
            exec(compile(words[1], "-c", "exec"), {"__name__": "__main__"})
            return
        out = io.StringIO()
        given = words[2:] if words[0] == "-m" else words[1:]
        options = [word for word in given if word.startswith("--")]
        commands = [word for word in given[:1] if words[0] != "-m" and not word.startswith("-")]
        with contextlib.redirect_stdout(out), pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [words[0], *commands, "--help"])
            run = partial(runpy.run_path, str(ROOT / words[0]), run_name="__main__")
            if words[0] == "-m":
                run = partial(runpy.run_module, words[1], run_name="__main__")
            with pytest.raises(SystemExit, match=r"\A0\Z"):
                run()
        assert [option for option in options if not re.search(rf"{option}\b", out.getvalue())] == []

    def kedit(self, words: list[str]) -> str:
        """What the command prints."""
        name = words[0]
        of = " ".join(words[:2]) if name == "slurm" else name
        if name == "fit":
            words = self.fit(words)
        elif of == "slurm resubmit":  # nothing was submitted: tests/runs/test_slurm_stub.py
            slurm._options("resubmit", "").parse_args(words[2:])
            return ""
        elif name in ("collect", "compare", "report") or of == "slurm collect":
            make_results([word for word in words[1:] if not word.startswith("--")])
        elif name == "judge":
            return self.judge(words)
        out = io.StringIO()
        kept = {"--save", "--run.name"} & set(words)  # a later command may ask for it
        if not words or (tuple(words) in self.done and name in LONG and not kept):
            return ""
        self.done.add(tuple(words))
        helps = "--model.help" in words
        status = _status([*words, *(() if helps else SMALL.get(of, ()))], out)
        if of == "probe-anchors":  # a random model may know no object
            assert status in ((0, ""), (2, KNOWS_NOTHING)), status
            return ""
        if of == "trace" and "knows no fact of" in status[1]:  # nor a fact
            return ""
        assert status[0] == 0, status[1]
        if name == "fit" and not helps:
            check_run(max((self.folder / "runs").iterdir(), key=lambda run: run.stat().st_mtime_ns))
        return out.getvalue()

    def judge(self, words: list[str]) -> str:
        """What `kedit judge` prints, of a stub in the place of the server."""
        out = io.StringIO()
        with stub_server() as stub:
            at = words.index("--url") + 1
            assert _status([*words[:at], stub.url, *words[at + 1 :]], out) == (0, "")
        return out.getvalue()

    def fit(self, words: list[str]) -> list[str]:
        """The words of a run; none where tests/runs/test_configs.py runs them as they are."""
        if "--config" not in words:
            return words
        config = words[words.index("--config") + 1]
        name = Path(config).stem
        if len(words) == 3 and name in {file.stem for file in CONFIGS}:
            assert config in (name, f"configs/{name}.yaml")
            return []
        if "smollm2" not in name and name != "my_method":
            words = [*words, "--lm.name", self.model]
        if "--trainer.devices" in words:
            words = [*words, "--trainer.devices", "1"]
        if name.startswith("alphaedit"):
            words = [*words, "--model.nullspace_threshold", "1e3"]  # tiny models have long keys
        if name.startswith("pac"):
            words = [*words, "--model.trace.nodes", "5"]  # and few nodes
        if name.startswith("kn"):
            words = [*words, "--model.p", "0.05"]  # and neurons that share little
        return words


def reader_of(folder: Path, model: str, done: set[tuple[str, ...]], patch: pytest.MonkeyPatch) -> Reader:
    """A reader in a folder with what the source tree has, and with the stand-ins."""
    stand_in(folder, model, patch)
    return Reader(folder, model, done, patch)


def _status(words: list[str], out: io.StringIO) -> tuple[int, str]:
    """Exit status of a command, and the beginning of what it said to an error; `out` gets what it prints."""
    said = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
        try:
            main(words)
        except SystemExit as stop:
            return int(stop.code or 0), said.getvalue().removeprefix("kedit: error: ").partition(";")[0]
    return 0, ""


def check_yaml(block: Block) -> None:
    """A sweep is read with the options of its tasks; a configuration, or a part of one, is parsed."""
    given = yaml.safe_load(block.text)
    file = Path(block.title or "block.yaml")
    file.write_text(block.text, encoding="utf-8")
    if "configs" in given:
        of_configs = {task.config: task for task in read_sweep(file).tasks}
        for task in of_configs.values():
            parsed(task.words())
        return
    parsed([*([] if "model" in given else ["--config", BASE]), "--config", str(file)])


def check_records(block: Block, folder: Path) -> None:
    """JSON; what has a prompt is a record, and is read as one."""
    found = values(block)
    records = [value for value in found if isinstance(value, dict) and "prompt" in value]
    if not records:
        return
    file = folder / "block.jsonl"
    file.write_text("".join(json.dumps(value) + "\n" for value in records), encoding="utf-8")
    assert len(read_records(str(file))) == len(records)


def check_run(run: Path) -> None:
    """A run has finished, and every edit of it was made."""
    summary = json.loads((run / "summary.json").read_text())
    rows = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    assert summary["failed"] == {}, summary["failed"]
    assert {row["status"] for row in rows} == {"edited"}
