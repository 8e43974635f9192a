"""The command: what it prints (nothing but what a user needs), what it writes, and what it lists."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import kedit
from kedit.cli import main
from kedit.cli.commands.ls import NAMES
from kedit.covariance import load_covariance
from kedit.data import datasets_index
from kedit.methods import ROME
from tests.support.device import ACCELERATOR, DEVICE
from tests.support.paths import FIXTURES
from tests.support.small_runs import QUICK_ROME, option_words

RECORDS = str(FIXTURES / "records.jsonl")


@pytest.fixture
def words(tiny_folder: Callable[..., str], tmp_path: Path) -> list[str]:
    """A quick run on a tiny model."""
    options = {
        **QUICK_ROME,
        "lm.name": tiny_folder("llama", n_layers=3),
        "data": "Records",
        "data.path": RECORDS,
        "run.root": tmp_path / "runs",
        "run.name": "one",
        "trainer.accelerator": ACCELERATOR,
    }
    return ["fit", *option_words(options)]


def command(words: list[str], **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    run = [sys.executable, "-m", "kedit", *words]
    return subprocess.run(run, capture_output=True, text=True, timeout=300, check=False, env=env, **kwargs)


def test_every_line_of_a_run_is_useful(words: list[str], tmp_path: Path) -> None:
    done = command(words)
    assert done.returncode == 0, done.stderr
    expected = [
        r"run folder: .*runs/one",
        rf"loaded .*llama \(float32\) on {DEVICE.type}\S* in [\d.]+ s",
        r"records/records: 4 records in the file, 4 to edit",
        r"4 of 4 edits, [\d.]+ edits/s, about 0 s left",
    ]
    lines = done.stderr.splitlines()
    assert len(lines) == len(expected), done.stderr
    for line, pattern in zip(lines, expected, strict=True):
        assert re.fullmatch(pattern, line), line
    assert "efficacy" in done.stdout
    assert done.stdout.splitlines()[-1] == f"results: {tmp_path / 'runs' / 'one'}"


def test_what_a_run_leaves(words: list[str], tmp_path: Path) -> None:
    main([*words, "--edit.seed", "3", "--model.v_lr", "5e-1", "--model.stop_loss", "1e-3"])
    folder = tmp_path / "runs" / "one"
    assert {path.name for path in folder.iterdir()} == {
        ".run.lock",
        "checkpoints",
        "config.yaml",
        "deltas",
        "logs",
        "results.jsonl",
        "costs.jsonl",
        "run.json",
        "summary.json",
    }
    run = json.loads((folder / "run.json").read_text())
    assert run["method"]["seed"] == 3
    assert run["method"]["v_lr"] == 0.5
    assert run["provenance"]["kedit"] == kedit.__version__
    assert {"torch", "transformers", "lightning"} <= run["provenance"]["packages"].keys()
    assert "commit" in run["provenance"]
    assert run["data"]["fingerprint"]
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["model"]["init_args"]["v_lr"] == 0.5
    assert config["model"]["init_args"]["stop_loss"] == 0.001
    assert config["trainer"]["logger"] is None, "the run's own folder does not belong into its configuration"
    assert config["trainer"]["default_root_dir"] is None


def test_a_saved_configuration_repeats_the_run(
    words: list[str], tmp_path: Path, rows_of: Callable[[Path], Any]
) -> None:
    main(words)
    first = tmp_path / "runs" / "one"
    before = {path: path.stat().st_mtime_ns for path in first.rglob("*") if path.is_file()}
    main(["fit", "--config", str(first / "config.yaml")])
    assert rows_of(tmp_path / "runs" / "one-2") == rows_of(first)
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*") if path.is_file()} == before


def test_yaml_floats_without_a_point_are_floats(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "e.yaml"
    file.write_text("model: {class_path: RROME, init_args: {v_lr: 5e-1, stop_loss: 1e-3, kl_factor: 1E2}}\n")
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(file), "--data", "Facts", "--print_config"])
    args = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
    assert (args["v_lr"], args["stop_loss"], args["kl_factor"]) == (0.5, 0.001, 100.0)


def test_null_reaches_options_of_every_depth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "e.yaml"
    adapter, editor = "{threshold: 0.7, hysteresis: 1.0}", "{class_path: ROME, init_args: {v_lr: 0.5, layer: 4}}"
    file.write_text(f"model: {{class_path: REP, init_args: {{adapter: {adapter}, editor: {editor}}}}}\n")
    nulls = ["--model.adapter.threshold", "null", "--model.editor.v_lr=null", "--run.name", "null"]
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", str(file), "--data", "Facts", *nulls, "--print_config"])
    assert not stop.value.code
    config = yaml.safe_load(capsys.readouterr().out)
    args = config["model"]["init_args"]
    assert (args["adapter"]["threshold"], args["adapter"]["hysteresis"]) == (None, 1.0)
    assert (args["editor"]["init_args"]["v_lr"], args["editor"]["init_args"]["layer"]) == (None, 4)
    assert config["run"]["name"] is None


def test_fast_dev_run_is_one_honest_edit(words: list[str], tmp_path: Path, rows_of: Callable[[Path], Any]) -> None:
    main([*words, "--trainer.fast_dev_run", "true", "--edit.regime", "sequential"])
    rows = rows_of(tmp_path / "runs" / "one")
    assert [row["measured_at"] for row in rows] == ["edit", "end"]
    assert rows[0]["edit"]["steps"] == 1
    assert (tmp_path / "runs" / "one" / "delta" / "card.json").exists()


def test_epochs_are_edit_batches(words: list[str], tmp_path: Path, rows_of: Callable[[Path], Any]) -> None:
    main([*words, "--edit.regime", "sequential", "--trainer.max_epochs", "2", "--metrics.measure", "edit"])
    assert [row["batch"] for row in rows_of(tmp_path / "runs" / "one")] == [0, 1]


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    assert "kedit fit --config" in capsys.readouterr().out
    main(["--version"])
    assert capsys.readouterr().out == f"kedit {kedit.__version__}\n"
    wanted = {
        "fit": "--metrics.measure",
        "stats": "--stats.tokens",
        "probe-anchors": "--anchors.n_max",
        "trace": "--trace.samples",
        "compare": "--against",
    }
    for subcommand, option in wanted.items():
        with pytest.raises(SystemExit) as stop:
            main([subcommand, "--help", *(["all"] if subcommand == "fit" else [])])
        assert not stop.value.code
        assert option in capsys.readouterr().out


def test_ls(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.yaml").write_text("# My experiment.\n#\n# more\nmodel: ROME\n")
    monkeypatch.chdir(tmp_path)
    main(["ls"])
    out = capsys.readouterr().out
    wanted = ["ROME", "RROME", *(name for name, _, _ in datasets_index()), *NAMES.values(), "smollm2-135m"]
    assert [name for name in wanted if name not in out] == []
    assert re.search(r"configs/mine.yaml +│ My experiment. +│", out)
    assert "more" not in out


def test_every_shape_of_the_table_has_a_name() -> None:
    assert NAMES.keys() == ROME.published.models.keys()


def test_stats(tiny_folder: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = tiny_folder("gpt2", n_layers=4)
    words = ["stats", "--lm.name", name, "--stats.tokens", "500", "--layers", "[0,2]"]
    main([*words, "--out", str(tmp_path)])
    out = capsys.readouterr().out
    assert re.search(r"│ +2 │ +500 │ +80 │", out)
    lm = kedit.load_lm(kedit.LMConfig(name=name))
    for layer in (0, 2):
        found = re.search(rf"layer {layer}: (\S+)", out)
        assert found
        assert load_covariance(found.group(1), lm, layer).count == 500
    main(["stats", "--lm.name", name, "--stats.tokens", "500"])  # the layer by depth, from the cache or not
    assert re.search(r"│ +1 │ +500 │", capsys.readouterr().out)


def test_a_run_finds_what_stats_left(
    words: list[str], tiny_folder: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path / "cache"))
    text = ["--stats.tokens", "450"]
    main(["stats", "--lm.name", tiny_folder("llama", n_layers=3), "--layers", "[1]", *text])
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")}
    assert files
    main([*words, "--model.mom2_adjustment", "true", "--model.stats.tokens", "450"])
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*.safetensors")} == files


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_interrupted(
    sent: signal.Signals, status: int, words: list[str], tmp_path: Path, rows_of: Callable[[Path], Any]
) -> None:
    facts = tmp_path / "facts.jsonl"
    rows = [{"prompt": "{} is", "subject": f"Rome {i}", "target_new": "Tokyo"} for i in range(500)]
    facts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run, results = [sys.executable, "-m", "kedit", *words], tmp_path / "runs" / "one" / "results.jsonl"
    words = ["--data.path", str(facts), "--edit.regime", "sequential", "--metrics.measure", "edit"]
    with subprocess.Popen(
        [*run, *words],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    ) as process:
        end = time.monotonic() + 400
        while not (results.exists() and results.stat().st_size) and time.monotonic() < end:
            time.sleep(0.01)
        process.send_signal(sent)
        _, error = process.communicate(timeout=60)
    assert process.returncode == status, error
    said = error.splitlines()[-2:]
    kept = re.fullmatch(rf"kedit: interrupted by {sent.name}; (\d+) edit batches are done and kept in \S+\.", said[0])
    assert kept, error
    assert "--run.resume true" in said[1]
    assert "Traceback" not in error
    rows = len(rows_of(results.parent))
    assert 0 < rows < 500
    assert int(kept[1]) in ((rows,) if sent is not signal.SIGINT else (rows, rows - 1))  # Ctrl-C waits for nothing
