"""What every test gets: a cache of its own, one thread, the environment as it was."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import save_tiny


@pytest.fixture(autouse=True)
def _apart(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Tests leave the user's cache, the environment (Lightning's seed) and the number of threads alone."""
    before, threads = dict(os.environ), torch.get_num_threads()
    if request.node.get_closest_marker("model") is None:
        monkeypatch.setenv("KEDIT_CACHE", str(tmp_path_factory.getbasetemp() / "kedit-cache"))
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    monkeypatch.undo()
    for name in set(os.environ) - set(before):
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """`tiny_folder("llama", n_layers=6)`: path of a Hugging Face folder, written once per session."""
    made: dict[str, str] = {}

    def folder(model_type: str = "llama", **kwargs: Any) -> str:
        key = json.dumps([model_type, kwargs], sort_keys=True, default=str)
        if key not in made:
            made[key] = str(save_tiny(tmp_path_factory.mktemp("models") / model_type, model_type, **kwargs))
        return made[key]

    return folder


Rows = list[dict[str, Any]]


@pytest.fixture
def rows_of() -> Callable[[Path], Rows]:
    """Parsed lines of a run's `results.jsonl`."""
    return lambda folder: [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
