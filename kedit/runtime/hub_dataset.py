"""Data sets that the `datasets` library reads: `hf:NAME[:CONFIG][:SPLIT]`, where NAME is a hub id or a local folder."""

from __future__ import annotations

from typing import Any

from kedit.errors import KeditError, shown

PREFIX = "hf:"


def hub_dataset(name: str, option: str, last: str = "") -> tuple[Any, str]:
    """The data set that `hf:NAME[:CONFIG][:SPLIT]` names (SPLIT: train), and what stands behind a further colon.

    Args:
        name: What the user wrote; an empty part (`hf:NAME::test`) is as if it were not there.
        option: The option that names it, for messages.
        last: What messages call a further part, e.g. `[:COLUMN]`; empty where there must be none.

    Raises:
        KeditError: It has another form, the library is missing, or the data set cannot be loaded.
    """
    parts = name.removeprefix(PREFIX).split(":")
    if not parts[0].strip() or len(parts) > (4 if last else 3):
        raise KeditError(f"{option}: {shown(name)} is not hf:NAME[:CONFIG][:SPLIT]{last}")
    folder, config, split, more = [*parts, "", "", ""][:4]
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError:
        raise KeditError(f"{option}: hf: needs the datasets library; pip install datasets") from None
    try:
        dataset = datasets.load_dataset(folder, config or None, split=split or "train")
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise KeditError(f"{option}: {name} cannot be loaded: {shown(why, 200)[1:-1]}") from None
    return dataset, more


def hub_rows(name: str, option: str) -> list[Any]:
    """The rows of a data set as JSON would have them: a field that a row does not have is left out, not null.

    Raises:
        KeditError: As `hub_dataset`.
    """
    dataset, _ = hub_dataset(name, option)
    return [_without_nulls(row) for row in dataset]


def _without_nulls(value: Any) -> Any:
    """The library gives every object the fields of all, null where the file has none."""
    if isinstance(value, dict):
        return {name: _without_nulls(part) for name, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value
