"""lm-evaluation-harness on a model in memory: nothing is exported, and what edits put before prompts is heard.

It is an extra (`pip install 'kedit[lm-eval]'`); this module is imported where it is installed.
"""

from __future__ import annotations

import copy
import io
import logging
import os
import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lm_eval.evaluator import simple_evaluate  # pyright: ignore[reportMissingImports]
from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]
from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

from kedit.ability.scores import Score
from kedit.delta.prompts import prompt_for
from kedit.errors import BROKEN, KeditError, shown
from kedit.forward.logits import frozen

if TYPE_CHECKING:
    from kedit.ability.settings import AbilityTasks
    from kedit.model.lm import LM

log = logging.getLogger(__name__)

_LOGGERS = ("lm_eval", "datasets", "evaluate")
_NO_FIGURE = ("alias", "name", "sample_len", "sample_count", "samples", "N")
_ROOM = 64  # tokens that have a place behind a prompt with texts before it
_RANK = "LOCAL_RANK"


class EditedModel(HFLM):
    """The harness's own model of transformers, on a model that is loaded already, edited or not.

    Args:
        lm: The model. Its tokenizer is copied, as the harness sets options of its own.
        batch_size: Rows of one batch.
    """

    def __init__(self, lm: LM, batch_size: int) -> None:
        super().__init__(
            pretrained=lm.model,
            tokenizer=copy.deepcopy(lm.tokenizer),
            batch_size=batch_size,
            max_length=lm.context_length,
        )
        self._lm, self._chats = lm.in_chat(None), lm.chat is not None

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """As the harness does, with the texts that edits put before prompts."""
        return super().loglikelihood([self._asked(request) for request in requests], disable_tqdm)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """As the harness does, with the texts that edits put before prompts."""
        return super().generate_until([self._asked(request) for request in requests], disable_tqdm)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """As the harness does; the texts that edits put before prompts are part of the last user's message."""
        chat = [dict(message) for message in chat_history]
        for message in [message for message in chat if message["role"] == "user"][-1:]:
            message["content"] = prompt_for(self._lm, None, -1, message["content"], _ROOM)
        return super().apply_chat_template(chat, add_generation_prompt)

    def get_model_info(self) -> dict[str, Any]:
        """Nothing: the harness would ask the model hub."""
        return {}

    def _asked(self, request: Any) -> Any:
        prompt, *rest = request.args
        if self._chats or not prompt:
            return request
        request = copy.copy(request)
        request.arguments = (prompt_for(self._lm, None, -1, prompt, _ROOM), *rest)
        return request


def task_manager(include_path: str | None, option: str) -> Any:
    """The harness's tasks, with those in a folder of the user's; its `all_tasks` are their names.

    Raises:
        KeditError: A file of the folder cannot be read.
    """
    try:
        with _alone():
            return TaskManager(include_path=include_path)
    except (OSError, *BROKEN) as error:
        raise KeditError(f"{option}include_path: {shown(include_path)}: {_first(error)}") from error


def evaluate(lm: LM, tasks: AbilityTasks, manager: Any, what: str) -> tuple[Score, ...]:
    """What the harness's tasks say of a model as it is.

    Args:
        lm: The model. Where it is asked in a chat, the harness uses the tokenizer's chat template too.
        tasks: The tasks and how they are asked.
        manager: `task_manager`.
        what: Named in the log.

    Raises:
        KeditError: A task cannot be loaded or run; says why.
    """
    names = ", ".join(tasks.of_harness)
    log.info("lm-evaluation-harness %s: %s", what, names)
    try:
        with _alone(), frozen(lm.model):
            found = simple_evaluate(
                EditedModel(lm, tasks.batch_size),
                tasks=list(tasks.of_harness),
                num_fewshot=tasks.num_fewshot,
                limit=tasks.limit,
                bootstrap_iters=1000,
                apply_chat_template=lm.chat is not None,
                task_manager=manager,
            )
    except ImportError as error:
        missing = shown(error.name or str(error).splitlines()[0], 60)
        raise KeditError(
            f"{tasks.option}tasks: {names}: a task needs the package {missing}, which is not installed\n"
            "ifeval needs pip install 'lm_eval[ifeval]'"
        ) from error
    except (OSError, *BROKEN) as error:
        raise KeditError(
            f"{tasks.option}tasks: {names}: {_first(error)}\n"
            "The data of a task is downloaded when it is used first; kedit_choice needs none"
        ) from error
    return scores_of(found)


def scores_of(found: Mapping[str, Any]) -> tuple[Score, ...]:
    """The scores in what the harness returns: of tasks and of groups, in its order."""
    scores: dict[tuple[str, str], Score] = {}
    numbers = {task: n.get("effective") for task, n in (found.get("n-samples") or {}).items()}
    children = found.get("group_subtasks") or {}
    for task, values in {**found["results"], **(found.get("groups") or {})}.items():
        n = numbers.get(task) or _total(task, children, numbers)
        for key, value in values.items():
            metric, _, kept = key.partition(",")
            if metric.endswith("_stderr") or metric in _NO_FIGURE or not isinstance(value, int | float):
                continue
            error = values.get(f"{metric}_stderr,{kept}")
            name = metric if kept in ("", "none") else key
            stderr = float(error) if isinstance(error, int | float) else None
            items = _items(found, task, metric, kept)
            scores[task, name] = Score(task, name, float(value), stderr, n, items)
    return tuple(scores.values())


def _items(found: Mapping[str, Any], task: str, metric: str, kept: str) -> tuple[float, ...]:
    """The questions' own results; none where the metric is no mean of them."""
    samples = [one for one in (found.get("samples") or {}).get(task, ()) if one.get("filter", "none") == kept]
    values = [one.get(metric) for one in sorted(samples, key=lambda one: one["doc_id"])]
    return tuple(float(value) for value in values) if all(isinstance(v, int | float) for v in values) else ()


def _total(task: str, children: Mapping[str, Any], numbers: Mapping[str, int | None]) -> int | None:
    """Questions of all tasks below a group."""
    below = [_total(child, children, numbers) for child in children.get(task, ())] or [numbers.get(task)]
    return None if any(n is None for n in below) else sum(n or 0 for n in below)


def _first(error: BaseException) -> str:
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error).strip()
    return shown(text.splitlines()[0], 240) if text else type(error).__name__


@contextmanager
def _alone() -> Iterator[None]:
    """Inside, the harness may seed what it likes, prints nothing but bars on a terminal, and finds itself alone.

    Every process of a run evaluates by itself: the harness would give the first one's results alone.
    """
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels, states = [logger.level for logger in loggers], (random.getstate(), np.random.get_state())
    rank = os.environ.pop(_RANK, None)
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng())
        stack.enter_context(redirect_stdout(io.StringIO()))
        if not sys.stderr.isatty():
            stack.enter_context(redirect_stderr(io.StringIO()))
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            random.setstate(states[0])
            np.random.set_state(states[1])
            if rank is not None:
                os.environ[_RANK] = rank
