"""`AbilityTasks`: which tasks measure general ability, and how; shared by `kedit fit` and `kedit ability`."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedit.ability.choice import NAME, choice_scores, questions
from kedit.ability.scores import Score
from kedit.errors import KeditError, at_least, shown
from kedit.runtime.progress import stage

if TYPE_CHECKING:
    from kedit.model.lm import LM

INSTALL = "pip install 'lm_eval[hf]' (the extra kedit[lm-eval])"
NAMES = 6  # that a message names


@dataclass(frozen=True)
class AbilityTasks:
    """Tasks, and how they are asked.

    Args:
        tasks: `kedit_choice`, and names of tasks, groups and tags of lm-evaluation-harness.
        limit: The first so many questions of every task; None: all.
        num_fewshot: Examples before every question; None: as each task has it. `kedit_choice` has none.
        batch_size: Rows of one batch of the harness.
        include_path: A folder with tasks of the user's own (YAML files).
        option: What messages call the group of options.

    Raises:
        KeditError: An option that cannot be.
    """

    tasks: tuple[str, ...]
    limit: int | None = None
    num_fewshot: int | None = None
    batch_size: int = 8
    include_path: str | None = None
    option: str = field(default="ability.", compare=False)

    def __post_init__(self) -> None:
        if any(not name.strip() for name in self.tasks):
            raise KeditError(f"{self.option}tasks: a name is empty")
        if len(set(self.tasks)) < len(self.tasks):
            raise KeditError(f"{self.option}tasks: a task is named twice: {shown(list(self.tasks))}")
        at_least(f"{self.option}limit", self.limit, 1)
        at_least(f"{self.option}num_fewshot", self.num_fewshot, 0)
        at_least(f"{self.option}batch_size", self.batch_size, 1)

    @property
    def choice(self) -> bool:
        """Whether kedit's own questions are asked."""
        return NAME in self.tasks

    @property
    def of_harness(self) -> tuple[str, ...]:
        """The tasks that lm-evaluation-harness has."""
        return tuple(name for name in self.tasks if name != NAME)

    def check(self) -> None:
        """Whether all tasks are there; loads no data.

        Raises:
            KeditError: The harness is not installed, there is no such task (names those that are spelt alike), or
                `include_path` is no folder.
        """
        if self.include_path is not None and not Path(self.include_path).is_dir():
            raise KeditError(f"{self.option}include_path: there is no folder {shown(self.include_path)}")
        if not self.of_harness:
            return
        if importlib.util.find_spec("lm_eval") is None:
            near = get_close_matches(self.of_harness[0], [NAME], n=1)
            meant = f" (or did you mean {NAME}, which needs none?)" if near else ""
            raise KeditError(
                f"{self.option}tasks: {shown(self.of_harness[0], 40)} is a task of lm-evaluation-harness, which is not "
                f"installed{meant}\n{INSTALL}"
            )
        known = list(self._manager.all_tasks)
        for name in self.of_harness:
            if name not in known:
                near = get_close_matches(name, [*known, NAME], n=NAMES, cutoff=0.7)
                meant = f"; near it are {', '.join(near)}" if near else ""
                raise KeditError(
                    f"{self.option}tasks: there is no task {shown(name, 40)} in lm-evaluation-harness"
                    f"{' or include_path' if self.include_path else ''}{meant}\n`lm-eval ls tasks` lists all"
                )

    @cached_property
    def _manager(self) -> Any:
        """The harness's tasks: reading their files takes seconds."""
        from kedit.ability.harness import task_manager

        return task_manager(self.include_path, self.option)

    def harness_scores(self, lm: LM, what: str) -> tuple[Score, ...]:
        """What the harness's tasks say of a model as it is; a chat if `lm` is asked in one.

        Args:
            lm: The model, with the weights that are to be measured.
            what: Named while it works.

        Raises:
            KeditError: A task cannot be loaded, e.g. as its data cannot be downloaded or a package is missing.
        """
        if not self.of_harness:
            return ()
        from kedit.ability.harness import evaluate

        return evaluate(lm, self, self._manager, what)

    def scores(self, lm: LM, what: str, shared: bool = False) -> tuple[Score, ...]:
        """What all tasks say of a model as it is; see `harness_scores`."""
        own: tuple[Score, ...] = ()
        if self.choice:
            with stage(f"{NAME} {what}") as progress:
                (own,) = choice_scores(lm, questions(self.limit), progress=progress, shared=shared)
        return (*own, *self.harness_scores(lm, what))

    def card(self) -> dict[str, Any]:
        """What figures depend on."""
        about = asdict(self) | {"tasks": list(self.tasks)}
        del about["option"], about["batch_size"]
        if self.of_harness:
            from importlib.metadata import version

            about["lm_eval"] = version("lm_eval")
        return about


def split_names(text: str | Sequence[str]) -> tuple[str, ...]:
    """Names with commas or spaces between them."""
    words = [text] if isinstance(text, str) else list(text)
    return tuple(name for word in words for name in word.replace(",", " ").split())
