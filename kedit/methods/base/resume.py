"""What a run takes from the checkpoint that it goes on from, and whether it is this run's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedit.errors import KeditError, shown
from kedit.runtime import checksum, distributed
from kedit.runtime.checkpoint_file import check_entry, read_checkpoint, seal
from kedit.runtime.journal import Journal, read_journal

if TYPE_CHECKING:
    from kedit.methods.base.module import EditingModule


def identity(module: EditingModule) -> dict[str, Any]:
    """What a run must share with the checkpoint that it is resumed from."""
    schedule = module.schedule
    later = {*module.found_out, *module.editor.found_out}
    same = {key: value for key, value in module.describe().items() if key not in later}
    counts = {"edit_batches": len(schedule.batches), "processes": distributed.world_size()}
    return same | {"data": schedule.fingerprint} | counts


def write_state(module: EditingModule, checkpoint: dict[str, Any]) -> None:
    """Puts the edits so far (unless a journal has them), the method's state and the counts into a checkpoint."""
    checkpoint["state_dict"] = {}
    checkpoint["optimizer_states"] = []
    edits = checkpoint.get("kedit") or {"edits": [module.edits()] if module.regime == "sequential" else []}
    own = {"edits_done": module.edits_done, "method": module.method_state(), "run": identity(module)}
    checkpoint["kedit"] = edits | own
    seal(checkpoint)  # Lightning asks the module last


def read_state(identity: Mapping[str, Any], path: Path, most: int) -> dict[str, Any]:
    """kedit's part of a checkpoint, with the edits that are in the journal beside it.

    Args:
        identity: What the run that it was written by must share with this one.
        path: Its file.
        most: Edit batches of this run.

    Returns:
        `edits_done`, `edits` (what each entry of the journal holds), `method`, `run`.

    Raises:
        KeditError: It was written by something else or by another run, or its journal is missing or damaged.
    """
    state = read_checkpoint(path)["kedit"]
    theirs = {"processes": 1} | state["run"]  # there were no others once
    for key, value in {"chat": None, "target_eos": None, **identity}.items():  # of which most runs have none
        if value != theirs.get(key):
            there, here = shown(theirs.get(key), 160), shown(value, 160)
            raise KeditError(f"this checkpoint is of another run: its {key} is {there}, here it is {here}")
    if state["edits_done"] > most:
        raise KeditError(f"{path} is damaged: it says that {state['edits_done']} edit batches of {most} are done")
    if "journal" in state:
        journal = Journal.of_card(path.parent, state["journal"])
        state["edits"] = read_journal(journal.path, journal.size, journal.crc)
    if not isinstance(state.get("edits"), list):
        raise KeditError("this checkpoint was written by an older kedit; start the run anew")
    for entry in state["edits"]:
        check_entry(path, entry)
    return dict(state)


@contextmanager
def taking_back(path: Path) -> Iterator[None]:
    """Inside, what a checkpoint holds of a method's state is of use, or it is damaged.

    Raises:
        KeditError: It lacks something, or has it in another shape.
    """
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        why = f"{type(error).__name__}: {checksum.first_line(error)}"
        raise KeditError(f"{path} is damaged: the method's state in it is of no use ({why[:200]})") from error


def give_back(module: EditingModule, state: dict[str, Any], path: Path) -> None:
    """Gives a method what a checkpoint holds of its state.

    Raises:
        KeditError: It is of no use to the method.
    """
    with taking_back(path):
        module.load_method_state(state["method"])
        for entry in state["edits"]:
            module.load_edit_state(entry["state"])


def check_loops(path: Path, found: Any, wanted: Any, where: str = "loops.fit_loop") -> None:
    """Whether Lightning's own counts in a checkpoint have the form in which it will read them.

    Args:
        path: The checkpoint.
        found: Its counts.
        wanted: Those of a new trainer.
        where: What messages call them.

    Raises:
        KeditError: They have another one.
    """
    if isinstance(wanted, Mapping):
        if not isinstance(found, Mapping) or set(found) != set(wanted):
            raise KeditError(f"{path} is damaged, or of another version of Lightning: {where} has other keys than here")
        for key, value in wanted.items():
            check_loops(path, found[key], value, f"{where}.{key}")
    elif type(found) is not type(wanted) or (isinstance(found, int) and found < 0):
        raise KeditError(f"{path} is damaged, or of another version of Lightning: {where} is {shown(found, 40)}")


def end_at_once(module: EditingModule) -> None:
    """The end of a run that was interrupted after its last edit: Lightning skips a loop without epochs, hooks too.

    What is missing is what the callbacks measure and write when training ends.
    """
    for hook in ("on_train_start", "on_train_end"):
        for callback in module.trainer.callbacks:  # type: ignore[attr-defined]
            getattr(callback, hook)(module.trainer, module)
    module.on_train_end()
