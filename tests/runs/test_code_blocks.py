"""Every code block of the README and of docs/ runs, page by page, in the order in which a reader meets them.

`tests/support/reader.py` says what stands in for what: a tiny random model for SmolLM2, fixtures for data sets, one
step for a run. That languages are named and commands are known is tested in tests/unit/docs/test_code_blocks.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import ArgumentError

import kedit
from kedit.errors import KeditError
from tests.support.chat_cases import save_chat
from tests.support.code_blocks import PAGES, Block, blocks_of
from tests.support.paths import ROOT
from tests.support.reader import Reader, reader_of
from tests.support.stand_ins import deepest_layer

pytestmark = pytest.mark.slow

RUN = ("bash", "console", "python", "yaml", "json")
WITH_CODE = [page for page in PAGES if any(block.language in RUN for block in blocks_of(page))]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], str]:
    """`model(10)`: a tiny Llama of 10 layers that chats, as SmolLM2-135M-Instruct does."""
    made: dict[int, str] = {}

    def folder(n_layers: int) -> str:
        if n_layers not in made:
            path = tmp_path_factory.mktemp("stand-in") / "model"
            made[n_layers] = save_chat(path, "chatml", "llama", n_layers=n_layers, d_model=16, d_ff=40, context=1024)
        return made[n_layers]

    return folder


@pytest.fixture(scope="module")
def done() -> set[tuple[str, ...]]:
    """Commands that a page before has run: the same one is not run twice."""
    return set()


def prepare(page: Path, reader: Reader) -> None:
    """What other pages have made before this one begins."""
    if page.name == "keep.md":  # the tutorial's deltas
        lm = kedit.load_lm(kedit.LMConfig("smollm2-135m"))
        for case in ("eiffel", "beethoven"):
            prompt, few = "{} is located in the city of", {"v_num_grad_steps": 3}
            edit = kedit.edit(lm, prompt=prompt, subject=f"The {case}", target="Rome", options=few)
            edit.save(reader.folder / "runs" / "tutorial" / "deltas" / case)
    if page.name == "sweeps.md":  # what `kedit compare demo.yaml` is shown of
        for method in ("rome", "rrome"):
            shutil.copy(ROOT / "configs" / f"{method}_smollm2.yaml", reader.folder / f"{method}.yaml")
        layers = {f"layer{n}": {"model.layer": n} for n in (1, 2)}
        demo = {"configs": ["rome.yaml", "rrome.yaml"], "grid": {"edit.seed": [0, 1, 2], "layer": layers}}
        (reader.folder / "demo.yaml").write_text(yaml.safe_dump(demo))


def check(page: Path, reader: Reader) -> None:
    """What a page promises of the names and files that it leaves behind."""
    names = reader.names
    if page.name == "keep.md":
        assert names["edited"].dtype == torch.bfloat16
        ids = torch.tensor([names["lm"].encode("The capital of France is")])
        with torch.no_grad(), kedit.edited(names["lm"].model, names["delta"]):
            wanted = names["lm"].model(input_ids=ids).logits
            torch.testing.assert_close(names["model"](input_ids=ids).logits, wanted, atol=1e-4, rtol=1e-4)
    if page.name == "tutorial.md":
        whole = kedit.load_lm(kedit.LMConfig("smollm2-135m"))
        weights = names["lm"].model.state_dict()
        assert all(torch.equal(tensor, weights[name]) for name, tensor in whole.model.state_dict().items())
        assert kedit.load_lm(kedit.LMConfig("eiffel-in-rome")).fingerprint != whole.fingerprint
    if page.name == "edit.md":
        assert names["edit"].errors == {}


@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_the_page_does_what_it_says(
    page: Path,
    model: Callable[[int], str],
    done: set[tuple[str, ...]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    blocks = blocks_of(page)
    reader = reader_of(tmp_path / "tree", model(max(10, deepest_layer(blocks) + 2)), done, monkeypatch)
    prepare(page, reader)
    for block in blocks:
        try:
            reader.read(block)
        except BaseException as error:
            error.add_note(f"in the block at {block.place}")
            raise
    check(page, reader)


@pytest.mark.parametrize(
    ("language", "text", "error"),
    [
        ("python", "kedit.edit", NameError),
        ("yaml", "data: {class_path: Records, init_args: {path: facts.jsonl, limitq: 1}}", ArgumentError),
        ("yaml", "nothing: {of: this}", ArgumentError),
        ("json", '{"prompt": "The capital of {} is", "subject": "France"}', KeditError),
        ("bash", "kedit ask smollm2-135m --deltas lyon Paris", AssertionError),
        ("bash", "kedit show nowhere", AssertionError),
        ("bash", "python benchmarks/paper_tables/records.py joined --dates x", AssertionError),
        ("console", "$ kedit config list rome llama\nnothing", AssertionError),
    ],
)
def test_what_does_not_run_fails(
    language: str,
    text: str,
    error: type[Exception],
    model: Callable[[int], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader = reader_of(tmp_path / "tree", model(10), set(), monkeypatch)
    with pytest.raises(error):
        reader.read(Block("page.md", 1, language, None, text + "\n"))
