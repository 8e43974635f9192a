"""Files that come with kedit, found by name; the user's own go first."""

from __future__ import annotations

from pathlib import Path

import pytest

from kedit.errors import KeditError
from kedit.runtime.shipped import (
    config_path,
    is_shipped,
    shipped_configs,
    shipped_protocols,
    shipped_sweeps,
    slurm_path,
    sweep_path,
)
from tests.support.paths import ROOT


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with nothing in it, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_everything_is_there() -> None:
    """What the package holds are the files at the top of the source tree."""
    configs = {
        path.relative_to(ROOT / "configs").with_suffix("").as_posix() for path in (ROOT / "configs").rglob("*.yaml")
    }
    protocols = {name for name in configs if name.startswith("protocols/")}
    assert {f"protocols/{name}" for name in shipped_protocols()} == protocols
    assert set(shipped_configs()) == configs - protocols
    assert {"rome_smollm2", "reference/rome"} < configs
    assert set(shipped_sweeps()) == {path.stem for path in (ROOT / "slurm" / "sweeps").glob("*.yaml")}
    for name, path in shipped_configs().items():
        assert path.read_bytes() == (ROOT / "configs" / f"{name}.yaml").read_bytes()


@pytest.mark.parametrize(
    "name", ["rome_smollm2", "rome_smollm2.yaml", "configs/rome_smollm2.yaml", "./configs/rome_smollm2"]
)
def test_by_name(name: str, empty: Path) -> None:
    path = config_path(name)
    assert is_shipped(path)
    assert path == shipped_configs()["rome_smollm2"]


def test_other_kinds(empty: Path) -> None:
    assert config_path("reference/rome") == shipped_configs()["reference/rome"]
    assert sweep_path("smollm2") == sweep_path("slurm/sweeps/smollm2.yaml") == shipped_sweeps()["smollm2"]
    assert slurm_path("slurm/cluster.yaml") == slurm_path("cluster")
    assert slurm_path("cluster").name == "cluster.yaml"
    assert slurm_path("slurm/run.sbatch").read_text().startswith("#!/bin/bash")


def test_a_local_file_goes_first(empty: Path) -> None:
    (empty / "configs").mkdir()
    (empty / "configs" / "rome_smollm2.yaml").write_text("model: MEMIT\n")
    for name in ("rome_smollm2", "rome_smollm2.yaml", "configs/rome_smollm2.yaml"):
        assert config_path(name) == Path("configs/rome_smollm2.yaml")
    (empty / "rome_smollm2.yaml").write_text("model: EMMET\n")
    assert config_path("rome_smollm2") == Path("rome_smollm2.yaml")
    assert config_path("configs/rome_smollm2.yaml") == Path("configs/rome_smollm2.yaml")
    (empty / "mine.v2.yaml").write_text("model: ROME\n")
    assert config_path("mine.v2") == Path("mine.v2.yaml")
    assert not is_shipped(config_path("mine.v2"))


def test_a_folder_of_that_name_is_in_nobody_s_way(empty: Path) -> None:
    (empty / "rome_smollm2").mkdir()
    assert is_shipped(config_path("rome_smollm2"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rom_smollm2", "there is no file rom_smollm2; did you mean rome_smollm2 or rrome_smollm2 or "),
        ("elsewhere/rome_smollm2.yaml", "there is no file elsewhere/rome_smollm2.yaml; kedit config list names "),
        ("../rome_smollm2.yaml", "there is no file ../rome_smollm2.yaml; "),
        ("reference/../rome_smollm2", "there is no file reference/../rome_smollm2; "),
        ("", "there is no file ''; "),
        ("x" * 5000, "there is no file 'xxx"),
        ("a\0b", "there is no file 'a\\x00b'; "),
        ("~nobody-here/x", "there is no file ~nobody-here/x; "),
        ("sub", "sub is a folder; name a file"),
    ],
)
def test_not_there(name: str, message: str, empty: Path) -> None:
    (empty / "sub").mkdir()
    with pytest.raises(KeditError) as caught:
        config_path(name)
    assert str(caught.value).startswith(message)


def test_what_is_near_is_looked_for_in_its_folder(empty: Path) -> None:
    (empty / "mine").mkdir()
    (empty / "mine" / "first.yaml").write_text("model: ROME\n")
    with pytest.raises(KeditError, match=r"did you mean mine/first\.yaml\?"):
        config_path("mine/frist.yaml")
