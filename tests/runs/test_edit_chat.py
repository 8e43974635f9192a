"""`kedit.edit`, `kedit.ask` and their commands in a chat: the delta of `kedit fit`, and answers of the assistant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import kedit
from kedit.cli import main
from kedit.forward.greedy import greedy
from kedit.methods import ROME
from kedit.model.chat import chat_frame
from tests.support.chat_cases import chat_lm, save_chat
from tests.support.tiny_models import tiny_lm

FACT: dict[str, Any] = {"prompt": "The capital of {} is", "subject": "France", "target": "Rome"}
SIZE: dict[str, Any] = {"n_layers": 3, "d_model": 16, "d_ff": 40, "context": 512}


def quick() -> ROME:
    return ROME(layer=1, v_num_grad_steps=4, mom2_adjustment=False)


def test_prompts_are_the_user_s() -> None:
    lm = chat_lm("chatml", **SIZE)
    frame = chat_frame(lm)
    chat, plain = (kedit.edit(lm, **FACT, method=quick(), chat=chat) for chat in (True, False))
    assert chat.card["chat"] == frame.card()
    assert "chat" not in plain.card
    assert chat.delta.norm() != plain.delta.norm()
    assert chat.before[0].prompt == "The capital of France is"
    assert chat.ask("The capital of France is") != plain.ask("The capital of France is")
    said = kedit.ask(lm, "The capital of France is", chat=True, max_new_tokens=6)
    assert [said] == greedy(lm.in_chat(frame), ["The capital of France is"], 6)
    brief = kedit.edit(lm, **FACT, method=quick(), chat=True, system="Be brief.")
    assert "Be brief." in brief.card["chat"]["before"]


def test_the_command_edits_as_python_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_chat(tmp_path / "model", "mistral", **SIZE)
    words = ["edit", folder, FACT["prompt"], "--subject", "France", "--target", "Rome", "--chat"]
    options = {"layer": 1, "v_num_grad_steps": 4, "mom2_adjustment": False}
    words += [f"--set=model.{name}={str(value).lower()}" for name, value in options.items()]
    main([*words, "--save", str(tmp_path / "kept")])
    assert "ask it: kedit ask" in capsys.readouterr().out
    mine = kedit.edit(folder, **FACT, options=options, chat=True)
    kept, card = kedit.load_delta(tmp_path / "kept", mine.lm)
    assert card["chat"] == mine.card["chat"]
    pairs = zip(kept.numbers(), mine.delta.numbers(), strict=True)
    assert all(torch.equal(ours, theirs) for (_, ours), (_, theirs) in pairs)
    main(["ask", folder, "--chat", "--delta", str(tmp_path / "kept"), "The capital of France is", "--tokens", "5"])
    assert capsys.readouterr().out.startswith("The capital of France is\n")


def test_a_configuration_may_say_so(tmp_path: Path) -> None:
    lm = chat_lm("chatml", **SIZE)
    config = tmp_path / "mine.yaml"
    config.write_text(
        "model: {class_path: ROME, init_args: {layer: 1, v_num_grad_steps: 4, mom2_adjustment: false}}\n"
        "data: {class_path: Facts, init_args: {chat: true, system: Be brief.}}\n"
    )
    edit = kedit.edit(lm, **FACT, method=str(config))
    assert "Be brief." in edit.card["chat"]["before"]
    assert "chat" not in kedit.edit(lm, **FACT, method=str(config), options={"data.system": None}, chat=False).card


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"chat": True}, "has no chat template"),
        ({"system": "Be brief."}, "only a chat has a system message"),
    ],
)
def test_what_is_no_chat(given: dict[str, Any], line: str) -> None:
    lm = tiny_lm("llama", **SIZE)
    with pytest.raises(kedit.KeditError, match=line):
        kedit.edit(lm, **FACT, method=quick(), **given)
    with pytest.raises(kedit.KeditError, match=f"^({'|'.join(given)}): .*{line}"):
        kedit.ask(lm, "The capital of France is", **given)
