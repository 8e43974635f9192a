"""What `kedit env` says, and what it does not say."""

from __future__ import annotations

import getpass
import json
import platform
from pathlib import Path

import pytest

from kedit.cli import main
from kedit.runtime.environment import PACKAGES, anonymous, environment


def test_all_of_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf-very-secret")
    monkeypatch.setenv("SLURM_JOB_USER", "somebody")
    (tmp_path / "cache" / "models" / "small").mkdir(parents=True)
    (tmp_path / "cache" / "models" / "small" / "weights").write_bytes(b"0" * 2_000_000)
    main(["env", "--json"])
    text = capsys.readouterr().out
    found = json.loads(text)
    assert set(found["packages"]) == set(PACKAGES)
    assert all(found["packages"].values())
    assert found["kedit"]["version"]
    assert found["cpu"]["cores"] >= found["cpu"]["usable cores"] >= 1
    assert found["cache"]["size"] == "2 MB"
    assert found["cache"]["holds"] == {"models": "2 MB in 1 folder"}
    assert {"HF_TOKEN", "SLURM_JOB_USER", "KEDIT_CACHE"} <= set(found["variables"])
    for hidden in ("hf-very-secret", "somebody", platform.node()):
        assert hidden not in text
    main(["env"])
    shown = capsys.readouterr().out
    for name in found:
        assert f"\n{name} " in f"\n{shown}"
    assert "models: 2 MB in 1 folder" in shown


def test_a_cache_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path / "none"))
    assert environment()["cache"]["size"] == "0 MB"
    assert not (tmp_path / "none").exists()


def test_paths_do_not_say_whose_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "ada")
    monkeypatch.setenv("HOME", "/home/ada")
    assert anonymous(Path("/home/ada/.cache/kedit")) == "~/.cache/kedit"
    assert anonymous(Path("/scratch/ada/cache")) == "/scratch/$USER/cache"
    assert anonymous(Path("/opt/adapters")) == "/opt/adapters"
