"""`kedit edit` and `kedit ask`: slips are told in two lines at most, before a model is loaded; texts stay as typed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from kedit.cli import main
from kedit.cli.commands.edit import _arguments
from kedit.cli.options.quiet import brief_log
from kedit.forward import binding
from tests.support.device import PLACE

FACT = ["no/such/model", "The capital of {} is", "--subject", "France", "--target", "Lyon"]
MISSING = "which model, and which fact?"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["edit"], "MODEL and PROMPT and --subject and --target missing: " + MISSING),
        (["edit", *FACT[:2]], "--subject and --target missing: " + MISSING),
        (["edit", *FACT[:4]], "--target missing: " + MISSING),
        (["edit", "m", "The capital is", *FACT[2:]], "does not name the subject 'France'"),
        (["edit", "m", "France, oh France, is", *FACT[2:]], "names 'France' 2 times"),
        (["edit", *FACT[:3], "", *FACT[4:]], "subject: it is empty"),
        (["edit", *FACT, "--true-target", "Lyon"], "target equals the true target 'Lyon'"),
        (["edit", *FACT, "--method", "rom"], "there is no method 'rom'; did you mean rome?"),
        (["edit", *FACT, "--method", "nope.yaml"], "there is no file nope.yaml"),
        (["edit", *FACT, "--set", "layer"], "set: expects NAME=VALUE"),
        (["edit", *FACT, "--set", "model.layr=7"], "model.layr: there is no such option; did you mean layer?"),
        (["edit", *FACT, "--set", "layer=seven"], "model.layer: expects a whole number, not 'seven'"),
        (["edit", *FACT, "--set", "layer=[1"], "set: the value of layer is not valid YAML"),
        (["edit", *FACT, "--set", "edit.regime=batch"], "ROME knows single, sequential, not 'batch'"),
        (["edit", *FACT, "--seed", "-1"], "seed: -1 is no seed"),
        (["edit", *FACT, "--seed", "x"], "seed: expects a whole number"),
        (["edit", *FACT, "--device", "gpu"], "device: there is no device 'gpu'"),
        (["edit", *FACT, "--dtype", "int8"], "dtype: expects one of float32"),
        (["edit", *FACT, "--ask", " "], "ask: expects texts"),
        (["edit", *FACT, "--paraphrases", "-1"], "paraphrases: -1 is less than 0"),
        (["edit", *FACT], "model: there is no folder no/such/model"),
        (["ask"], "MODEL and PROMPT missing"),
        (["ask", "m"], "PROMPT missing"),
        (["ask", "m", " "], "PROMPT: it is empty"),
        (["ask", "m", "x", "--tokens", "0"], "tokens: 0 is less than 1"),
        (["ask", "--tokens", "0", "m", "x"], "tokens: 0 is less than 1"),
        (["ask", "m", "--tokens=0", "x"], "tokens: 0 is less than 1"),
        (["ask", "m", "--delta"], "--delta: expected one argument"),
        (["ask", "m", "--tok", "0", "x"], "tokens: 0 is less than 1"),
        (["ask", "m", "x", "--delta", "no/such"], "no/such holds no card.json"),
        (["ask", "./no/such/model", "x"], "model: there is no folder ./no/such/model"),
    ],
)
def test_slips(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*_: object) -> None:
        raise AssertionError("a model was bound")

    monkeypatch.setattr(binding, "wrap_lm", loaded)
    with pytest.raises(SystemExit) as stop:
        main(words)
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 2
    assert line in error
    assert error.startswith("kedit: error: ")
    assert error.count("\n") <= 1


def test_a_folder_that_cannot_be_written_is_told_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    for option in ("--save", "--export-peft", "--export-hf"):
        with pytest.raises(SystemExit):
            main(["edit", *FACT, option, str(tmp_path / "file" / "x")])
        assert f"{option[2:]}: {tmp_path / 'file'} is a file" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["edit", *FACT, "--save", str(tmp_path / "new" / "deep")])
    assert "there is no folder no/such/model" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]  # nothing was made to find out


@pytest.mark.parametrize(
    "text", ["null", "None", "1912", "true", "[a]", "{}", "1e5", "a: b", "- x", "'q'", "$HOME", "~"]
)
def test_texts_stay_as_they_are_typed(text: str) -> None:
    args = _arguments(["m", text, "--subject", text, "--target", text, "--ask", text, "--ask", "b"])
    assert (args.prompt, args.subject, args.target, args.ask) == (text, text, text, [text, "b"])


def test_edit_and_ask(tiny_folder: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny_folder("llama", n_layers=3, d_model=16, d_ff=40)
    quick = ["--set", "layer=1", "--set", "v_num_grad_steps=12", "--set", "v_lr=2", "--set", "contexts.lengths=[[3,1]]"]
    words = [folder, "The capital of France is", "--subject", "France", "--target", "Rome", *quick]
    words += ["--set", "mom2_adjustment=false", "--ask", "[bold]Rome[/bold] is", "--device", PLACE]
    main(["edit", *words, "--save", str(tmp_path / "kept")])
    out = capsys.readouterr().out
    assert out.startswith("subject found in the prompt: The capital of {} is\nThe capital of France is: ")
    assert "[bold]Rome" in out
    assert f"written: {tmp_path / 'kept'} (the delta; it tells which fact was edited)" in out
    assert out.endswith(f"kedit ask {folder} --delta {tmp_path / 'kept'} 'The capital of France is'\n")
    prompts = ["The capital of France is", "Rome is in "]
    main(["ask", folder, *prompts, "--tokens", "4", "--device", PLACE])
    plain = capsys.readouterr().out
    main(["ask", folder, *prompts, "--tokens", "4", "--device", PLACE, "--delta", str(tmp_path / "kept")])
    edited = capsys.readouterr().out
    assert edited != plain
    assert all(prompt.strip() in text for prompt in prompts for text in (plain, edited))


def test_a_single_edit_says_less_than_a_run() -> None:
    logger = logging.getLogger("kedit.data")
    before = logger.level
    with brief_log():
        assert not logging.getLogger("kedit.data.chosen_records").isEnabledFor(logging.INFO)
        assert logging.getLogger("kedit.data.chosen_records").isEnabledFor(logging.WARNING)
    assert logger.level == before
