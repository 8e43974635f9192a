"""What a user asks for, in one line or as a list, as `EditRequest`s.

They are what a reader makes of the same facts in a file, so that `kedit fit` on that file makes the same edit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kedit.data.readers.build import request_of, why_absent
from kedit.data.readers.jsonl import read_records
from kedit.data.readers.parse import ALIASES, Item
from kedit.errors import KeditError, shown
from kedit.request import EditRecord, EditRequest
from kedit.runtime.option_values import check_text
from kedit.text.prompts import NAMED_SLOT, slots

FIELDS = ("case_id", "prompt", "subject", "target_new", "target_true", "relation")
"""Our names of what a request as a mapping may have; `target`, `true_target` and the names of the public files too."""


def one_request(
    prompt: str | None, subject: str | None, target: str | None, true_target: str | None = None
) -> EditRequest:
    """The request that four texts make.

    Args:
        prompt: With one `{}` where the subject goes, or with the subject itself, once.
        subject: What the fact is about.
        target: What the prompt should be continued with.
        true_target: What it is continued with before the edit, where the user knows it.

    Raises:
        KeditError: One is missing or empty, or the subject is not where it belongs.
    """
    given = {"prompt": prompt, "subject": subject, "target": target}
    if missing := [name for name, text in given.items() if text is None]:
        raise KeditError(
            f"{' and '.join(missing)} missing: an edit is a prompt with {{}}, its subject and the new target, "
            "as in 'The capital of {} is', 'France', 'Lyon'"
        )
    for name, text in {**given, "true_target": true_target}.items():
        if text is not None and not isinstance(text, str):
            raise KeditError(f"{name}: expects a text, not {shown(text)}")
        check_text(name, text or "")
        if text is not None and not text.strip():
            raise KeditError(f"{name}: it is empty")
    assert prompt is not None
    assert subject is not None
    raw = {"case_id": "1", "prompt": with_slot(prompt, subject), "subject": subject, "target_new": target}
    try:
        return request_of(Item("the request", raw | ({} if true_target is None else {"target_true": true_target})))
    except KeditError as error:
        message = re.sub(r"^(the request|record 1)(: |, )", "", str(error))
        raise KeditError(message.replace("target_new", "target")) from None


def with_slot(prompt: str, subject: str) -> str:
    """The prompt with `{}` where its subject stands.

    Raises:
        KeditError: The subject stands there not at all, or several times; or there are several `{}`.
    """
    if NAMED_SLOT in prompt or slots(prompt) == 1:
        return prompt
    if slots(prompt) > 1:
        raise KeditError(
            f"prompt: {shown(prompt)} has {slots(prompt)} {{}}; it needs one, where the subject goes "
            "('{{}}' stands for braces that mean themselves)"
        )
    found = [match.start() for match in re.finditer(rf"(?<!\w){re.escape(subject)}(?!\w)", prompt)]
    if not found:  # no word of its own: Chinese, say
        found = [match.start() for match in re.finditer(re.escape(subject), prompt)]
    if not found:
        raise KeditError(
            f"prompt: {shown(prompt)} has no {{}} and does not name the subject {shown(subject)}: "
            + why_absent(subject, prompt)
        )
    if len(found) > 1:
        raise KeditError(
            f"prompt: {shown(prompt)} names {shown(subject)} {len(found)} times: put {{}} where the subject goes"
        )
    return prompt[: found[0]] + "{}" + prompt[found[0] + len(subject) :]


def many_requests(given: Any) -> list[EditRequest]:
    """A list of requests, records or mappings, or the JSONL file that holds some.

    Args:
        given: As `kedit.edit` takes it.

    Raises:
        KeditError: It is none of these, is empty, or names one request twice; says which request.
    """
    if isinstance(given, str | Path):
        return [record.request for record in read_records(given)]
    if isinstance(given, Mapping | EditRequest | EditRecord):
        given = [given]
    if not isinstance(given, Iterable):
        raise KeditError(f"requests: expects a list of requests or a file of them, not {shown(given)}")
    requests = [_request(one, position) for position, one in enumerate(given, start=1)]
    if not requests:
        raise KeditError("requests: the list is empty")
    ids = [request.case_id for request in requests]
    if twice := next((one for one in ids if ids.count(one) > 1), None):
        raise KeditError(f"requests: {ids.count(twice)} have the case_id {shown(twice)}; each needs its own")
    return requests


def _request(given: Any, position: int) -> EditRequest:
    if isinstance(given, EditRecord):
        return given.request
    if isinstance(given, EditRequest):
        return given
    if not isinstance(given, Mapping):
        raise KeditError(f"requests, number {position}: expects prompt, subject and target, not {shown(given)}")
    raw = {"target_true" if name == "true_target" else name: value for name, value in given.items()}
    known = {alias for name in FIELDS for alias in ALIASES[name]}
    if unknown := [name for name in raw if name not in known]:
        raise KeditError(
            f"requests, number {position}: there is no field {shown(unknown[0])}; a request has prompt, subject, "
            "target, and may have true_target, case_id"
        )
    case_id = str(raw.get("case_id", raw.get("id", position)))
    return request_of(Item(f"requests, number {position}", {**raw, "case_id": case_id}))
