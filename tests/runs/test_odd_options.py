"""Numbers, names and paths that no option means are refused by the option's full name, before anything is edited."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kedit.callbacks import EditProgress, ResultsWriter, Robustness, Texts
from kedit.cli import main
from kedit.cli.commands.fit import parsed
from kedit.cli.options.messages import LINE, explain, printable
from kedit.covariance import StatsConfig
from kedit.data import Facts
from kedit.data.robust_queries import QueryConfig
from kedit.errors import KeditError, at_least, within
from kedit.evaluation.score import EvalConfig
from kedit.keyvalue.contexts import ContextConfig
from kedit.methods import EMMET, MEMIT, PAC, REP, ROME, STEAM
from kedit.methods.base.edit_config import EditConfig
from kedit.methods.pac.config import ContrastConfig, LocalityConfig, TrainConfig
from kedit.methods.pac.tracing.select import TraceConfig
from kedit.methods.rep.config import AdapterConfig
from kedit.runtime.option_values import check_values
from tests.support.device import ACCELERATOR
from tests.support.small_runs import QUICK_ROME, option_words

GOOD = {"prompt": "The capital of {} is", "subject": "France", "target_new": "Rome", "target_true": "Paris"}
NAN, INF = float("nan"), float("inf")


@pytest.fixture
def words(tiny_folder: Callable[..., str], tmp_path: Path) -> list[str]:
    """A quick run on a tiny model; later words win."""
    data = tmp_path / "good.jsonl"
    data.write_text(json.dumps(GOOD) + "\n")
    options = {
        "lm.name": tiny_folder("llama", n_layers=3, context=128),
        "data": "Records",
        "data.path": data,
        "run.root": tmp_path / "runs",
        "trainer.accelerator": ACCELERATOR,
    }
    return ["fit", *option_words(QUICK_ROME | options)]


def said(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says of bad input: one or two short lines, and status 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    error = error[error.index("kedit: error: ") :].strip().removeprefix("kedit: error: ")
    assert len(error.splitlines()) <= 2, error
    assert len(error) < 500, error
    assert all(c.isprintable() or c == "\n" for c in error)
    return error


NUMBERS = {
    "ROME": (
        "model.v_lr model.v_weight_decay model.clamp_norm_factor model.kl_factor model.stop_loss model.bare_weight "
        "model.stats.ridge progress.log_every trainer.gradient_clip_val trainer.limit_train_batches"
    ),
    "EMMET": "model.emmet_lambda model.mom2_update_weight",
    "KN": "model.adaptive_threshold model.p model.strength",
    "PAC": (
        "model.train.lr model.train.margin model.train.rollback model.contrast.weight model.contrast.lr "
        "model.locality.weight model.trace.coverage model.trace.memory"
    ),
}
ALL_NUMBERS = [(model, option) for model, options in NUMBERS.items() for option in options.split()]


@pytest.mark.parametrize("value", [".nan", "-.inf", "1e400"])
@pytest.mark.parametrize(("model", "option"), ALL_NUMBERS)
def test_no_option_is_nan_or_infinite(model: str, option: str, value: str) -> None:
    more = [f"--model={model}", "--data=Facts", f"--{option}={value}"]
    with pytest.raises(KeditError, match=rf"^{option}: (nan|inf|-inf) is not a finite number"):
        parsed(more)


def test_adapters_and_alignment(tmp_path: Path) -> None:
    for model, group, name in (
        ("REP", "adapter", "strength"),
        ("REP", "adapter", "edit_strengths"),
        ("STEAM", "align", "ratio"),
        ("STEAM", "align", "tolerance"),
    ):
        file = tmp_path / "odd.yaml"
        value = "[.nan]" if name == "edit_strengths" else ".nan"
        args = f"{{editor: {{class_path: ROME}}, {group}: {{{name}: {value}}}}}"
        file.write_text(f"model: {{class_path: {model}, init_args: {args}}}\ndata: Facts\n")
        with pytest.raises(KeditError, match=rf"^model\.{group}\.{name}: nan is not a finite number"):
            parsed(["--config", str(file)])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("edit.seed -1", "edit.seed: -1 is no seed; give a whole number from 0 to 4294967295"),
        (f"edit.seed {2**32}", "edit.seed: 4294967296 is no seed"),
        (f"edit.seed {2**70}", f"edit.seed: {2**70} is too large a number"),
        ("seed_everything -1", "seed_everything: -1 is no seed"),
        ("data.shuffle_seed -1", "data.shuffle_seed: -1 is no seed"),
        ("model.contexts.seed -1", "model.contexts.seed: -1 is no seed"),
        ("model.stats.seed -1", "model.stats.seed: -1 is no seed"),
        (f"model.layer {2**70}", f"model.layer: {2**70} is too large a number"),
        (f"metrics.eval_at [{2**70}]", f"metrics.eval_at: {2**70} is too large a number"),
        ("model.layer " + "9" * 5000, "model.layer: expects a number, not one of more than 4300 digits"),
        ("model.contexts.top_k 0", "model.contexts.top_k: 0 is less than 1"),
        ("edit.lanes -1", "edit.lanes: -1 is negative"),
        ("results.resamples 0", "results.resamples: 0 is less than 1"),
        ("robustness.resamples 0", "robustness.resamples: 0 is less than 1"),
        ("texts.resamples 0", "texts.resamples: 0 is less than 1"),
        ("results.resamples 10000000000", "results.resamples: 10000000000 is more than 1000000"),
        ("checkpoint.every 0", "checkpoint.every: 0 is less than 1"),
        ("progress.log_every -1", "progress.log_every: -1.0 is less than 0"),
        ("metrics.scoring.batch_tokens 0", "metrics.scoring.batch_tokens: 0 is less than 1"),
        ("metrics.scoring.max_new_tokens 0", "metrics.scoring.max_new_tokens: 0 is less than 1"),
        ("trainer.max_epochs 0", "trainer.max_epochs: 0 edits nothing; give 1 or more, or -1 for all"),
        ("trainer.max_epochs -2", "trainer.max_epochs: -2 edits nothing"),
        ("trainer.max_steps 0", "trainer.max_steps: 0 edits nothing"),
        ("trainer.log_every_n_steps -1", "trainer.log_every_n_steps: -1 is less than 0"),
        (
            "metrics.scoring.generate [rewrite,x]",
            "metrics.scoring.generate: there is no kind of probe 'x'; the data has rewrite",
        ),
    ],
)
def test_ranges(
    option: str, message: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, _, value = option.partition(" ")
    assert said([*words, f"--{name}={value}"], capsys).startswith(message)
    assert not list((tmp_path / "runs").rglob("results.jsonl"))
    assert not (tmp_path / "runs").exists() or "generate" in name, "that one needs the data; the others nothing"


@pytest.mark.parametrize(
    "name", ["a" * 300, "é" * 101, "a/b", "..", ".", "", " ", "a\nb", "a\0b", "a\x1b[31m", "\udcff"]
)
def test_run_names(name: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said([*words, f"--run.name={name}"], capsys).startswith("run.name: ")
    assert not (tmp_path / "runs").exists()


def test_run_roots(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    for root, message in (
        ("/proc/nope", "/proc/nope cannot be written"),
        ("/proc/nope/deeper", "/proc/nope/deeper cannot be written"),
        (f"{tmp_path}/file", f"{tmp_path}/file is a file; give a folder"),
        (f"{tmp_path}/file/below", f"{tmp_path}/file is a file; give a folder"),
        ("", "the path is empty"),
        ("a\0b", "'a\\x00b' has a NUL character"),
        ("x" * 300, "is too long a path"),
        ("x/" * 3000, "is too long a path"),
    ):
        error = said([*words, f"--run.root={root}"], capsys)
        assert error.startswith("run.root: ")
        assert message in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "good.jsonl"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_root_without_permission(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "shut").mkdir(mode=0o500)
    assert "Permission denied" in said([*words, f"--run.root={tmp_path}/shut/runs"], capsys)


def test_a_long_data_file_gives_a_name_that_a_folder_can_have(words: list[str], tmp_path: Path) -> None:
    data = tmp_path / ("x" * 240 + ".jsonl")
    data.write_text(json.dumps(GOOD) + "\n")
    main([*words, f"--data.path={data}", "--results.resamples=1"])
    (run,) = (tmp_path / "runs").iterdir()
    assert len(run.name) == 200
    assert run.name.endswith("-single-seed0")
    assert (run / "summary.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stats", "--stats.ridge", ".nan"], "stats.ridge: nan is not a finite number"),
        (["stats", "--stats.seed", "-1"], "stats.seed: -1 is no seed"),
        (["stats", f"--layers=[{2**70}]"], f"layers: {2**70} is too large a number"),
        (["stats", "--device", "a\nb"], "device: 'a\\nb' cannot be used"),
        (["stats", "--device", "a\0b"], "device: 'a\\x00b' has a NUL character"),
        (["probe-anchors", "--data", "Facts", "--anchors.seed", "-1"], "anchors.seed: -1 is no seed"),
        (["probe-anchors", "--data", "Facts", "--most", str(2**70)], f"most: {2**70} is too large a number"),
        (["x" * 5000], "there is no command 'xxx"),
        (["slurm", "x" * 5000], "there is no command 'xxx"),
        (["collect", "\udcff"], "the command: '\\udcff' is no text"),
    ],
)
def test_other_commands(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(words, capsys).startswith(message)


def make(cls: Callable[..., Any], **options: Any) -> Callable[[], Any]:
    return lambda: cls(**options)


@pytest.mark.parametrize(
    ("made", "option"),
    [
        (make(ROME, v_lr=NAN), "model.v_lr"),
        (make(ROME, stop_loss=INF), "model.stop_loss"),
        (make(ROME, bare_weight=NAN), "model.bare_weight"),
        (make(ROME().configure, edit=EditConfig(seed=-1)), "edit.seed"),
        (make(MEMIT, mom2_update_weight=NAN), "model.mom2_update_weight"),
        (make(EMMET, emmet_lambda=NAN), "model.emmet_lambda"),
        (make(PAC().configure, edit=EditConfig(seed=2**40)), "edit.seed"),
        (make(PAC().configure, edit=EditConfig(lanes=2)), "edit.lanes: PAC edits without lanes"),
        (make(MEMIT().configure, edit=EditConfig(lanes=-1)), "edit.lanes: -1 is negative"),
        (make(REP(ROME()).configure, edit=EditConfig("batch")), "edit.regime: ROME knows single, sequential"),
        (make(STEAM(ROME(), compare=True).configure, edit=EditConfig("sequential")), "model.compare: in the"),
        (make(Facts, shuffle_seed=-1), "data.shuffle_seed"),
        (make(Facts, limit=0), "data.limit"),
        (make(ContextConfig, top_k=0), "model.contexts.top_k"),
        (make(ContextConfig, seed=-1), "model.contexts.seed"),
        (make(ContrastConfig, weight=NAN), "model.contrast.weight"),
        (make(LocalityConfig, weight=INF), "model.locality.weight"),
        (make(TrainConfig, margin=NAN), "model.train.margin"),
        (make(TraceConfig, memory=INF), "model.trace.memory"),
        (make(AdapterConfig, alpha=NAN), "model.adapter.alpha"),
        (make(AdapterConfig, lr=-1.0), "model.adapter.lr"),
        (make(StatsConfig, ridge=NAN), "stats.ridge"),
        (make(QueryConfig, seed=-1), "data.queries.seed"),
        (make(EvalConfig, batch_tokens=0), "metrics.scoring.batch_tokens"),
        (make(ResultsWriter, resamples=0), "results.resamples"),
        (make(Robustness, resamples=0), "robustness.resamples"),
        (make(Texts, resamples=0), "texts.resamples"),
        (make(EditProgress, log_every=NAN), "progress.log_every"),
    ],
)
def test_library_users_are_told_too(made: Callable[[], Any], option: str) -> None:
    with pytest.raises(KeditError, match=f"^{re.escape(option)}"):
        made()


def test_bounds() -> None:
    at_least("a", None, 0)
    within("a", 2, 2, 2)
    for value, message in (
        (NAN, "nan is not a finite"),
        (INF, "inf is not"),
        (-1, "-1 is less than 0"),
        (9, "9 is more"),
    ):
        with pytest.raises(KeditError, match=f"^a: {message}"):
            within("a", value, 0, 8)


def test_the_walk_names_what_is_below() -> None:
    check_values({"a": {"init_args": {"b": [1, 2.0, None, True, "x"]}}, "seed": 2**32 - 1, "reseeded": -1})
    with pytest.raises(KeditError, match=r"^a\.b: nan"):
        check_values({"a": {"init_args": {"b": [[1, NAN]]}}})
    with pytest.raises(KeditError, match=r"^top\.a: 'x\\x00' has a NUL"):
        check_values({"a": "x\0"}, "top")


def test_messages_have_at_most_a_line_of_a_value() -> None:
    for value in ("x" * 100_000, "x\n" * 5000, "\x1b[31m" * 100):
        for line in printable(f"option: expects a number, not {value}").splitlines()[:3]:
            assert len(line) <= LINE
            assert line.isprintable()
    text = f"Parser key \"model.layer\":\n  - Expected a <class 'int'>. Got value: {'9' * 100_000}"
    assert len(explain(text)) < 200
