"""What every test gets: a cache of its own, one thread, the environment as it was, and a device if it needs one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.device import NAME
from tests.support.tiny_models import save_tiny

# One thread for all: fixtures of a module, tests, and the commands that they start round alike on any machine.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what needs a GPU, where there is none."""
    if NAME != "cpu" or torch.cuda.is_available():
        return
    left_out = [item for item in items if item.get_closest_marker("gpu")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


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


@pytest.fixture
def whole_and_broken(tmp_path: Path, rows_of: Callable[[Path], Rows]) -> Callable[[list[str], str], tuple[Path, Path]]:
    """A function that runs the command `words` undisturbed, and again with an error after two batches, then resumed.

    It returns the two folders, in which the rows are the same. Before it was resumed, the broken run had no `report`.
    """
    from kedit.callbacks import EditProgress  # here, so that tests without runs do not wait for Lightning
    from kedit.cli import main

    def run(words: list[str], report: str) -> tuple[Path, Path]:
        whole, broken = tmp_path / "runs" / "whole", tmp_path / "runs" / "broken"
        main([*words, "--run.name", whole.name])
        count = EditProgress.on_edit_end

        def breaks(self: EditProgress, trainer: Any, module: Any, batch: Any) -> None:
            count(self, trainer, module, batch)
            if batch.index == 1:
                raise ZeroDivisionError

        resume = [*words, "--run.name", broken.name, "--run.resume", "true"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(EditProgress, "on_edit_end", breaks)
            with pytest.raises(ZeroDivisionError):
                main(resume)
        assert not (broken / report).exists()
        main(resume)
        assert rows_of(broken) == rows_of(whole)
        return whole, broken

    return run
