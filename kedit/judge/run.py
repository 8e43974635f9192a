"""`judge_answers`: many answers at once, each kept as soon as it is judged."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence

from kedit.errors import KeditError
from kedit.judge.answers import Answer
from kedit.judge.client import Endpoint, Refused
from kedit.judge.file import JudgeFile
from kedit.judge.prompt import NONE, SYSTEM, Verdict, user_message, verdict_of

Progress = Callable[[int, int], None]


def judge_answers(
    endpoint: Endpoint, answers: Sequence[Answer], file: JudgeFile, workers: int = 4, progress: Progress | None = None
) -> int:
    """Asks for a verdict on every answer that has none yet; equal answers are judged once.

    Args:
        endpoint: The judge.
        answers: The answers.
        file: Keeps the verdicts, and has those of before.
        workers: Requests that are under way at once.
        progress: Called with (judged, to judge).

    Returns:
        How many requests were made.

    Raises:
        KeditError: The judge cannot be reached or has failed too often. What is judged is kept.
    """
    alike: dict[tuple[str, str, str], list[Answer]] = {}
    for answer in answers:
        alike.setdefault(answer.content, []).append(answer)
    for content, same in alike.items():
        if content in file.verdicts:
            file.append(same, file.verdicts[content])
    left = [same for content, same in alike.items() if content not in file.verdicts]
    if not left:
        return 0
    work: queue.SimpleQueue[list[Answer]] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[list[Answer], Verdict | KeditError]] = queue.SimpleQueue()
    stopped = threading.Event()

    def judge() -> None:
        while not stopped.is_set():
            try:
                same = work.get_nowait()
            except queue.Empty:
                return
            result: Verdict | KeditError = KeditError("judge: a request failed in a way that kedit does not know")
            try:
                result = _verdict(endpoint, same[0])
            except KeditError as error:  # raised again where the file is written
                result = error
            finally:
                done.put((same, result))

    first, *rest = left
    file.append(first, _verdict(endpoint, first[0]))  # alone: a slip in the options is told once, and at once
    for same in rest:
        work.put(same)
    threads = [threading.Thread(target=judge, daemon=True) for _ in range(min(workers, len(rest)))]
    try:
        for thread in threads:
            thread.start()
        for number in range(1, len(rest) + 1):
            if progress is not None:
                progress(number, len(left))
            same, verdict = done.get()
            if isinstance(verdict, KeditError):
                raise verdict
            file.append(same, verdict)
    except KeditError as error:
        kept = len(file.verdicts)
        raise KeditError(f"{error}\n{kept} different answers are judged and kept; the same command goes on") from error
    finally:
        stopped.set()  # threads end with their request, or with the process
    return len(left)


def _verdict(endpoint: Endpoint, answer: Answer) -> Verdict:
    try:
        return verdict_of(endpoint.reply(SYSTEM, user_message(answer.text, answer.answer, answer.said)))
    except Refused as error:
        return Verdict(NONE, f"refused: {error}")
