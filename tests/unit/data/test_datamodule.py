"""Data modules: which records, in which batches, and what a real Trainer gets to see at every step."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from kedit import data
from kedit.data import CounterFact, EditData, Facts, Records, RobustQueries, datasets_index
from kedit.data.batching import form_batches, suffix_length
from kedit.errors import KeditError
from kedit.request import EditRecord, EditRequest
from tests.support.device import ACCELERATOR
from tests.support.paths import FIXTURES

OWN = str(FIXTURES / "records.jsonl")


class Synthetic(EditData):
    """`n` records whose targets grow and shrink in length."""

    def __init__(self, n: int = 7, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.n = n
        self.reads = 0

    def read(self) -> list[EditRecord]:
        self.reads += 1
        return [
            EditRecord(EditRequest(str(i), "The tag of {} is", f"item {i}", "x" * (1 + 7 * i % 5)), ())
            for i in range(self.n)
        ]


def ids(records: list[EditRecord]) -> list[str]:
    return [record.request.case_id for record in records]


class Watcher(LightningModule):
    """A method of three steps per edit batch that notes what it is given."""

    steps_per_batch = 3
    regime = "batch"

    def __init__(self, drop: str = "") -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.drop = drop
        self.asked: list[int] = []
        self.seen: list[tuple[int, int, list[str]]] = []

    def prepare_records(self, records: list[EditRecord]) -> list[EditRecord]:
        self.asked.append(len(records))
        return [record for record in records if record.request.case_id not in self.drop]

    def unfit_records(self, records: list[EditRecord]) -> dict[str, str]:
        return {}

    def training_step(self, batch: list[EditRecord], batch_idx: int) -> torch.Tensor:
        assert all(type(record) is EditRecord for record in batch)
        self.seen.append((self.current_epoch, batch_idx, ids(batch)))
        return self.weight.square().sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(
    module: LightningModule, datamodule: EditData, folder: Path, resume: Path | None = None, **options: Any
) -> Trainer:
    options = {"max_epochs": 2, "reload_dataloaders_every_n_epochs": 1, "log_every_n_steps": 1} | options
    trainer = Trainer(
        accelerator=ACCELERATOR,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **options,
    )
    trainer.fit(module, datamodule=datamodule, ckpt_path=resume, weights_only=True)
    return trainer


@pytest.mark.filterwarnings("error::UserWarning", "ignore:The `srun` command is available")
def test_trainer_gets_the_epochs_batch_at_every_step(tmp_path: Path) -> None:
    module = Watcher()
    trainer = fit(module, Synthetic(5, batch_size=2), tmp_path, max_epochs=3)
    expected = [["0", "1"], ["2", "3"], ["4"]]
    assert module.seen == [(epoch, step, expected[epoch]) for epoch in range(3) for step in range(3)]
    assert trainer.global_step == 9
    assert trainer.num_training_batches == 3


def test_resumed_run_goes_on_with_the_next_batch(tmp_path: Path) -> None:
    trainer = fit(Watcher(), Synthetic(4, batch_size=2), tmp_path, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    module = Watcher()
    fit(module, Synthetic(4, batch_size=2), tmp_path, resume=tmp_path / "one.ckpt")
    assert module.seen == [(1, step, ["2", "3"]) for step in range(3)]


def test_early_stop_and_fast_dev_run(tmp_path: Path) -> None:
    class Stops(Watcher):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            return -1 if batch_idx == 1 else None

    module = Stops()
    fit(module, Synthetic(2), tmp_path)
    assert module.seen == [(0, 0, ["0"]), (1, 0, ["1"])]
    module = Watcher()
    fit(module, Synthetic(5, batch_size=2), tmp_path, fast_dev_run=True)
    assert module.seen == [(0, 0, ["0", "1"])]


def test_more_epochs_than_batches_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeditError, match=r"trainer\.max_epochs: .* synthetic has 1 edit batches"):
        fit(Watcher(), Synthetic(2, batch_size=2), tmp_path, max_epochs=2)


def test_module_chooses_records_and_lanes(tmp_path: Path) -> None:
    class Lanes(Watcher):
        def setup(self, stage: str) -> None:
            datamodule: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            datamodule.make_schedule(3)

    module = Lanes(drop="02")
    datamodule = Synthetic(7)
    fit(module, datamodule, tmp_path)
    assert [seen[2] for seen in module.seen[::3]] == [["1", "3", "4"], ["5", "6"]]
    assert module.asked == [7]
    assert ids(datamodule.records) == ["1", "3", "4", "5", "6"]
    datamodule.setup("validate")
    assert module.asked == [7]
    assert len(datamodule.batches) == 2
    assert datamodule.describe()["batch_size"] == 3


def test_known_filter_comes_before_skip_and_limit() -> None:
    module = Watcher(drop="1")
    datamodule = Synthetic(200, known=True, skip=1, limit=2)
    assert datamodule.filter_known
    datamodule.prepare(module.prepare_records)
    assert ids(datamodule.records) == ["2", "3"]
    assert module.asked == [64]  # no more than needed are put to the model
    everything = Synthetic(200, known=True)
    everything.prepare(lambda records: [record for record in records if record.request.case_id == "150"])
    assert ids(everything.records) == ["150"]
    with pytest.raises(KeditError, match=r"data\.known: True keeps no record of synthetic"):
        Synthetic(known=True).prepare(lambda records: [])
    with pytest.raises(KeditError, match="no record to edit"):
        Synthetic().prepare(lambda records: [])


def told(datamodule: EditData, caplog: pytest.LogCaptureFixture) -> str:
    """What the log says of a module that is being prepared; what results keep of it must add up."""
    caplog.clear()
    module = Watcher(drop="1")
    with caplog.at_level(logging.INFO, "kedit"):
        datamodule.prepare(module.prepare_records if datamodule.filter_known else lambda records: records)
    card = datamodule.describe()
    assert card["in_file"] == card["records"] + sum(card["left_out"].values())
    assert all(card["left_out"].values())
    return caplog.messages[-1]


def test_what_is_left_out_is_said(caplog: pytest.LogCaptureFixture) -> None:
    assert told(Synthetic(3), caplog) == "synthetic: 3 records in the file, 3 to edit"
    assert told(Synthetic(1), caplog) == "synthetic: 1 record in the file, 1 to edit"
    assert told(Synthetic(9, skip=2, limit=3), caplog) == (
        "synthetic: 9 records in the file, 3 to edit: 6 left out (2 skip, 4 limit)"
    )
    assert told(Synthetic(3, known=True), caplog) == (
        "synthetic: 3 records in the file, 2 to edit: 1 left out (1 not known)"
    )
    shuffled = Synthetic(9, known=True, limit=9, shuffle_seed=0)
    assert told(shuffled, caplog) == "synthetic: 9 records in the file, 8 to edit: 1 left out (1 not known)"
    assert told(Records(OWN, known="recorded", limit=2), caplog) == (
        "records/records: 4 records in the file, 2 to edit: 2 left out (1 not marked as known, 1 limit)"
    )
    facts = Facts(known=False, limit=1)
    n = len(facts.everything)
    assert told(facts, caplog) == f"facts/test: {n} records in the split, 1 to edit: {n - 1} left out ({n - 1} limit)"


def test_records_that_nobody_asked_about_are_not_called_unknown(caplog: pytest.LogCaptureFixture) -> None:
    datamodule = Synthetic(200, known=True, skip=1, limit=2)  # the model is asked of the first 64
    assert told(datamodule, caplog) == (
        "synthetic: 200 records in the file, 2 to edit: 198 left out "
        "(1 not known, 1 skip, 60 limit, 136 not asked, the limit was reached)"
    )
    assert datamodule.describe()["left_out"] == {"not_known": 1, "skip": 1, "limit": 60, "not_asked": 136}


def test_records_that_the_model_refuses_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    datamodule = Synthetic(5, limit=4)
    datamodule.prepare(lambda records: records[1:])
    assert datamodule.describe()["left_out"] == {"limit": 1, "not_fit": 1}


def test_doubled_names_are_refused() -> None:
    class Doubled(Synthetic):
        def read(self) -> list[EditRecord]:
            return [*super().read(), *super().read()]

    with pytest.raises(KeditError, match="doubled: several records have the case_id of record 0; each needs its own"):
        _ = Doubled().records


def test_a_mark_that_is_no_mark(tmp_path: Path) -> None:
    row = {"case_id": "a", "prompt": "The tag of {} is", "subject": "it", "target_new": "x", "known": "false"}
    (tmp_path / "my.json").write_text(json.dumps([row]))
    with pytest.raises(KeditError, match="records/my, record a: field 'known' must be true or false"):
        _ = Records(str(tmp_path / "my.json"), known="recorded").records


def test_recorded_flag() -> None:
    datamodule = Records(OWN, known="recorded")
    assert not datamodule.filter_known
    assert ids(datamodule.records) == ["tower", "12", "12-2"]
    with pytest.raises(KeditError, match=r"data\.known: synthetic has no 'known' field"):
        _ = Synthetic(known="recorded").records


def test_skip_limit_shuffle_and_reading_once() -> None:
    plain = Synthetic(7, skip=2, limit=3)
    assert ids(plain.records) == ["2", "3", "4"]
    assert plain.records is plain.records
    assert plain.reads == 1
    shuffled = Synthetic(40, shuffle_seed=1)
    assert ids(shuffled.records) == ids(Synthetic(40, shuffle_seed=1).records)
    assert sorted(ids(shuffled.records)) == sorted(ids(Synthetic(40).records))
    assert ids(shuffled.records) != ids(Synthetic(40).records)
    assert ids(shuffled.records) != ids(Synthetic(40, shuffle_seed=2).records)
    assert ids(Synthetic(40, shuffle_seed=1, limit=4).records) == ids(shuffled.records)[:4]
    with pytest.raises(KeditError, match=r"data\.skip: 3 passes over all 3 records"):
        _ = Synthetic(3, skip=3).records


def test_batches() -> None:
    datamodule = Synthetic(7, batch_size=3)
    assert [len(batch) for batch in datamodule.batches] == [3, 3, 1]
    assert [ids(batch) for batch in datamodule.make_schedule(4).batches] == [["0", "1", "2", "3"], ["4", "5", "6"]]
    assert len(datamodule.batches) == 2  # the last choice holds
    assert len(datamodule.make_schedule().batches) == 3
    with pytest.raises(KeditError, match=r"data\.batch_size: 0 is less than 1"):
        datamodule.make_schedule(0)


def test_sort_by_length_is_stable_and_stays_in_its_window() -> None:
    records = Synthetic(100).records
    batches = form_batches(records, 2, sort_by_length=True)
    flat = [record for batch in batches for record in batch]
    for start in range(0, 100, 32):
        window, sorted_window = records[start : start + 32], flat[start : start + 32]
        assert sorted_window == sorted(window, key=suffix_length) != window
    assert Synthetic(100, batch_size=2, sort_by_length=True).batches == batches
    assert Synthetic(100).make_schedule(2, sort_by_length=True).batches == batches
    assert suffix_length(records[0]) == len(" is") + 1


def test_probe_choice() -> None:
    path = str(FIXTURES / "counterfact_official.json")
    few = CounterFact(path, probe_kinds=["rewrite", "neighborhood"], max_probes=2)
    assert few.describe()["probes"] == {"neighborhood": 3, "rewrite": 2}
    whole = [probe.text for probe in CounterFact(path).records[0].probes if probe.kind == "neighborhood"]
    first = [probe.text for probe in few.records[0].probes if probe.kind == "neighborhood"]
    assert first == whole[:2]
    assert len(whole) == 3
    with pytest.raises(KeditError, match=r"data\.probe_kinds: .* has no rewrites probes; it has neighborhood, par"):
        _ = CounterFact(path, probe_kinds=["rewrites"]).records


def test_fingerprint_is_stable_and_tells_records_apart() -> None:
    # Written down so that a change of the readers or of the normal form does not go unnoticed.
    assert Records(OWN).fingerprint == "fdc60c2b774a1f5c"
    assert Records(OWN).fingerprint == Records(OWN, batch_size=2).fingerprint
    others = [
        Records(OWN, limit=2),
        Records(OWN, skip=2),
        Records(OWN, max_probes=1),
        Records(OWN, shuffle_seed=0),
    ]
    assert len({other.fingerprint for other in others} | {Records(OWN).fingerprint}) == 5


def test_describe_is_json() -> None:
    card = Records(OWN, batch_size=3, limit=4).describe()
    assert json.loads(json.dumps(card)) == card
    assert (card["name"], card["records"], card["edit_batches"]) == ("records/records", 4, 2)
    assert RobustQueries(str(FIXTURES / "robust.json")).describe()["name"] == "robust/robust"


@pytest.mark.parametrize(("option", "value"), [("limit", 0), ("skip", -1), ("max_probes", 0), ("batch_size", 0)])
def test_bad_option_is_named(option: str, value: int) -> None:
    with pytest.raises(KeditError, match=rf"data\.{option}: {value} is less than"):
        Synthetic(**{option: value})


def test_index_lists_every_data_set() -> None:
    listed = {name: needs_path for name, _, needs_path in datasets_index()}
    classes = {name for name in data.__all__ if name[0].isupper()} - {"EditData"}
    assert set(listed) == classes
    for name, needs_path in listed.items():
        if needs_path:
            with pytest.raises(TypeError, match="path"):
                getattr(data, name)()
        else:
            getattr(data, name)()
    assert Facts().filter_known
    assert Facts().name == "facts/test"


def test_readers_do_not_import_lightning() -> None:
    code = "import sys, kedit.data; assert 'lightning' not in sys.modules and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
