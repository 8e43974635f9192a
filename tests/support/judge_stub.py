"""A stub of an OpenAI-compatible server, in a thread: it grades by a rule, and misbehaves as it is told."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Stub(ThreadingHTTPServer):
    """The server.

    Attributes:
        script: What the next requests get in place of a verdict: a status, `slow`, `garbage`, `closed`, `away`, `none`.
        seen: Bodies of the requests, in order.
        keys: Their Authorization headers.
        headers: More headers of an error.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script: list[int | str] = []
        self.seen: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.headers: dict[str, str] = {}
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        """What a user gives."""
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone away is no error."""


def grade(message: str) -> str:
    """A reply: right where the expected answer stands in what was said, unreadable where that says `muddle`."""
    asked = json.loads(message)
    if "muddle" in asked["said"]:
        return "I would say it is right."
    right = asked["expected"].lower() in asked["said"].lower()
    return f"It {'states' if right else 'does not state'} it.\nVERDICT: {'RIGHT' if right else 'WRONG'}"


class _Handler(BaseHTTPRequestHandler):
    server: Stub  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.seen.append(body | {"path": self.path})
            self.server.keys.append(self.headers.get("Authorization"))
            step = self.server.script.pop(0) if self.server.script else "good"
        if step == "slow":
            time.sleep(0.6)
        if step == "closed":
            self.connection.close()
        elif step == "away":
            self._send(307, "", {"Location": "http://elsewhere.example/v1"})
        elif isinstance(step, int):
            error = {"error": {"message": f"told to say {step}, key {self.headers.get('Authorization')}"}}
            self._send(step, json.dumps(error), self.server.headers)
        elif step == "garbage":
            self._send(200, "<html>a proxy says hello")
        else:
            said = None if step == "none" else grade(body["messages"][1]["content"])
            self._send(200, json.dumps({"choices": [{"message": {"role": "assistant", "content": said}}]}))

    def _send(self, status: int, text: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


@contextmanager
def stub_server() -> Iterator[Stub]:
    """A server that runs inside the block."""
    server = Stub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
