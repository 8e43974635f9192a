"""The names of `import kedit`."""

from __future__ import annotations

import subprocess
import sys

import pytest

import kedit


@pytest.mark.parametrize("name", kedit.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(kedit, name) is not None


def test_a_model_is_loaded_without_lightning() -> None:
    program = "import sys, kedit; kedit.load_lm, kedit.load_delta; sys.exit('lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
