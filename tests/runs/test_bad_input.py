"""Bad input is answered in one or two lines that name the culprit, with status 2; what was done is kept."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import Namespace
from safetensors.torch import load_file, save_file

from kedit.cli import main
from kedit.cli.options.checks import check_precision
from kedit.delta.factors import Factors
from kedit.delta.serialization import load_delta
from kedit.errors import KeditError
from kedit.forward.binding import load_lm
from kedit.model.lm import LMConfig
from tests.support.device import ACCELERATOR
from tests.support.paths import FIXTURES
from tests.support.small_runs import option_words

GOOD = {"prompt": "The capital of {} is", "subject": "France", "target_new": "Rome", "target_true": "Paris"}

Refused = Callable[..., str]


@pytest.fixture
def words(tiny_folder: Callable[..., str], tmp_path: Path) -> list[str]:
    """A quick run on a tiny model; later words win."""
    data = tmp_path / "good.jsonl"
    data.write_text(json.dumps(GOOD) + "\n")
    options = {
        "model": "ROME",
        "lm.name": tiny_folder("llama", n_layers=3, context=128),
        "model.layer": 1,
        "model.mom2_adjustment": "false",
        "model.v_num_grad_steps": 3,
        "model.contexts.lengths": "[]",
        "data": "Records",
        "data.path": data,
        "run.root": tmp_path / "runs",
        "trainer.accelerator": ACCELERATOR,
    }
    return ["fit", *option_words(options)]


@pytest.fixture
def refused(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run the command with more words, or data; what it says on standard error."""

    def run(*more: str, data: str | bytes | None = None, name: str = "facts.jsonl", cls: str = "Records") -> str:
        if data is not None:
            file = tmp_path / name
            file.write_bytes(data if isinstance(data, bytes) else data.encode())
            more = ("--data", cls, "--data.path", str(file), *more)
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([*words, *more])
        assert stop.value.code == 2
        error = capsys.readouterr().err.strip()
        assert error.startswith("kedit: error: ")
        assert len(error.splitlines()) <= 2, error
        assert len(error) < 400, error
        assert not list(tmp_path.rglob("summary.json")), "refused, and yet it ran"
        return error.removeprefix("kedit: error: ")

    return run


def record(**changes: Any) -> str:
    """Two records, the second with changes (None takes a field away)."""
    bad = {key: value for key, value in (GOOD | {"case_id": "bad-one"} | changes).items() if value is not None}
    return json.dumps(GOOD) + "\n" + json.dumps(bad) + "\n"


def test_subject_not_in_prompt(refused: Refused) -> None:
    error = refused(data=record(prompt="The capital of Spain is"))
    assert "bad-one" in error
    assert "'France'" in error
    assert "'The capital of Spain is'" in error


def test_prompt_without_a_slot(refused: Refused) -> None:
    rewrite = {"prompt": "The capital is", "subject": "France", "target_new": {"str": "Rome"}}
    rewrite["target_true"] = {"str": "Paris"}
    case = {"case_id": 7, "requested_rewrite": rewrite, "paraphrase_prompts": [], "neighborhood_prompts": []}
    error = refused(data=json.dumps([case]), name="counterfact.json", cls="CounterFact")
    assert "7" in error
    assert "'The capital is'" in error
    error = refused(data=record(prompt="{} and {}"))
    assert "bad-one" in error
    assert "has 2 '{}'; it needs exactly one" in error


def test_empty_target(refused: Refused) -> None:
    assert re.search(r"bad-one.*target_new is empty", refused(data=record(target_new="  ")))


def test_unknown_layer(refused: Refused) -> None:
    error = refused("--model.layer", "99")
    assert error == "model.layer: there is no layer 99; this model has layers 0 to 2"
    assert "model.layer" in refused("--model.layer", "-1")


def test_unknown_method_and_data(refused: Refused) -> None:
    assert re.fullmatch("model: there is no class 'ROMEO' .*there are .*ROME, RROME.*", refused("--model", "ROMEO"))
    assert re.fullmatch("data: there is no class 'Fcts' .*there are Facts, .*", refused("--data", "Fcts"))


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("model: {init_args: {layer: five}}", "model.layer: expects a whole number or auto or null, not 'five'"),
        ("model: {init_args: {v_lr: fast}}", "model.v_lr: expects a number or null, not 'fast'"),
        ("lm: {dtype: float8}", "lm.dtype: expects one of auto, float32, bfloat16, float16, "),
        ("lm: gpt2", "lm: expects options of its own below it, not 'gpt2'"),
        ("model: {init_args: {contexts: {lengths: [[a, 2]]}}}", "model.contexts.lengths: expects a whole number"),
        ("metrics: {measure: never}", "metrics.measure: expects one of edit, end, both, not 'never'"),
        ("run: {resume: maybe}", "run.resume: expects true or false, not 'maybe'"),
        ("run: 3", "run: expects options of its own below it, not 3"),
    ],
)
def test_wrong_type_in_yaml(refused: Refused, tmp_path: Path, yaml: str, message: str) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(yaml.replace("model: {", "model: {class_path: ROME, ") + "\n")
    assert refused("--config", str(file)).startswith(message)


def test_a_value_for_a_group_that_a_base_class_has(refused: Refused, tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text("model: {class_path: EMMET, init_args: {stats: wiki}}\n")
    assert refused("--config", str(file)).startswith("model.stats: expects options of its own below it, not 'wiki'")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--model.layr 3", "model.layr: there is no such option; did you mean layer?"),
        ("--lm.dtpe x", "lm.dtpe: there is no such option"),
        ("--data.limt 3", "data.limt: there is no such option; did you mean limit?"),
        ("--trainer.acelerator cpu", "trainer.acelerator: there is no such option"),
        ("--metrics.mesure edit", "metrics.mesure: there is no such option"),
        ("--trainer.accelerator warp", "trainer: .*warp"),
        ("--trainer.precision bf16-true", r"trainer.precision: bf16-true .*give --lm\.dtype bfloat16"),
        ("--trainer.precision 16-true", r"trainer.precision: 16-true .*give --lm\.dtype float16"),
        ("--trainer.precision 64", r"trainer.precision: 64 .*give --lm\.dtype float32, bfloat16 or"),
        ("--trainer.precision transformer-engine", r"trainer.precision: .*give --lm\.dtype"),
        ("--model.v_lr -1", "model.v_lr: -1.0 is less than 0"),
        ("--data.limit 0", "data.limit: 0 is less than 1"),
        ("--model.stats.tokens 0", "stats.tokens is 0"),
        ("--model.contexts.lengths [[1,2]]", "contexts.lengths expects pairs"),
        ("--edit.regime batch", "edit.regime: ROME knows single, sequential, not 'batch'"),
        ("--edit.regime sequential --data.batch_size 2", "data.batch_size: ROME edits one request at a time"),
        ("--model MEMIT --model.mom2_update_weight 0", "model.mom2_update_weight: 0.0 is not above 0"),
        ("--model MEMIT --model.layers [1,9]", "model.layers: there is no layer 9; this model has layers 0 to 2"),
        ("--model MEMIT --model.layers [1,1]", "model.layers names a layer twice"),
        ("--model EMMET --model.emmet_lambda -1", "model.emmet_lambda: -1.0 is less than 0"),
        ("--data.known true", "data.known: "),
        ("stray", "'stray': there is no option before it"),
    ],
)
def test_option(refused: Refused, option: str, message: str) -> None:
    assert re.match(message, refused(*option.split()))


def test_the_type_of_the_weights() -> None:
    with pytest.raises(KeditError, match=r"16-true .*--lm\.dtype float16"):
        check_precision(Namespace(trainer=Namespace(precision="16-true")))
    for precision in (None, 32, "32-true", "16-mixed", "bf16"):
        check_precision(Namespace(trainer=Namespace(precision=precision)))


def test_broken_yaml(refused: Refused, tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    for text, message in [
        ("model:\n  class_path: ROME\n  init_args: [1\n", "config: not valid YAML at line"),
        ("", "config: the file is empty"),
        ("- 1\n", "config: the file is empty or no mapping"),
    ]:
        file.write_text(text)
        assert refused("--config", str(file)).startswith(message)
    file.write_bytes(b"\xff\xfe\x00")
    assert "no UTF-8 text" in refused("--config", str(file))


def test_truncated_json(refused: Refused) -> None:
    text = (FIXTURES / "counterfact_official.json").read_text()
    error = refused(data=text[: len(text) // 2], name="cut.json", cls="CounterFact")
    assert "cut.json" in error
    error = refused(data=record()[:-20], name="cut.jsonl")
    assert "cut.jsonl" in error
    assert "2" in error, "the line"


def test_record_without_a_field(refused: Refused) -> None:
    for field in ("prompt", "subject", "target_new"):
        assert re.search(rf"bad-one.*{field}", refused(data=record(**{field: None})))


def test_prompt_longer_than_the_context(refused: Refused) -> None:
    error = refused(data=record(prompt="The capital of {} " + "and so on " * 60 + "is"))
    assert re.match(r"record bad-one: \d+ tokens, more than the 128 of the model's context", error)


def test_missing_files(refused: Refused, tmp_path: Path) -> None:
    assert re.match(r"\S*/nothing.jsonl: no such file", refused("--data.path", str(tmp_path / "nothing.jsonl")))
    assert "nothing.yaml" in refused("--config", str(tmp_path / "nothing.yaml"))
    assert "no folder" in refused("--lm.name", str(tmp_path / "nothing"))
    assert refused("--ckpt_path", "nothing.ckpt") == "ckpt_path: there is no file nothing.ckpt"
    assert "no config.json" in refused("--lm.name", str(tmp_path))


@pytest.fixture
def finished(words: list[str], tmp_path: Path) -> Path:
    """The folder of a sequential run that is over."""
    main([*words, "--edit.regime", "sequential", "--run.name", "over"])
    return (tmp_path / "runs" / "over").rename(tmp_path / "over")


def test_delta_of_another_model(finished: Path, tiny_folder: Callable[..., str]) -> None:
    same = load_lm(LMConfig(name=tiny_folder("llama", n_layers=3, context=128)))
    delta, card = load_delta(finished / "delta", same)
    assert delta.of_kind(Factors)
    other = load_lm(LMConfig(name=tiny_folder("llama", n_layers=3, context=128, seed=1)))
    with pytest.raises(KeditError, match="delta is of another model") as caught:
        load_delta(finished / "delta", other)
    assert card["model_fingerprint"] in str(caught.value)
    assert other.fingerprint in str(caught.value)
    (finished / "delta" / "delta.safetensors").write_bytes(b"x" * 40)
    with pytest.raises(KeditError, match="damaged"):
        load_delta(finished / "delta", same)


def test_checkpoint_of_another_run(
    refused: Refused, finished: Path, tmp_path: Path, tiny_folder: Callable[..., str]
) -> None:
    (finished / "summary.json").unlink()
    checkpoint = str(finished / "checkpoints" / "last.ckpt")
    sequential = ("--edit.regime", "sequential", "--ckpt_path", checkpoint)
    other = tiny_folder("llama", n_layers=3, context=128, seed=1)
    assert re.search("its model(_fingerprint)? is", refused(*sequential, "--lm.name", other))
    assert "its seed is 0, here it is 1" in refused(*sequential, "--edit.seed", "1")
    assert "its regime is 'sequential', here it is 'single'" in refused("--ckpt_path", checkpoint)
    assert "its method is 'ROME', here it is 'RROME'" in refused("--model", "RROME", *sequential)
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes(Path(checkpoint).read_bytes()[:500])
    assert "cut.ckpt is truncated" in refused(*sequential[:2], "--ckpt_path", str(cut))
    torch.save({"state_dict": {}}, cut)
    assert "was not written by kedit" in refused(*sequential[:2], "--ckpt_path", str(cut))


@pytest.mark.parametrize("regime", ["single", "sequential"])
def test_an_edit_whose_loss_is_nan_fails_alone(
    regime: str, words: list[str], tmp_path: Path, tiny_folder: Callable[..., str], rows_of: Callable[[Path], Any]
) -> None:
    """A model one of whose tokens is NaN: the edit that meets it fails, and the run goes on."""
    lm = load_lm(LMConfig(name=tiny_folder("llama", n_layers=3, context=128)))
    hurt = tmp_path / "hurt"
    with torch.no_grad():
        embeddings: Any = lm.model.get_input_embeddings()
        embeddings.weight[lm.encode("Zebra")[-2:]] = float("nan")
    lm.model.save_pretrained(hurt)
    lm.tokenizer.save_pretrained(hurt)
    data = tmp_path / "facts.jsonl"
    rows = [GOOD | {"case_id": str(i), "subject": s} for i, s in enumerate(["Italy", "Zebra", "Japan"])]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = ["--lm.name", str(hurt), "--data.path", str(data), "--edit.regime", regime, "--run.name", "nan"]
    main([*words, *more])
    run = tmp_path / "runs" / "nan"
    status = {row["case_id"]: row["status"] for row in rows_of(run)}
    assert status == {"0": "edited", "1": "failed", "2": "edited"}
    for row in rows_of(run):
        assert (row["error"] is None) == (row["status"] == "edited")
        assert row["error"] is None or "not finite" in row["error"]
    failed = json.loads((run / "summary.json").read_text())["failed"]
    assert failed.keys() == {"1"}
    for file in run.rglob("delta.safetensors"):
        assert all(bool(tensor.isfinite().all()) for tensor in load_file(file).values())


def test_every_edit_fails(words: list[str], tmp_path: Path, rows_of: Callable[[Path], Any]) -> None:
    main([*words, "--model.v_lr", "1e37", "--model.clamp_norm_factor", "1e38", "--run.name", "nan"])
    (row,) = rows_of(tmp_path / "runs" / "nan")
    assert row["status"] == "failed"
    assert "not finite after 0 steps" in row["error"]


def test_weights_that_are_damaged(refused: Refused, tmp_path: Path, tiny_folder: Callable[..., str]) -> None:
    folder = tmp_path / "model"
    lm = load_lm(LMConfig(name=tiny_folder("llama", n_layers=3, context=128)))
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert "truncated or damaged" in refused("--lm.name", str(folder))
    weights.write_bytes(whole)
    tensors = load_file(weights)
    del tensors["model.norm.weight"]
    save_file(tensors, weights, {"format": "pt"})
    assert "model.norm.weight" in refused("--lm.name", str(folder))


def test_no_traceback_from_the_command_itself(words: list[str]) -> None:
    command = [sys.executable, "-m", "kedit", *words, "--model.layer", "99"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last == "kedit: error: model.layer: there is no layer 99; this model has layers 0 to 2"
