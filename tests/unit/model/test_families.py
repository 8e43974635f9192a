"""The table of decoder types against the types themselves; `python -m tests.support.families` tries all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from kedit.cli import main
from kedit.model import known_models
from kedit.model.known_models import Known
from kedit.model.pretrained import quiet_transformers
from tests.support import families
from tests.support.families import TYPES, compared, try_type
from tests.support.family_proof import Wrong, prove
from tests.support.tiny_models import tiny_lm, tiny_tokenizer

# One of each kind of structure that has gone wrong, or that is refused for a reason of its own.
SOME = [
    "bloom",  # the MLP and the attention add the residual; rows and heads share an axis
    "mpt",  # the same; ALiBi by heads alone
    "falcon",  # adds to its MLP's output in place
    "nanochat",  # the final norm runs before the layers too
    "modernbert-decoder",  # a dense layer and a norm before the head
    "gemma3",  # a vision tower with a list of layers of its own; sliding windows
    "gpt_neo",
    "gptj",
    "opt",
    "granite",
    "olmo2",
    "starcoder2",
    "gpt_neox_japanese",
    "gemma4_unified_text",  # layers share keys and values
    "hrm_text",  # layers run several times
    "cpmant",  # tokens of its own before the text
    "mixtral",
    "deepseek_v3",
    "mamba",
    "lfm2",
    "qwen3_5_text",
    "bert",
    "bart",
    "musicgen",
]


@pytest.mark.parametrize("kind", SOME)
def test_the_table_is_true(kind: str) -> None:
    assert compared({kind: try_type(kind)}, known_models.table()) == []


def test_the_table_names_every_type_and_none_is_wrong() -> None:
    table = known_models.table()
    assert {known.state for known in table.values()} == {"right", "refused", "not tried"}
    assert all(known.reason for known in table.values() if known.state != "right")
    assert all(not known.reason for known in table.values() if known.state == "right")
    if known_models.versions()["transformers"] == transformers.__version__:
        assert set(table) == set(TYPES)


@pytest.mark.parametrize("dtype", ["alibi", "rotary"])
def test_falcon_either_way(dtype: str) -> None:
    prove(tiny_lm("falcon", "bpe", alibi=dtype == "alibi", bias=True))


def test_a_wrong_edit_is_seen() -> None:
    """The proof is one: on a model that changes after it was bound, it fails."""
    lm = tiny_lm("llama", "bpe")
    layer: Any = lm.arch.layer(lm.model, 3)
    own = layer.forward

    def looks_back(hidden_states: torch.Tensor, **kwargs: Any) -> Any:
        before = torch.cat([torch.zeros_like(hidden_states[:, :1]), hidden_states[:, :-1]], 1)
        return own(hidden_states + before, **kwargs)

    layer.forward = looks_back
    with pytest.raises(Wrong, match=r"the objective is .* away"):
        prove(lm)


def test_what_is_not_as_in_the_table_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {"a": Known("right"), "b": Known("refused", "why")}
    assert compared({"a": Known("right"), "b": Known("refused", "another reason")}, table) == []
    lines = compared({"a": Known("wrong", "x"), "b": Known("right"), "c": Known("refused", "y")}, table)
    assert lines == [
        "a is wrong: x",
        "b is right (); the table says refused",
        "c is refused (y); the table says None",
    ]


def test_a_wrong_type_is_never_written(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    written: list[object] = []
    monkeypatch.setattr(known_models, "write", lambda *args: written.append(args))
    monkeypatch.setattr(families, "try_type", lambda kind: Known("wrong", "an edit"))
    assert families.main(["llama", "--write"]) == 1
    assert not written
    monkeypatch.setattr(families, "try_type", lambda kind: Known("right"))
    assert families.main(["--write"]) == 0
    assert len(written) == 1
    assert "llama: right" in capsys.readouterr().out


def test_ls_models_prints_the_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    main(["ls", "models"])
    out = capsys.readouterr().out
    table = known_models.table()
    assert [kind for kind in table if kind not in out] == []
    for state in ("right", "refused", "not tried"):
        assert f"{state}: {sum(known.state == state for known in table.values())}" in out
    assert transformers.__version__ in out or known_models.versions()["transformers"] in out
    main(["ls", "--help"])
    assert "kedit ls [methods | models | protocols]" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["ls", "model"])
    assert "or the word methods, models or protocols, got model" in capsys.readouterr().err


@pytest.mark.parametrize(("kind", "why"), [("mixtral", "a mixture of experts?"), ("bert", "not decoder-only")])
def test_a_refused_model_is_told_in_a_line(
    kind: str, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / kind
    with quiet_transformers():
        families.tiny_of(kind).save_pretrained(folder)
        tiny_tokenizer("bpe").save_pretrained(folder)
    with pytest.raises(SystemExit) as stop:
        main(["stats", "--lm.name", str(folder), "--layers", "[1]"])
    assert stop.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert said[0].startswith("kedit: error: ")
    assert why in said[0]


def test_the_table_is_kept_as_it_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    kept, versions = known_models.table(), known_models.versions()
    monkeypatch.setattr(known_models, "FILE", tmp_path / "known_models.json")
    known_models.write(versions, kept)
    assert known_models.table() == kept
    assert known_models.versions() == versions
