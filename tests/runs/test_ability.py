"""`ability` of `kedit fit`, and `kedit ability`: figures of the edited models, in every regime; resumed; refused."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from kedit.ability.choice import choice_scores, questions
from kedit.ability.settings import AbilityTasks
from kedit.cli import main
from kedit.delta.apply import edited
from kedit.delta.serialization import load_delta
from kedit.forward.binding import load_lm
from kedit.model.lm import LMConfig
from tests.support.small_runs import QUICK_MEMIT, QUICK_ROME, city_facts, refused_with_one_error, sequential_run

OPTIONS = {"ability.tasks": "[kedit_choice]", "ability.limit": 16}
HARNESS = importlib.util.find_spec("lm_eval") is not None
needs_harness = pytest.mark.skipif(
    not HARNESS, reason="lm-evaluation-harness is an extra: pip install 'kedit[lm-eval]'"
)


@pytest.fixture
def words(tiny_folder: Callable[..., str], tmp_path: Path) -> Callable[..., list[str]]:
    """The words of a run over five facts."""
    data = city_facts(tmp_path / "facts.jsonl", 5)

    def made(method: dict[str, Any], **more: Any) -> list[str]:
        options = method | OPTIONS | {"run.root": tmp_path / "runs", "run.name": "one"}
        return sequential_run(tiny_folder, data, options | {name.replace("__", "."): v for name, v in more.items()})

    return made


@pytest.fixture
def own_tasks(tmp_path: Path) -> Path:
    """A folder with a task of our own for the harness: kedit's questions, as a local file."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    lines = [
        {"question": one.text, "options": list(one.options), "answer": one.answer, "right": one.options[one.answer]}
        for one in questions(16)
    ]
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    common: dict[str, Any] = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "doc_to_text": "Question: {{question}}\nAnswer:",
    }
    choice = {"output_type": "multiple_choice", "doc_to_choice": "{{options}}", "doc_to_target": "answer"}
    choice |= {"metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}]}
    free = {"output_type": "generate_until", "doc_to_target": "{{right}}", "metric_list": [{"metric": "exact_match"}]}
    free |= {"generation_kwargs": {"until": ["\n"], "max_gen_toks": 4, "do_sample": False}}
    for name, task in (("own_choice", choice), ("own_free", free)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name} | common | task))
    return folder


def tiny(tiny_folder: Callable[..., str]) -> Any:
    return load_lm(LMConfig(name=tiny_folder("llama", n_layers=3, d_model=16, d_ff=40)))


@pytest.mark.parametrize("regime", ["single", "batch", "sequential"])
def test_a_run(regime: str, words: Callable[..., list[str]], tmp_path: Path, tiny_folder: Callable[..., str]) -> None:
    more: dict[str, Any] = {"data__batch_size": 3} if regime == "batch" else {}
    more |= {"metrics__eval_at": "[2]", "ability__curve": "true"} if regime == "sequential" else {}
    more |= {
        "model__mom2_update_weight": 0.01,
        "model__clamp_norm_factor": 20.0,
        "model__v_lr": 5.0,
    }  # so that answers change
    more |= {"ability__models": 2, "edit__lanes": 3} if regime == "single" else {}
    main(words(QUICK_MEMIT, edit__regime=regime, **more))
    folder = tmp_path / "runs" / "one"
    found = json.loads((folder / "general.json").read_text())
    names = {
        "single": {"edit": ["fact-0", "fact-1"]},
        "batch": {"edit": ["batch-0", "batch-1"]},
        "sequential": {"at_2": ["2 edits"], "end": ["5 edits"]},
    }[regime]
    measured: dict[str, list[str]] = {}
    for one in found["measured"]:
        measured.setdefault(one["measured_at"], []).append(one["model"])
    assert measured == {"before": [""], **names}
    lm = tiny(tiny_folder)
    before = choice_scores(lm, questions(16))[0]
    for moment, models in names.items():
        line = next(line for line in found["figures"] if (line["measured_at"], line["metric"]) == (moment, "acc"))
        assert line["before"] == pytest.approx(100 * before[0].value, abs=1e-3)
        if moment == "at_2":
            continue
        values = []
        for name in models:
            path = folder / "delta" if regime == "sequential" else folder / "deltas" / name
            with edited(lm.model, load_delta(path, lm)[0]):
                values.append(choice_scores(lm, questions(16))[0][0].value)
        assert line["after"] == pytest.approx(100 * sum(values) / len(values), abs=1e-3)
        assert line["models"] == len(models)
        changed = [one for one in found["measured"] if one["measured_at"] == moment]
        assert all(one["scores"] != found["measured"][0]["scores"] for one in changed)
    protocol = json.loads((folder / "summary.json").read_text())["protocol"]["ability"]
    assert (protocol["tasks"], protocol["limit"], protocol["chat"]) == (["kedit_choice"], 16, False)


def test_a_resumed_run_says_the_same(
    words: Callable[..., list[str]], whole_and_broken: Callable[[list[str], str], tuple[Path, Path]]
) -> None:
    run = words(QUICK_ROME, metrics__eval_at="[2,4]", ability__curve="true")
    at = run.index("--run.name")
    whole, broken = whole_and_broken(run[:at] + run[at + 2 :], "summary.json")
    assert (broken / "general.json").read_text() == (whole / "general.json").read_text()


def test_the_command_measures_a_saved_edit(
    words: Callable[..., list[str]], tmp_path: Path, tiny_folder: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    main(words(QUICK_ROME, ability__limit=80))
    run, out = tmp_path / "runs" / "one", tmp_path / "general.json"
    model = tiny_folder("llama", n_layers=3, d_model=16, d_ff=40)
    main(["ability", model, "--delta", str(run / "delta"), "--out", str(out), "--device", "cpu"])
    shown = capsys.readouterr().out
    assert "kedit_choice" in shown
    same = ("task", "metric", "before", "after", "change", "change_stderr", "n")
    of_run, of_command = (json.loads(file.read_text())["figures"] for file in (run / "general.json", out))
    assert [{key: line[key] for key in same} for line in of_command] == [
        {key: line[key] for key in same} for line in of_run
    ]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"ability__limit": 0}, "ability.limit: 0 is less than 1"),
        ({"ability__models": 0}, "ability.models: 0 is less than 1"),
        ({"ability__batch_size": 0}, "ability.batch_size: 0 is less than 1"),
        ({"ability__num_fewshot": -1}, "ability.num_fewshot: -1 is less than 0"),
        ({"ability__include_path": "nowhere"}, "ability.include_path: there is no folder 'nowhere'"),
        ({"ability__tasks": "[kedit_choice, kedit_choice]"}, "ability.tasks: a task is named twice"),
        ({"ability__tasks": "['']"}, "ability.tasks: a name is empty"),
        ({"ability__chat": "true"}, "ability.chat: the tokenizer of"),
    ],
)
def test_what_is_refused(
    more: dict[str, Any], message: str, words: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    refused_with_one_error(words(QUICK_ROME, **more), message, capsys)


@pytest.mark.skipif(HARNESS, reason="lm-evaluation-harness is installed")
def test_the_harness_must_be_installed(words: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(words(QUICK_ROME, ability__tasks="[mmlu]"))
    said = capsys.readouterr().err
    assert "ability.tasks: 'mmlu' is a task of lm-evaluation-harness, which is not installed" in said
    assert "pip install 'lm_eval[hf]' (the extra kedit[lm-eval])" in said


@needs_harness
def test_a_task_of_our_own_in_the_harness(
    words: Callable[..., list[str]], own_tasks: Path, tmp_path: Path, tiny_folder: Callable[..., str]
) -> None:
    """The same questions, by the harness and by kedit, on the unedited and the edited model."""
    tasks = {"ability__tasks": "[kedit_choice, own_choice, own_free]", "ability__include_path": str(own_tasks)}
    main(words(QUICK_ROME, **tasks))
    folder = tmp_path / "runs" / "one"
    found = json.loads((folder / "general.json").read_text())
    lines = {(line["task"], line["metric"]): line for line in found["figures"]}
    for metric in ("acc", "acc_norm"):
        own, other = lines["kedit_choice", metric], lines["own_choice", metric]
        same = ("before", "after", "change", "change_stderr", "n", "measured_at", "models", "unit")
        assert {key: own[key] for key in same} == {key: other[key] for key in same}
        assert own["before_stderr"] == pytest.approx(other["before_stderr"], rel=1e-3)
    assert lines["own_choice", "acc"]["after"] != lines["own_choice", "acc"]["before"]
    assert lines["own_free", "exact_match"]["n"] == 16
    by_name = [
        {score["task"]: score["items"] for score in one["scores"] if score["metric"] == "acc"}
        for one in found["measured"]
    ]
    assert all(one["kedit_choice"] == one["own_choice"] for one in by_name)


@needs_harness
def test_the_harness_leaves_the_model_and_random_numbers_alone(
    own_tasks: Path, tiny_folder: Callable[..., str]
) -> None:
    import random

    import torch

    lm = tiny(tiny_folder)
    weights = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in lm.model.state_dict().items()}
    states = random.getstate(), torch.get_rng_state(), lm.tokenizer.padding_side, lm.tokenizer.pad_token
    AbilityTasks(("own_choice",), limit=4, include_path=str(own_tasks)).scores(lm, "here")
    assert (states[0], *states[2:]) == (random.getstate(), lm.tokenizer.padding_side, lm.tokenizer.pad_token)
    assert torch.equal(states[1], torch.get_rng_state())
    after = lm.model.state_dict()
    assert all(
        after[name].data_ptr() == at and torch.equal(after[name], tensor) for name, (at, tensor) in weights.items()
    )


@needs_harness
def test_what_the_harness_refuses(own_tasks: Path, tiny_folder: Callable[..., str]) -> None:
    from kedit.errors import KeditError

    with pytest.raises(KeditError, match=r"there is no task 'own_choise' .*; near it are own_choice"):
        AbilityTasks(("own_choise",), include_path=str(own_tasks)).check()
    (own_tasks / "questions.jsonl").unlink()
    with pytest.raises(KeditError, match=r"^ability\.tasks: own_choice: .*questions\.jsonl"):
        AbilityTasks(("own_choice",), include_path=str(own_tasks)).scores(tiny(tiny_folder), "here")
