"""Which records a module can edit: what their texts demand of the model, and what the user left out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kedit.evaluation.score import known_records
from kedit.methods.base.callback import call_hooks
from kedit.model.tokenization import TooLong, check
from kedit.request import EditRecord

if TYPE_CHECKING:
    from kedit.methods.base.module import EditingModule


def prepared(module: EditingModule, records: list[EditRecord]) -> list[EditRecord]:
    """The records that are left when every request was checked, and unknown facts dropped where the data asks for it.

    Raises:
        KeditError: A request names no subject and the method needs one (said before the model is loaded), a
            prompt does not fit into the context, or no token covers a subject; names the record.
    """
    if module.needs_subject:
        for record in records:
            record.request.named(type(module).__name__)
    for record in records:
        check(module.lm, record.request)
    data: Any = getattr(module.trainer, "datamodule", None)
    if data is not None and data.filter_known:
        return known_records(module.lm, records)
    return records


def unfit(module: EditingModule, records: list[EditRecord]) -> dict[str, str]:
    """Of which records a text does not fit into the model's context, in editing or in measuring: id and why."""
    found: dict[str, str] = {}
    for record in records:
        try:
            module.check_fit(record)
            call_hooks(module.trainer, "on_check_record", module, record)
        except TooLong as error:
            found[record.request.case_id] = str(error)
    return found
