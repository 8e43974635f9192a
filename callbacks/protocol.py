"""`NamedProtocol`: a run that follows a named protocol says so in its rows and its summary, and has data for it.

The settings of a protocol are options like any others; what puts them in force is the command.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule, Trainer

from kedit.data.chosen_records import ChosenRecords
from kedit.errors import KeditError
from kedit.methods.base.callback import EditCallback, Row, data_of
from kedit.runtime.protocols import Protocol

if TYPE_CHECKING:
    from kedit.methods.base.module import EditingModule


class NamedProtocol(EditCallback):
    """Writes a protocol's name into `protocol.name` of every row, of `run.json` and of `summary.json`.

    Args:
        protocol: The protocol.
    """

    def __init__(self, protocol: Protocol) -> None:
        self.protocol = protocol

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks the records once more, now that the model has chosen among them.

        Raises:
            KeditError: As `check_data`.
        """
        check_data(self.protocol, data_of(trainer))

    def on_describe(self, trainer: Trainer, module: EditingModule, about: dict[str, Any]) -> None:
        """The name, beside what the protocol sets."""
        about["protocol"] |= {"name": self.protocol.name}

    def on_complete_rows(self, trainer: Trainer, module: EditingModule, rows: list[Row]) -> None:
        """The name, before the rows are kept."""
        for row in rows:
            row["protocol"]["name"] = self.protocol.name


def followed(trainer: Trainer) -> str | None:
    """The name of the protocol that a run follows."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return next((callback.protocol.name for callback in callbacks if isinstance(callback, NamedProtocol)), None)


def check_data(protocol: Protocol, data: ChosenRecords) -> None:
    """Whether the records to edit have what a protocol needs of them. Loads no model.

    Args:
        protocol: The protocol.
        data: Its records may still wait for the model to choose among them.

    Raises:
        KeditError: A kind of probe, rivals or subjects are missing, or the records are several edit batches.
    """
    records, needs = data.records, protocol.needs
    probes = [probe for record in records for probe in record.probes]
    present = dict.fromkeys(probe.kind for probe in probes)
    start = f"protocol: {protocol.name} needs"
    if missing := [kind for kind in needs.kinds if kind not in present]:
        kinds = ", ".join(present) or "none"
        raise KeditError(
            f"{start} probes of kind {', '.join(missing)}, and {data.name} has {kinds}; give data with them "
            "(docs/data.md)"
        )
    for kind in needs.rivals:
        if all(probe.rival is None for probe in probes if probe.kind == kind):
            raise KeditError(
                f"{start} an answer that competes with that of {kind} probes, and {data.name} has none: give data with "
                "a true target (docs/data.md)"
            )
    if needs.subjects and (without := [r.request.name for r in records if r.request.subject is None]):
        raise KeditError(f"{start} requests that name their subject, and {without[0]} of {data.name} does not")
    waits = data.filter_known and data.limit is None  # how many there will be is not known yet
    if needs.one_batch and not waits and len(records) > data.batch_size:
        raise KeditError(
            f"{start} all edits in one edit batch: set data.batch_size: {len(records)} (now {data.batch_size})"
        )
