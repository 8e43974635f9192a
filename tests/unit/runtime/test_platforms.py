"""Windows, as far as kedit can see it: what its Python lacks is taken away, and one line says so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

WINDOWS = """\
import signal, sys
for name in ("SIGUSR1", "SIGUSR2", "SIGHUP"):
    delattr(signal, name)
class Gone:
    def find_spec(self, name, path=None, target=None):
        if name in ("fcntl", "resource", "pwd", "termios"):
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, Gone())
"""


@pytest.fixture
def windows(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "sitecustomize.py").write_text(WINDOWS)
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}


@pytest.mark.parametrize("words", [["--version"], ["ls"], ["fit", "--help"], []])
def test_the_command_says_so_in_one_line(windows: dict[str, str], words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "kedit", *words], env=windows, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("kedit: error: kedit runs on Linux and macOS; this system lacks SIGUSR1, SIGHUP, ")
    assert done.stderr.count("\n") == 1


def test_the_library_says_so_on_first_use(windows: dict[str, str]) -> None:
    code = "import kedit\nprint(kedit.__version__)\ntry: kedit.load_lm\nexcept ImportError as error: print(error)"
    done = subprocess.run([sys.executable, "-c", code], env=windows, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1].startswith("kedit runs on Linux and macOS")


def test_here_it_runs() -> None:
    done = subprocess.run([sys.executable, "-m", "kedit", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("kedit ")
