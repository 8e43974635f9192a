"""`kedit delta`: what it prints, what it writes, and what it says of what cannot be."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel

import kedit
from kedit.cli import main
from kedit.delta.codebook import Codebook
from kedit.model.pretrained import quiet_transformers
from kedit.request import EditRequest
from tests.support.exported import card_of, loaded, logits

TINY = {"n_layers": 3, "d_model": 16, "d_ff": 40}
FRANCE = EditRequest("france", "The capital of {} is", "France", "Lyon", "Paris")
NEEDLE = EditRequest("needle", "{} is located in", "The Space Needle", "Rome")
NICE = replace(FRANCE, case_id="nice", target_new="Nice")


@pytest.fixture(scope="module")
def lm(tiny_folder: Callable[..., str]) -> kedit.LM:
    return kedit.load_lm(kedit.LMConfig(tiny_folder("llama", **TINY)))


@pytest.fixture
def folders(lm: kedit.LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with a delta for each request, and one of a codebook."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    path = lm.arch.path("mlp_out", 1)
    for i, request in enumerate((FRANCE, NEEDLE, NICE)):
        gen = torch.Generator().manual_seed(i)
        factors = kedit.Factors(torch.randn(16, 1, generator=gen), torch.randn(1, 40, generator=gen))
        kedit.save_delta(f"run/deltas/{request.case_id}", kedit.Delta({path: factors}), card_of(lm, request, layer=1))
    book = Codebook(torch.zeros(1, 40), torch.ones(1, 16), torch.tensor([1e3]), torch.tensor([0]))
    kedit.save_delta("book", kedit.Delta({path: book}), card_of(lm, FRANCE))
    return tmp_path


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    main(["delta", *words])
    return capsys.readouterr().out


def test_show(folders: Path, lm: kedit.LM, capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, "show", "run/deltas/france")
    for said in (lm.fingerprint, "ROME", "checksums right", "layer 1", "The capital of {} is", "Lyon", "Paris"):
        assert said in out
    for said in ("model.layers.1.mlp.down_proj", "Factors", "rank 1", "16 x 40", "--to peft (exact)", "tells which"):
        assert said in out
    out = printed(capsys, "show", "book")
    assert "1 entry" in out
    assert "kedit.load_edited loads it" in out


def test_show_cuts_long_tables(folders: Path, lm: kedit.LM, capsys: pytest.CaptureFixture[str]) -> None:
    delta, _ = kedit.load_delta("run/deltas/france", lm)
    many = [replace(FRANCE, case_id=f"case-{i}", subject=f"Land {i}") for i in range(30)]
    kedit.save_delta("many", delta, card_of(lm, *many))
    out = printed(capsys, "show", "many")
    assert "requests: 30" in out
    assert "10 more requests (--all)" in out
    assert "case-29" not in out
    assert "case-29" in printed(capsys, "show", "--all", "many")


def test_diff(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, "diff", "run/deltas/france", "run/deltas/france")
    assert "equal, bit for bit" in out
    assert "the same requests" in out
    out = printed(capsys, "diff", "run/deltas/france", "run/deltas/nice")
    assert "differs" in out
    assert "Lyon" in out
    assert "Nice" in out


def test_merge(folders: Path, lm: kedit.LM, capsys: pytest.CaptureFixture[str]) -> None:
    printed(capsys, "merge", "run/deltas/france", "run/deltas/needle", "--out", "both")
    total, card = kedit.load_delta("both", lm)
    parts = [kedit.load_delta(f"run/deltas/{name}", lm)[0] for name in ("france", "needle")]
    with kedit.edited(lm.model, *parts):
        wanted = logits(lm.model, lm)
    with kedit.edited(lm.model, total):
        torch.testing.assert_close(logits(lm.model, lm), wanted, atol=1e-4, rtol=1e-4)
    assert [entry["case_id"] for entry in card["requests"]] == ["france", "needle"]
    assert "joined (kedit delta merge) of france, needle" in printed(capsys, "show", "both")


def test_compose(folders: Path, lm: kedit.LM, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"run/deltas/{name}" for name in ("france", "needle", "nice")]
    out = printed(capsys, "compose", *words)
    assert "edited twice: the later one holds" in out
    assert "2 of 3 deltas hold; nothing was written" in out
    out = printed(capsys, "compose", *words, "--out", "all", "--measure")
    assert "all together" in out
    assert "how much one edit moves" in out
    total, card = kedit.load_delta("all", lm)
    parts = [kedit.load_delta(word, lm)[0] for word in words[1:]]
    wanted = kedit.Delta.concat(parts).numbers()
    assert all(torch.equal(one, other) for (_, one), (_, other) in zip(total.numbers(), wanted, strict=True))
    assert [part["name"] for part in card["parts"]] == ["needle", "nice"]


def test_export(
    folders: Path, lm: kedit.LM, tiny_folder: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    delta, _ = kedit.load_delta("run/deltas/france", lm)
    with kedit.edited(lm.model, delta):
        wanted = logits(lm.model, lm)
    out = printed(capsys, "export", "run/deltas/france", "--to", "peft", "--out", "adapter")
    assert 'PeftModel.from_pretrained(base, "adapter")' in out
    with quiet_transformers():
        model = PeftModel.from_pretrained(loaded(tiny_folder("llama", **TINY)), "adapter").eval()
    torch.testing.assert_close(logits(model, lm), wanted, atol=1e-4, rtol=1e-4)
    out = printed(capsys, "export", "run/deltas/france", "--to", "hf", "--out", "model", "--dtype", "bfloat16")
    assert "rounding to bfloat16" in out
    assert "as written" in out
    assert json.loads(Path("model/edit_card.json").read_text())["form"] == "merged"
    out = printed(capsys, "export", "book", "--to", "hf", "--out", "beside", "--model", lm.name)
    assert 'kedit.load_edited("beside")' in out


WRONG = {
    "shwo x": "kedit delta has no command 'shwo'; there are show, diff, export, merge, compose",
    "show": "folder: this option is needed and has no default",
    "show nowhere": "there is no folder nowhere",
    "show run": "run is no delta but the folder of a run; it has 3 deltas: run/deltas/france for one",
    "show run/deltas": "run/deltas is no delta but a folder of 3 deltas: run/deltas/france for one",
    "show run/deltas/france/card.json": "is no delta but a file; give the folder around it",
    "show other": "other is no delta but a model folder: kedit.load_edited loads it",
    "show broken": "broken: a file of this delta is damaged (the checksum of delta.safetensors is wrong)",
    "show nonsense": "entry 0 of 'requests' in the delta's card is no request",
    "diff book": "other: this option is needed and has no default",
    "merge book --out new": "one delta alone, book: there is nothing to join it with; give two or more",
    "merge book book --out new": "book is given twice",
    "merge book run/deltas/france": "out: this option is needed and has no default",
    "merge book foreign --out new": "foreign is of another model than book: somewhere (0000), not ",
    "merge book run/deltas/france --out run": "out: run is a folder that is not empty; nothing was written",
    "export book --out new": "to: this option is needed and has no default",
    "export book --to onnx --out new": "to: expects one of peft, hf, not 'onnx'",
    "export book --to peft --out new": "'codebook', is no weight, which a LoRA cannot hold; export_hf",
    "export book --to peft --out new --dtype bfloat16": "dtype: a PEFT adapter is written in float32, which is exact",
    "export book --to hf --out new --dtype int8": "dtype: expects one of float32, bfloat16, float16 or null",
    "export book --to hf --out book/card.json/new": "book/card.json is a file: book/card.json/new cannot be in it",
    "export book --to hf --out new --model other": "this delta is of another model, ",
    "export book --to hf --out new --model /gone": "model: there is no folder /gone",
    "export foreign --to hf --out new": "foreign: its model is not to be had here: ",
    "export book --to hf --out new --device tpu": "device: 'tpu' cannot be used",
}


@pytest.mark.parametrize("words", list(WRONG))
def test_bad_input(
    words: str, folders: Path, tiny_folder: Callable[..., str], lm: kedit.LM, capsys: pytest.CaptureFixture[str]
) -> None:
    """One or two lines, status 2, and nothing is written."""
    Path("other").symlink_to(tiny_folder("llama", **TINY, seed=5))
    delta, card = kedit.load_delta("book", lm)
    kedit.save_delta("foreign", delta, card | {"model": "somewhere", "model_fingerprint": "0000"})
    kedit.save_delta("nonsense", delta, card | {"requests": ["what?"]})
    kedit.save_delta("broken", delta, card)
    file = Path("broken/delta.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(SystemExit) as stop:
        main(["delta", *words.split()])
    said = capsys.readouterr().err.strip().split("kedit: error: ")[-1]
    assert stop.value.code == 2
    assert WRONG[words] in said.replace("\n", " ")
    assert len(said.splitlines()) <= 2
    assert not Path("new").exists()


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--help"]):
        assert "usage: kedit delta show DIR" in printed(capsys, *words)
    with pytest.raises(SystemExit) as stop:
        main(["delta", "export", "--help"])
    assert stop.value.code == 0
    assert "--dtype" in capsys.readouterr().out
