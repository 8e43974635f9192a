"""`Endpoint`: chat completions of an OpenAI-compatible server, with retries; the key is sent and never told.

Python's own HTTP client does it. Redirections are refused: they would carry the key to a host that nobody named.
"""

from __future__ import annotations

import json
import random
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from email.message import Message
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from kedit.errors import KeditError, shown

RETRIED = (408, 409, 425, 429, 500, 502, 503, 504, 529)
"""Statuses after which the same request may succeed."""

FATAL = (401, 402, 403, 404, 405)
"""Statuses that every request would get."""

_LONGEST = 60.0  # seconds between two tries
_MOST = 2**22  # bytes of a reply that are read
_PATH = "/chat/completions"


class Refused(Exception):
    """The server refuses this one request for good; the message says why."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


@dataclass
class Endpoint:
    """Where a judge is asked.

    Args:
        url: The API's address, e.g. `http://localhost:8000/v1`.
        model: Name of the model there.
        key: Sent as bearer token; None: none.
        timeout: Seconds that a request may take.
        retries: Further tries after one that failed.
        tokens: Of a reply at most; None: the server's own bound.
        pause: Seconds before the second try; doubled for every further one.
        sleep: Waits.

    Raises:
        KeditError: No such URL.
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    timeout: float = 60.0
    retries: int = 5
    tokens: int | None = 512
    pause: float = 1.0
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False)

    def __post_init__(self) -> None:
        self._address = _address(self.url)
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._reached = False

    @property
    def shown_url(self) -> str:
        """The address without a query: it may hold a secret."""
        parts = urlsplit(self._address)
        return urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))

    def reply(self, system: str, user: str) -> str:
        """What the model says, at temperature 0.

        Raises:
            Refused: The server refuses this request, and has answered others.
            KeditError: It cannot be reached, refuses every request, or failed too often.
        """
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "system", "content": system}, {"role": "user", "content": user}],
            "temperature": 0,
        }
        if self.tokens is not None:
            body["max_tokens"] = self.tokens
        for attempt in range(self.retries + 1):
            problem, wait = self._try(body)
            if wait is None:
                return problem
            if attempt < self.retries:
                self.sleep(min(max(wait, self.pause * 2**attempt * random.uniform(0.75, 1.25)), _LONGEST))
        often = f", {self.retries + 1} times in a row" if self.retries else ""
        raise KeditError(f"judge: {self.shown_url}: {problem}{often}")

    def _try(self, body: dict[str, Any]) -> tuple[str, float | None]:
        """The reply and None; or what went wrong and the seconds to wait at least."""
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "kedit"}
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(self._address, json.dumps(body).encode(), headers, method="POST")
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                text = response.read(_MOST)
        except urllib.error.HTTPError as error:
            with error:
                return self._status(error)
        except urllib.error.URLError as error:
            return self._unreachable(error.reason)
        except (OSError, HTTPException) as error:
            return self._unreachable(error)
        self._reached = True
        try:
            content = json.loads(text)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError):
            return f"a reply that is no chat completion: {self._safe(text[:400].decode(errors='replace'))}", 0.0
        return str(content or ""), None

    def _status(self, error: urllib.error.HTTPError) -> tuple[str, float]:
        """What a status other than 200 means."""
        try:
            text = error.read(4000).decode(errors="replace")
        except (OSError, HTTPException):
            text = ""
        said = f"status {error.code}" + (f": {self._safe(_message(text))}" if text.strip() else "")
        if error.code in RETRIED:
            self._reached = True
            return said, _retry_after(error.headers)
        if 300 <= error.code < 400:
            where = str(error.headers.get("Location", "elsewhere"))
            raise KeditError(f"url: {self.shown_url} sends requests on to {self._safe(where)}; give that address")
        if error.code in (401, 403):
            how = (
                "it does not take the key"
                if self.key is not None
                else "it wants a key: set the variable that --key names"
            )
            raise KeditError(f"judge: {self.shown_url}: {how} ({said})")
        if error.code in FATAL or not self._reached:
            raise KeditError(
                f"judge: {self.shown_url}: {said}\nIs it the address of an OpenAI-compatible API (.../v1)?"
            )
        raise Refused(said)

    def _unreachable(self, reason: Any) -> tuple[str, float]:
        """What it means that nothing came back."""
        if isinstance(reason, TimeoutError):
            return f"no reply in {self.timeout:g} s", 0.0
        said = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
        if not self._reached and isinstance(reason, ConnectionRefusedError | socket.gaierror):
            raise KeditError(f"url: {self.shown_url} cannot be reached: {said}; is the server running there?")
        return str(said), 0.0

    def _safe(self, text: str) -> str:
        """A server's text for a message, without the key."""
        return shown(text.replace(self.key, "***") if self.key else text, 200)


def _address(url: str) -> str:
    """Where requests go.

    Raises:
        KeditError: The URL cannot be one; a password in it is not repeated.
    """
    try:
        parts = urlsplit(url.strip())
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        parts, good = None, False
    if parts is None or not good:
        raise KeditError(f"url: {shown(url, 100)} is no address; give one such as http://localhost:8000/v1")
    if parts.username or parts.password:
        raise KeditError("url: it holds a user name or password; put the key into an environment variable (--key)")
    path = parts.path.rstrip("/")
    path = path if path.endswith(_PATH) else path + _PATH
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def _message(text: str) -> str:
    """The server's own words in the body of an error."""
    try:
        found = json.loads(text)
        inner = found.get("error", found) if isinstance(found, dict) else found
        return str(inner.get("message", inner) if isinstance(inner, dict) else inner)
    except ValueError:
        return text.strip()


def _retry_after(headers: Message) -> float:
    """Seconds that the server asks to wait; 0 where it does not say."""
    try:
        seconds = float(headers.get("Retry-After", 0))
    except ValueError:  # a date
        return 0.0
    return seconds if 0 < seconds < float("inf") else 0.0
