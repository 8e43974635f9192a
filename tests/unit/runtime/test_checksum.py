"""A flipped bit in a delta, a card, a statistic, an anchor or a checkpoint is named and never applied."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kedit.covariance import store
from kedit.delta.apply import edited
from kedit.delta.biases import BiasChange
from kedit.delta.delta import Delta
from kedit.delta.factors import Factors
from kedit.delta.pathway import Pathway
from kedit.delta.pathways import Pathways
from kedit.delta.serialization import load_delta, save_delta
from kedit.delta.slices import Slices
from kedit.errors import KeditError
from kedit.runtime import checksum
from kedit.runtime.checkpoint_file import CHECKSUM, read_checkpoint, seal
from kedit.runtime.journal import Journal, read_journal
from tests.support.tiny_models import tiny_model


def rand(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def a_delta() -> Delta:
    """Of every kind: factors, slices, a bias, a pathway with a gate."""
    pathway = Pathway(rand(2, 6), rand(6, 2), read=rand(6), bias=rand(), threshold=rand())
    slices = Slices(torch.tensor([0, 3]), rand(2, 6), 0, (5, 6))
    return Delta(
        {"m": Factors(rand(5, 1), rand(1, 6))}, {"m": Pathways((pathway,))}, {"m": slices}, {"m": BiasChange(rand(5))}
    )


CARD = {"model_fingerprint": "abc", "requests": [{"p": 0.5, 7: "seven"}], "note": "Zürich"}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The folder of a delta."""
    return save_delta(tmp_path / "delta", a_delta(), CARD)


def flips(path: Path, times: int) -> list[bytes]:
    """The file's bytes with one bit flipped, at places all over it."""
    data, chance = path.read_bytes(), random.Random(0)
    found = []
    for i in range(times):
        place = len(data) * i // times + chance.randrange(max(1, len(data) // times))
        place = min(place, len(data) - 1)
        found.append(data[:place] + bytes([data[place] ^ 1 << chance.randrange(8)]) + data[place + 1 :])
    return found


@pytest.mark.parametrize("name", ["delta.safetensors", "card.json"])
def test_flips_in_a_delta(name: str, saved: Path) -> None:
    path = saved / name
    for data in flips(path, 400):
        path.write_bytes(data)
        with pytest.raises(KeditError, match=str(saved)) as caught:
            load_delta(saved)
        assert "\n" not in str(caught.value)


def test_a_card_may_be_laid_out_anew(saved: Path) -> None:
    """It is its content that counts."""
    card = json.loads((saved / "card.json").read_text())
    (saved / "card.json").write_text(json.dumps(dict(reversed(card.items()))))
    found, _ = load_delta(saved)
    assert found.paths == ["m"]
    card["requests"][0]["p"] = 0.75
    (saved / "card.json").write_text(json.dumps(card))
    with pytest.raises(KeditError, match=r"the checksum of card.json is wrong"):
        load_delta(saved)


def test_tensors_of_another_delta(saved: Path, tmp_path: Path) -> None:
    other = save_delta(tmp_path / "other", Delta({"m": Factors(rand(5, 1), rand(1, 6))}), CARD)
    (other / "delta.safetensors").replace(saved / "delta.safetensors")
    with pytest.raises(KeditError, match=r"the checksum of delta.safetensors is wrong"):
        load_delta(saved)


@pytest.mark.parametrize("known", [1, 2])
def test_a_delta_of_an_older_kedit_is_read_and_said_to_be_unchecked(
    known: int, saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    card = json.loads((saved / "card.json").read_text())
    del card["checksums"]
    (saved / "card.json").write_text(json.dumps(card | {"format": known}))
    load_delta(saved)
    assert "holds no checksums: its numbers are not checked" in caplog.text
    (saved / "card.json").write_text(json.dumps(card))
    with pytest.raises(KeditError, match="there are no checksums"):
        load_delta(saved)


@pytest.mark.parametrize(
    "text",
    ["[]", "3", '"text"', "null", "", "[" * 100_000, "9" * 5000, '{"format": true}', '{"format": [3]}', "\ud800"],
)
def test_cards_of_another_shape(text: str, saved: Path) -> None:
    (saved / "card.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(KeditError, match=r"damaged|delta format") as caught:
        load_delta(saved)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("sums", [3, [], {}, {"tensors": 3, "card": 4}, {"tensors": None, "card": []}])
def test_checksums_of_another_shape(sums: Any, saved: Path) -> None:
    card = json.loads((saved / "card.json").read_text())
    (saved / "card.json").write_text(json.dumps(card | {"checksums": sums}))
    with pytest.raises(KeditError, match="damaged"):
        load_delta(saved)


ALTERED: dict[str, Callable[[dict[str, Tensor]], dict[str, Any]]] = {
    "a pathway with NaN": lambda t: {"m/0/up": t["m/0/up"] * float("nan")},
    "a threshold of infinity": lambda t: {"m/0/threshold": torch.tensor(float("inf"))},
    "slices with NaN": lambda t: {"m/slices.values": t["m/slices.values"] / 0.0},
    "factors in half": lambda t: {"m/left": t["m/left"].half()},
    "a pathway in double": lambda t: {"m/0/down": t["m/0/down"].double()},
    "a bias of numbers": lambda t: {"m/bias": t["m/bias"].long()},
    "a bias of another rank": lambda t: {"m/bias": t["m/bias"].view(5, 1).contiguous()},
    "an index in half": lambda t: {"m/slices.index": t["m/slices.index"].half()},
    "an index below 0": lambda t: {"m/slices.index": torch.tensor([-1, 3])},
    "an index too large": lambda t: {"m/slices.index": torch.tensor([0, 5])},
    "an index that falls": lambda t: {"m/slices.index": torch.tensor([3, 0])},
    "an index twice": lambda t: {"m/slices.index": torch.tensor([3, 3])},
    "a layout of floats": lambda t: {"m/slices.layout": t["m/slices.layout"].float()},
    "a layout of two": lambda t: {"m/slices.layout": t["m/slices.layout"][:2].clone()},
    "no such axis": lambda t: {"m/slices.layout": torch.tensor([2, 5, 6])},
    "another width": lambda t: {"m/0/up": t["m/0/up"][:5].clone()},
    "a gate without its bias": lambda t: {"m/0/bias": None},
    "factors of another matrix": lambda t: {"m/left": rand(4, 1), "m/bias": None},
    "a name of 5,000 characters": lambda t: {f"m/0/{'9' * 5000}": t["m/bias"].clone()},
    "an unknown part": lambda t: {"m/0/more": t["m/bias"].clone()},
    "no number of a pathway": lambda t: {"m/x/up": t["m/0/up"].clone()},
}


@pytest.mark.parametrize("how", ALTERED)
def test_what_a_delta_holds_is_checked(how: str, saved: Path) -> None:
    """Also where the checksums are right: somebody wrote it so."""
    tensors = load_file(saved / "delta.safetensors")
    tensors |= ALTERED[how](tensors)
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, saved / "delta.safetensors")
    card = json.loads((saved / "card.json").read_text())
    card["checksums"] = {"tensors": checksum.of_file(saved / "delta.safetensors")}
    card["checksums"]["card"] = checksum.of_json(card)
    (saved / "card.json").write_text(json.dumps(card))
    with pytest.raises(KeditError, match="a file of this delta is damaged") as caught:
        load_delta(saved)
    assert "checksum" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("data", [b"", b"\x00" * 7, struct.pack("<Q", 2**62) + b"{}", struct.pack("<Q", 2**20) + b"{}"])
def test_headers_that_are_none(data: bytes, saved: Path, tmp_path: Path) -> None:
    (saved / "delta.safetensors").write_bytes(data)
    with pytest.raises(KeditError, match="damaged"):
        load_delta(saved)
    statistics = tmp_path / "x.safetensors"
    statistics.write_bytes(data)
    with pytest.raises(KeditError, match="truncated or damaged"):
        store.read(statistics)


def test_a_pathway_with_nan_is_not_put_into_a_model() -> None:
    model, path = tiny_model("llama"), "model.layers.1.mlp.down_proj"
    width = model.get_parameter(f"{path}.weight").shape[1]
    bad = Pathway(rand(2, width), torch.full((width, 2), float("nan")))
    with pytest.raises(KeditError, match="not finite"), edited(model, Delta({path: Pathways((bad,))})):
        raise AssertionError


def test_flips_in_statistics(tmp_path: Path) -> None:
    """As in anchors and in sampled text, which are kept the same way."""
    path = tmp_path / "layer.safetensors"
    store.write(path, {"mean": rand(4, 4)}, {"kind": "covariance", "key": {"module": "m"}, "count": 7})
    whole, (tensors, card) = path.read_bytes(), store.read(path)
    for data in flips(path, 400):
        path.write_bytes(data)
        with pytest.raises(KeditError, match=str(path)) as caught:
            store.read(path)
        assert "\n" not in str(caught.value)
    path.write_bytes(whole)
    assert torch.equal(store.read(path)[0]["mean"], tensors["mean"])
    assert card["count"] == 7


def test_statistics_of_an_older_kedit_are_used_and_said_to_be_unchecked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "layer.safetensors"
    card = {"format": store.UNCHECKED, "key": {"module": "m"}, "count": 7}
    save_file({"mean": rand(4, 4)}, path, {"kedit": json.dumps(card)})
    assert store.read(path)[1] == card
    assert "holds no checksum" in caplog.text
    save_file({"mean": rand(4, 4)}, path, {"kedit": json.dumps(card | {"format": store.FORMAT})})
    with pytest.raises(KeditError, match="its checksum is wrong"):
        store.read(path)


@pytest.mark.parametrize("card", ["[]", "3", "null", '{"format": "kedit statistics 2"}', "[" * 50_000])
def test_statistics_whose_card_is_none(card: str, tmp_path: Path) -> None:
    path = tmp_path / "layer.safetensors"
    save_file({"mean": rand(4, 4)}, path, {"kedit": card})
    with pytest.raises(KeditError, match=r"not a statistics file|damaged"):
        store.read(path)


def checkpoint() -> dict[str, Any]:
    """The parts of one."""
    own = {"edits_done": 2, "method": {"contexts": ["{}", "The man. {}"]}, "run": {"seed": 0}, "edits": []}
    loops = {"fit_loop": {"epoch_progress": {"current": {"completed": 2}}, "state": ()}}
    whole = {"epoch": 2, "global_step": 6, "pytorch-lightning_version": "2.6", "state_dict": {}, "loops": loops}
    return whole | {"callbacks": {"x": rand(3), "y": [None, 0.5, True]}, "kedit": own}


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A sealed checkpoint."""
    content = checkpoint()
    seal(content)
    torch.save(content, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def test_flips_in_a_checkpoint(kept: Path) -> None:
    """Most are named; the others are in bytes that mean nothing, and what is read is the same."""
    want = checksum.of_content(read_checkpoint(kept))
    said = []
    for data in flips(kept, 600):
        kept.write_bytes(data)
        try:
            assert checksum.of_content(read_checkpoint(kept)) == want
        except KeditError as error:
            said.append(str(error))
    assert len(said) > 300
    assert all(str(kept) in text and "\n" not in text for text in said)


def _set(*keys: str, to: Any = None) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for key in keys[:-1]:
            content = content[key]
        if to is None:
            del content[keys[-1]]
        else:
            content[keys[-1]] = to

    return change


CHANGES = {
    "an epoch more": _set("epoch", to=3),
    "another context": _set("kedit", "method", "contexts", to=["{}", "A man. {}"]),
    "a loop's count": _set("loops", "fit_loop", "epoch_progress", "current", "completed", to=1),
    "true for 1": _set("kedit", "edits_done", to=True),
    "no loops": _set("loops"),
    "a list of loops": _set("loops", to=[1]),
    "no version": _set("pytorch-lightning_version"),
    "no method": _set("kedit", "method"),
    "a text of edits_done": _set("kedit", "edits_done", to="2"),
    "fewer than no edits": _set("kedit", "edits_done", to=-1),
    "no kedit": _set("kedit"),
    "kedit is a list": _set("kedit", to=[3]),
}


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("how", CHANGES)
def test_what_a_checkpoint_holds_is_checked(how: str, sealed: bool, kept: Path) -> None:
    content = torch.load(kept, weights_only=True)
    CHANGES[how](content)
    if sealed:
        torch.save(content, kept)
        with pytest.raises(KeditError, match=r"its checksum is wrong|was not written by kedit"):
            read_checkpoint(kept)
        seal(content)
    else:
        del content[CHECKSUM]
        torch.save(content, kept)
        with pytest.raises(KeditError, match=r"holds no checksum|was not written by kedit"):
            read_checkpoint(kept)
        return
    torch.save(content, kept)
    if list(CHANGES).index(how) < 3:
        read_checkpoint(kept)  # the checksum alone tells these
        return
    with pytest.raises(KeditError, match=r"is damaged: (it has no|kedit|loops)|was not written by kedit") as caught:
        read_checkpoint(kept)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../edits-1.bin", "edits-1.bin/../../x", "edits-1.bin\n", "edits-١.bin", "", "last.ckpt", 3]
)
def test_a_journal_has_its_own_name_alone(name: Any, tmp_path: Path) -> None:
    card = {"file": name, "bytes": 0, "base": 0}
    with pytest.raises(KeditError, match="is not the name of a journal"):
        Journal.of_card(tmp_path, card)


@pytest.mark.parametrize("numbers", [("1", 0), (-1, 0), (1, 2), (1, -1), (True, 0), (None, 0), (2**70, 1.5)])
def test_a_journal_s_numbers_are_numbers(numbers: tuple[Any, Any], tmp_path: Path) -> None:
    size, base = numbers
    with pytest.raises(KeditError, match=r"does not say how much of edits-1.bin is its"):
        Journal.of_card(tmp_path, {"file": "edits-1.bin", "bytes": size, "base": base})


def test_a_journal_of_another_run(tmp_path: Path) -> None:
    """Its entries are whole, and as many bytes; only they are not those of this run."""
    entry = {"deltas": [], "outcomes": [({"loss": 0.5}, None)], "state": {}}
    mine, theirs = Journal.new(tmp_path / "mine", 1), Journal.new(tmp_path / "theirs", 1)
    mine.append([entry])
    theirs.append([entry | {"outcomes": [({"loss": 0.25}, None)]}])
    card = mine.card()
    assert card["bytes"] == theirs.card()["bytes"]
    again = Journal.of_card(tmp_path / "mine", card)
    assert len(read_journal(again.path, again.size, again.crc)) == 1
    theirs.path.replace(mine.path)
    with pytest.raises(KeditError, match="it holds other edits"):
        read_journal(again.path, again.size, again.crc)
