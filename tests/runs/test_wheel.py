"""kedit without its source tree: the built wheel in a clean environment, run in an empty folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from kedit.runtime.shipped import shipped_configs, shipped_sweeps
from kedit.sweeps.spec import option_text
from tests.support.device import ACCELERATOR
from tests.support.paths import ROOT

pytestmark = pytest.mark.slow

Run = Callable[..., subprocess.CompletedProcess[str]]
SMALL = {
    "data.init_args.known": False,
    "data.init_args.limit": 1,
    "data.init_args.max_probes": 1,
    "model.init_args.stats.tokens": 400,
    "model.init_args.contexts.lengths": [[3, 1]],
    "metrics.scoring.generate": [],
    "trainer.accelerator": ACCELERATOR,
}
"""Options of a run that takes seconds on a tiny model."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `.ci/wheel`: the wheel, and an environment that it is installed in."""
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run([ROOT / ".ci" / "wheel", out], check=True, timeout=300, env=os.environ | {"PYTHON": sys.executable})
    return out


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """A folder with nothing in it."""
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


@pytest.fixture
def kedit(built: Path, empty: Path, tmp_path: Path) -> Run:
    """The installed command, in the empty folder."""
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    env |= {"KEDIT_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "COLUMNS": "200", "OMP_NUM_THREADS": "1"}

    def run(*words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        command = [str(built / "venv" / "bin" / "python"), "-m", "kedit", *words]
        done = subprocess.run(command, cwd=empty, env=env, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == status, done.stderr
        return done

    return run


def small(model: str) -> list[str]:
    return [f"--lm.name={model}", *(f"--{name}={option_text(value)}" for name, value in SMALL.items())]


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as file:
        return set(file.namelist())


def test_what_is_in_it(built: Path) -> None:
    """All of the package, the user's files, the licence; nothing of the tests."""
    (wheel,) = built.glob("*.whl")
    names = names_in(wheel)
    python = {str(path.relative_to(ROOT)) for path in (ROOT / "kedit").rglob("*.py") if "callbacks" not in path.parts}
    callbacks = {f"kedit/callbacks/{path.name}" for path in (ROOT / "callbacks").glob("*.py")}
    data = {f"kedit/configs/{name}.yaml" for name in shipped_configs()}
    data |= {f"kedit/slurm/sweeps/{name}.yaml" for name in shipped_sweeps()}
    data |= {"kedit/slurm/cluster.yaml", "kedit/slurm/run.sbatch", "kedit/sweeps/slurm/templates/array.sbatch"}
    data |= {"kedit/data/readers/facts.jsonl", "kedit/model/known_models.json", "kedit/py.typed"}
    data |= {f"kedit/report/templates/{name}" for name in ("page.html.j2", "script.js", "style.css")}
    assert python | callbacks | data <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"kedit"}


def test_the_source_distribution_makes_the_same_wheel(built: Path, tmp_path: Path) -> None:
    source, out = built / "source", tmp_path / "out"
    script = f"import setuptools.build_meta as build; print(build.build_sdist({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", script], cwd=source, check=True, capture_output=True, timeout=300)
    (packed,) = tmp_path.glob("*.tar.gz")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
        "-w",
        str(out),
    ]
    subprocess.run([*pip, str(packed)], check=True, timeout=300)
    (first,), (second,) = built.glob("*.whl"), out.glob("*.whl")
    assert names_in(first) == names_in(second)


def test_it_says_what_it_has(kedit: Run) -> None:
    listed = kedit("config", "list").stdout
    assert {line.split()[0] for line in listed.splitlines()[1:-1]} == {n for n in shipped_configs() if "/" not in n}
    assert "│ rep_smollm2 " in kedit("ls").stdout
    assert kedit("config", "show", "reference/rome").stdout == (ROOT / "configs/reference/rome.yaml").read_text()
    assert "--protocol PROTOCOL" in kedit("ls", "protocols").stdout
    found = json.loads(kedit("env", "--json").stdout)
    assert found["kedit"]["commit"] is None
    assert found["kedit"]["installed in"].endswith("site-packages")
    assert (
        "#SBATCH --array=0-7"
        in kedit("slurm", "submit", "smollm2", "--dry-run", "--config", "slurm/cluster.yaml").stdout
    )


def test_a_run_by_name(kedit: Run, empty: Path, tiny_folder: Callable[..., str]) -> None:
    model = tiny_folder("llama", n_layers=8)
    done = kedit("fit", "--config", "rome_smollm2", "--trainer.fast_dev_run", "true", *small(model))
    assert "config: rome_smollm2, as it comes with kedit" in done.stderr
    (run,) = (empty / "runs").iterdir()
    assert json.loads((run / "summary.json").read_text())["results"]
    done = kedit("fit", "--config", "configs/rome_smolm2.yaml", status=2)
    assert "config: there is no file configs/rome_smolm2.yaml; did you mean rome_smollm2" in done.stderr


def test_a_sweep_by_names(kedit: Run, empty: Path, tiny_folder: Callable[..., str]) -> None:
    """Its tasks are processes of their own, which find the configurations too."""
    options: dict[str, Any] = SMALL | {
        "lm.name": tiny_folder("llama", n_layers=8),
        "model.init_args.v_num_grad_steps": 2,
    }
    content = {"configs": ["rome_smollm2", "configs/rrome_smollm2.yaml"], "options": options}
    (empty / "mine.yaml").write_text(yaml.safe_dump(content))
    assert "all done" in kedit("sweep", "mine").stderr
    assert "rrome_smollm2" in kedit("collect", "mine").stdout
    assert "Difference to rome_smollm2" in kedit("compare", "mine", "--against", "rome_smollm2").stdout
    done = kedit("sweep", "pac_zsre", status=2)
    assert "no such file; data sets are yours to fetch" in done.stderr
