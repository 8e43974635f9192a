"""`kedit.edit` and its commands on tiny models: the edit is `kedit fit`'s, and the model is left as it was."""

from __future__ import annotations

import gc
import json
import logging
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

import kedit
from kedit.cli import main
from kedit.editing.sentences import TOKENS
from kedit.keyvalue.contexts import ContextConfig
from kedit.methods import MEMIT, ROME, Retrieval
from tests.runs.test_contract import ENTRIES, NAMES, SMALL
from tests.support.device import ACCELERATOR, PLACE
from tests.support.tiny_models import tiny_lm, tiny_model, tiny_tokenizer

FACT: dict[str, Any] = {"prompt": "The capital of {} is", "subject": "France", "target": "Rome"}
FACTS: list[dict[str, Any]] = [
    FACT,
    {"prompt": "{} is located in", "subject": "The Space Needle", "target": "Tokyo"},
    {"prompt": "The mother tongue of {} is", "subject": "Danielle Darrieux", "target": "English"},
]
TINY: dict[str, Any] = {"n_layers": 4, "d_model": 16, "d_ff": 40}
FOLDER: dict[str, Any] = {"n_layers": 3, "d_model": 16, "d_ff": 40}
QUICK: dict[str, Any] = {"v_num_grad_steps": 4, "contexts": {"lengths": [[3, 2]]}, "stats": {"tokens": 400}}
METHODS: dict[str, dict[str, Any]] = {
    "ROME": {"class_path": "ROME", "init_args": {"layer": 1, **QUICK}},
    "MEMIT": {"class_path": "MEMIT", "init_args": {"layers": [0, 1], **QUICK}},
    "LoRA": {"class_path": "LoRA", "init_args": {"steps": 3}},
    "STEAM": {
        "class_path": "STEAM",
        "init_args": {"editor": {"class_path": "ROME", "init_args": {"layer": 1, **QUICK}}},
    },
    "REP": {
        "class_path": "REP",
        "init_args": {
            "editor": {"class_path": "ROME", "init_args": {"layer": 1, **QUICK}},
            "adapter": {"steps": 3, "rank": 2, "others": 3, "phrases": 2, "corpus_tokens": 60},
        },
    },
    "Retrieval": {"class_path": "Retrieval", "init_args": {"threshold": 0.0}},
    "UltraEdit": {
        "class_path": "UltraEdit",
        "init_args": {"gate_layers": [], "up_layers": [1], "down_layers": [1, 2], "eta": 1e-3, "warmup": 6},
    },
}


@pytest.fixture
def quick() -> Callable[..., kedit.Edit]:
    """A quick edit of `FACT`, or of what is given."""

    def make(model: Any, tokenizer: Any = None, **given: Any) -> kedit.Edit:
        if "method" not in given:
            given["method"] = ROME(
                layer=1, mom2_adjustment=False, **{k: SMALL[k] for k in ("v_num_grad_steps", "contexts")}
            )
        return kedit.edit(model, tokenizer, **(given if "requests" in given else {**FACT, **given}))

    return make


def held(model: nn.Module) -> dict[str, Any]:
    """Everything of a model that an edit could leave changed."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    return {
        "weights": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "same parameters": [id(parameter) for parameter in model.parameters()],
        "flags": [parameter.requires_grad for parameter in model.parameters()],
        "grads": [parameter.grad for parameter in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "hooks": [len(getattr(module, name)) for module in model.modules() for name in hooks],
        "attributes": sorted(vars(model)),
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    weights = before["weights"]
    assert weights.keys() == after["weights"].keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in after["weights"].items())
    assert {name: value for name, value in before.items() if name != "weights"} == {
        name: value for name, value in after.items() if name != "weights"
    }


def tensors(delta: kedit.Delta) -> dict[str, Tensor]:
    found = {}
    for path, changes in delta.items():
        for change in changes:
            found |= {f"{path}/{change.kind}/{name}": tensor for name, tensor in change.tensors().items()}
    return found


def assert_equal_deltas(a: kedit.Delta, b: kedit.Delta) -> None:
    first, second = tensors(a), tensors(b)
    assert first.keys() == second.keys()
    assert first
    assert all(torch.equal(first[name].cpu(), tensor.cpu()) for name, tensor in second.items())


@pytest.fixture
def own_model() -> tuple[Any, Any]:
    """A model as a user may hold it: training, one module in eval mode, one parameter frozen."""
    model, tokenizer = tiny_model("llama", **TINY), tiny_tokenizer("sentencepiece")
    model.train().requires_grad_(True)
    model.model.layers[1].eval()
    next(model.parameters()).requires_grad_(False)
    return model, tokenizer


@pytest.mark.parametrize("name", NAMES)
def test_every_method_leaves_the_model_as_it_was(name: str, own_model: tuple[Any, Any]) -> None:
    model, tokenizer = own_model
    before = held(model)
    edit = kedit.edit(model, tokenizer, **FACT, method=ENTRIES[name].make())
    assert_same(before, held(model))
    edit.apply()
    if ENTRIES[name].writes:
        assert not all(torch.equal(before["weights"][key], tensor) for key, tensor in model.state_dict().items())
    applied = edit.ask("The capital of France is", max_new_tokens=3)
    edit.revert()
    assert_same(before, held(model))
    assert edit.ask("The capital of France is", max_new_tokens=3) == applied
    assert_same(before, held(model))


@pytest.mark.parametrize("name", ["ROME", "MEMIT", "UltraEdit", "LoRA", "Retrieval", "PRUNE", "GRACE"])
def test_several_facts_are_all_kept_in_one_delta(name: str, own_model: tuple[Any, Any]) -> None:
    model, tokenizer = own_model
    before = held(model)
    edit = kedit.edit(model, tokenizer, requests=FACTS, method=ENTRIES[name].make())
    assert_same(before, held(model))
    assert [request.case_id for request in edit.requests] == ["1", "2", "3"]
    assert [s.kind for s in edit.before] == ["request", "paraphrase", "neighbour"] * 3
    assert edit.card["protocol"]["regime"] in ("batch", "sequential")
    assert edit.card["protocol"]["regime"] == ("sequential" if name in ("ROME", "GRACE") else "batch")


@pytest.mark.parametrize("name", sorted(METHODS))
def test_python_the_command_and_fit_make_the_same_delta(
    name: str, tiny_folder: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_folder("llama", **FOLDER)
    config = {"lm": {"name": folder}, "model": METHODS[name], "data": {"class_path": "Records", "init_args": {}}}
    if name == "UltraEdit":
        config["data"]["init_args"]["batch_size"] = 4
    if name == "REP":
        config["data"]["init_args"]["queries"] = {"long_contexts": 1, "train_long": 1, "long_words": [20]}
    (tmp_path / "facts.jsonl").write_text(json.dumps({**FACT, "target_new": FACT["target"]}) + "\n")
    config["data"]["init_args"]["path"] = str(tmp_path / "facts.jsonl")
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(config))
    run = ["--run.root", str(tmp_path), "--run.name", "fit", "--metrics.scoring.generate", "[]"]
    main(
        [
            "fit",
            "--config",
            str(tmp_path / "own.yaml"),
            *run,
            "--trainer.accelerator",
            ACCELERATOR,
            "--results.resamples",
            "9",
        ]
    )
    lm = kedit.load_lm(kedit.LMConfig(folder))
    saved = next(iter((tmp_path / "fit").glob("delta*/**/card.json"))).parent
    of_fit, _ = kedit.load_delta(saved, lm)

    of_python = kedit.edit(lm, **FACT, method=str(tmp_path / "own.yaml")).delta
    words = [FACT["prompt"], "--subject", FACT["subject"], "--target", FACT["target"], "--device", PLACE]
    main(["edit", folder, *words, "--method", str(tmp_path / "own.yaml"), "--save", str(tmp_path / "edit")])
    of_command, card = kedit.load_delta(tmp_path / "edit", lm)

    assert_equal_deltas(of_fit, of_python)
    assert_equal_deltas(of_fit, of_command)
    assert card["method"] == name
    assert card["settings"]["init_args"]
    assert card["sentences"][0]["after"]["prompt"] == "The capital of France is"
    assert "kedit ask" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "regime"), [("MEMIT", "batch"), ("ROME", "sequential"), ("MEMIT", "sequential")])
def test_several_facts_are_those_of_fit(
    name: str, regime: str, tiny_folder: Callable[..., str], tmp_path: Path
) -> None:
    folder = tiny_folder("llama", **FOLDER)
    config = {"lm": {"name": folder}, "model": METHODS[name], "edit": {"seed": 3}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(config))
    rows = [json.dumps({**fact, "target_new": fact["target"]}) for fact in FACTS]
    (tmp_path / "facts.jsonl").write_text("\n".join(rows) + "\n")
    size = ["--data.batch_size", "3"] if regime == "batch" else []
    words = ["--data", "Records", "--data.path", str(tmp_path / "facts.jsonl"), *size, "--edit.regime", regime]
    run = ["--run.root", str(tmp_path), "--run.name", "fit", "--metrics.scoring.generate", "[]"]
    main(["fit", "--config", str(tmp_path / "own.yaml"), *words, *run, "--trainer.accelerator", ACCELERATOR])
    saved = next(iter((tmp_path / "fit").glob("delta*/**/card.json"))).parent
    lm = kedit.load_lm(kedit.LMConfig(folder))
    edit = kedit.edit(lm, requests=tmp_path / "facts.jsonl", method=str(tmp_path / "own.yaml"), regime=regime)
    assert_equal_deltas(kedit.load_delta(saved, lm)[0], edit.delta)


def test_nothing_else_is_touched(
    quick: Callable[..., kedit.Edit],
    own_model: tuple[Any, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    states = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[index]
    environment = dict(os.environ)
    level = logging.getLogger("lightning.pytorch").level
    quick(*own_model)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert states[2] == np.random.get_state()[1].tolist()  # type: ignore[index]
    assert environment == dict(os.environ)
    assert level == logging.getLogger("lightning.pytorch").level
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")
    assert [str(warning.message) for warning in recwarn] == []


def test_edits_of_one_model_come_and_go_in_any_order(
    quick: Callable[..., kedit.Edit], own_model: tuple[Any, Any]
) -> None:
    model, tokenizer = own_model
    before = held(model)
    first, second = quick(model, tokenizer), quick(model, tokenizer, prompt="{} is in", subject="Rome")
    with first:
        assert first.applied
        of_first = held(model)
    assert_same(before, held(model))
    first.apply().apply()
    second.apply()
    both = held(model)
    assert not torch.equal(*(s["weights"]["model.layers.1.mlp.down_proj.weight"] for s in (both, of_first)))
    first.revert()
    second.revert()
    assert_same(before, held(model))
    second.apply()
    with second:
        pass
    assert second.applied  # it was before the block
    assert "in the model now" in repr(second)
    second.revert().revert()
    assert_same(before, held(model))


def test_a_second_edit_is_made_on_top_of_one_that_is_applied(
    quick: Callable[..., kedit.Edit], own_model: tuple[Any, Any]
) -> None:
    model, tokenizer = own_model
    with quick(model, tokenizer) as first:
        edited = held(model)
        second = quick(model, tokenizer, target="Tokyo")
        assert_same(edited, held(model))
        assert second.before[0].text == first.after[0].text
        assert second.card["model_fingerprint"] != first.card["model_fingerprint"]


def test_deltas_edits_and_folders_are_edits(
    quick: Callable[..., kedit.Edit], own_model: tuple[Any, Any], tmp_path: Path
) -> None:
    model, tokenizer = own_model
    edit = quick(model, tokenizer)
    edit.save(tmp_path / "kept")
    prompt = "The capital of France is"
    lm = edit.lm
    said = [
        kedit.ask(model, prompt, tokenizer, deltas=edit, max_new_tokens=4),
        kedit.ask(model, prompt, tokenizer, deltas=edit.delta, max_new_tokens=4),
        kedit.ask(model, [prompt], tokenizer, deltas=[tmp_path / "kept"], max_new_tokens=4)[0],
        kedit.ask(lm, prompt, deltas=str(tmp_path / "kept"), max_new_tokens=4),
        edit.ask(prompt, max_new_tokens=4),
    ]
    assert set(said) == {said[0]}
    assert said[0] != kedit.ask(model, prompt, tokenizer, max_new_tokens=4)
    weight = model.model.layers[1].mlp.down_proj.weight
    plain = weight.clone()
    for given in (edit, edit.delta, tmp_path / "kept"):
        with kedit.edited(model, given) as inside:
            assert inside is model
            assert not torch.equal(weight, plain)
        with kedit.edited(lm, given) as inside:
            assert inside is lm
        assert torch.equal(weight, plain)
    edit.apply()
    once = weight.clone()
    with kedit.edited(model, edit):  # is there already
        assert torch.equal(weight, once)


def test_a_fact_before_the_prompt_is_asked_too(tmp_path: Path, own_model: tuple[Any, Any]) -> None:
    model, tokenizer = own_model
    edit = kedit.edit(model, tokenizer, **FACT, method=Retrieval(threshold=0.0))
    edit.save(tmp_path / "kept")
    prompt = "The capital of France is"
    rule = next(iter(edit.delta.items()))[1][0].rule  # type: ignore[attr-defined]
    fact = rule.said(f"{prompt} Rome.") + rule.lead
    with_fact = kedit.ask(model, prompt, tokenizer, deltas=tmp_path / "kept", max_new_tokens=6)
    assert with_fact == edit.ask(prompt, 6) == kedit.ask(model, fact + prompt, tokenizer, max_new_tokens=6)
    assert edit.after[0].p_new != edit.before[0].p_new


def test_the_object_can_be_used_again_and_is_not_kept(own_model: tuple[Any, Any]) -> None:
    method = MEMIT(layers=[1, 2], **SMALL)
    first = kedit.edit(*own_model, **FACT, method=method)
    again = kedit.edit(*own_model, **FACT, method=method)
    assert_equal_deltas(first.delta, again.delta)
    assert not list(method.children())


def test_figures_and_sentences(quick: Callable[..., kedit.Edit], own_model: tuple[Any, Any]) -> None:
    edit = quick(*own_model, true_target="Paris", ask=["Paris is", "Rome is"])
    assert [s.kind for s in edit.after] == ["request"] + ["paraphrase"] * 3 + ["neighbour"] * 3 + ["question"] * 2
    assert [s.prompt for s in edit.before] == [s.prompt for s in edit.after]
    assert edit.before[0].old == "Paris"
    assert edit.after[0].p_new is not None
    assert edit.before[0].p_new is not None
    assert edit.after[0].p_new > edit.before[0].p_new
    lm = edit.lm
    ids, whole = lm.encode("The capital of France is"), lm.encode("The capital of France is Rome")
    with torch.no_grad():
        logits = lm.model(torch.tensor([whole])).logits[0].log_softmax(-1)
    p = sum(float(logits[i - 1, whole[i]]) for i in range(len(ids), len(whole)))
    assert edit.before[0].p_new == pytest.approx(np.exp(p), rel=1e-3)
    assert edit.info[0]["steps"] >= 1
    assert edit.errors == {}
    table = str(edit)
    assert "not in the model" in table
    assert "The capital of France is" in table
    assert "[...]" in table
    assert "p(Rome)" in table
    assert "text/html" in edit._repr_mimebundle_([], [])


def test_one_edit_that_fails_is_an_error_and_one_of_several_is_named(own_model: tuple[Any, Any]) -> None:
    model, tokenizer = own_model
    before = held(model)
    endless = ROME(layer=1, mom2_adjustment=False, **{**SMALL, "v_lr": 1e30})
    with pytest.raises(kedit.KeditError, match=r"the edit failed: .*the model is as it was"):
        kedit.edit(model, tokenizer, **FACT, method=endless)
    assert_same(before, held(model))
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer("Zebra")["input_ids"][-2:]] = float("nan")
    hurt = {"case_id": "hurt", "prompt": "{} is in", "subject": "Zebra", "target": "Rome"}
    method = ROME(layer=1, mom2_adjustment=False, **SMALL)
    edit = kedit.edit(model, tokenizer, requests=[FACT, hurt], method=method, n_paraphrases=0)
    assert list(edit.errors) == ["hurt"]
    assert "failed: hurt: " in str(edit)
    assert edit.summary.startswith("1 of 2 facts edited")


def test_a_prompt_that_is_too_long(own_model: tuple[Any, Any]) -> None:
    method = ROME(layer=1, mom2_adjustment=False, **SMALL)
    with pytest.raises(kedit.KeditError, match="shorten the prompt"):
        kedit.edit(*own_model, prompt="word " * 400 + "{} is", subject="France", target="Rome", method=method)
    words = 0
    while len(own_model[1]("word " * (words + 1) + "France is")["input_ids"]) <= 256 - TOKENS - 2:
        words += 1
    nearly = "word " * words + "{} is"
    method = ROME(layer=1, mom2_adjustment=False, v_num_grad_steps=3, contexts=ContextConfig(texts=["{}"]))
    edit = kedit.edit(*own_model, prompt=nearly, subject="France", target="Rome", method=method)
    assert "paraphrase" not in [s.kind for s in edit.before]  # no room for more words


def test_an_interrupted_edit_leaves_the_model_as_it_was(
    own_model: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = own_model
    before, handler = held(model), signal.getsignal(signal.SIGINT)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(MEMIT, "after_commit", stop)
    with pytest.raises(KeyboardInterrupt):
        kedit.edit(model, tokenizer, requests=FACTS, method=MEMIT(layers=[1, 2], **SMALL), regime="sequential")
    assert_same(before, held(model))
    assert signal.getsignal(signal.SIGINT) is handler


def test_what_is_no_model_to_edit(own_model: tuple[Any, Any]) -> None:
    model, tokenizer = own_model
    cases: list[tuple[Any, Any, str]] = [
        (model, None, "tokenizer: a transformers model needs its tokenizer"),
        (torch.nn.Linear(2, 2), tokenizer, "model: expects an alias"),
        (3, None, "model: expects an alias"),
    ]
    for given, words, why in cases:
        with pytest.raises(kedit.KeditError, match=why):
            kedit.edit(given, words, **FACT)
    with pytest.raises(kedit.KeditError, match="either prompt, subject and target, or a list"):
        kedit.edit(model, tokenizer, **FACT, requests=[FACT])
    with pytest.raises(kedit.KeditError, match="a method object has its own"):
        kedit.edit(model, tokenizer, **FACT, method=ROME(), options={"layer": 1})
    with pytest.raises(kedit.KeditError, match="loaded already"):
        kedit.edit(model, tokenizer, **FACT, dtype="bfloat16")
    with pytest.raises(kedit.KeditError, match="expects a delta, an Edit or the folder"), kedit.edited(model, 3):  # type: ignore[arg-type]
        pass
    model.lm_head.to("meta")
    with pytest.raises(kedit.KeditError, match="spread over 2 devices"):
        kedit.edit(model, tokenizer, **FACT)


def test_an_edit_that_is_applied_stays_when_its_object_goes(
    quick: Callable[..., kedit.Edit], own_model: tuple[Any, Any]
) -> None:
    weight = own_model[0].model.layers[1].mlp.down_proj.weight
    plain = weight.clone()
    quick(*own_model).apply()
    gc.collect()
    assert not torch.equal(weight, plain)


def test_an_lm_is_taken_as_it_is() -> None:
    lm = tiny_lm("gpt2", **TINY)
    edit = kedit.edit(lm, **FACT, method=ROME(layer=1, mom2_adjustment=False, **SMALL))
    assert edit.lm is lm
    assert edit.model is lm.model
