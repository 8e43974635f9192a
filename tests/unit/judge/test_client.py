"""A judge's endpoint against a stub: what is sent, tried again, or ends it; and that the key is never told."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kedit.errors import KeditError
from kedit.judge.client import Endpoint, Refused
from kedit.judge.prompt import user_message
from tests.support.judge_stub import Stub, stub_server

KEY = "sk-very-secret-5f2d"
GOOD = user_message("The capital is", "Rome", "Rome")


@pytest.fixture
def stub() -> Iterator[Stub]:
    with stub_server() as server:
        yield server


def endpoint(stub: Stub, pauses: list[float], **more: object) -> Endpoint:
    return Endpoint(stub.url, "judge-1", KEY, timeout=0.3, sleep=pauses.append, **more)  # type: ignore[arg-type]


def test_what_is_sent(stub: Stub) -> None:
    reply = endpoint(stub, []).reply("Grade.", GOOD)
    assert reply.endswith("VERDICT: RIGHT")
    (body,) = stub.seen
    assert body == {
        "model": "judge-1",
        "messages": [{"role": "system", "content": "Grade."}, {"role": "user", "content": GOOD}],
        "temperature": 0,
        "max_tokens": 512,
        "path": "/v1/chat/completions",
    }
    assert stub.keys == [f"Bearer {KEY}"]
    Endpoint(f"{stub.url}/chat/completions/?version=3", "judge-1", tokens=None).reply("Grade.", GOOD)
    assert stub.seen[1]["path"] == "/v1/chat/completions?version=3"
    assert "max_tokens" not in stub.seen[1]
    assert stub.keys[1] is None


@pytest.mark.parametrize("step", [429, 500, 503, 408, "garbage", "slow", "closed"])
def test_what_is_tried_again(stub: Stub, step: int | str) -> None:
    stub.script = [step, step]
    pauses: list[float] = []
    assert endpoint(stub, pauses).reply("Grade.", GOOD).endswith("RIGHT")
    assert len(stub.seen) == 3
    assert 0.75 <= pauses[0] <= 1.25
    assert 1.5 <= pauses[1] <= 2.5


def test_a_server_says_how_long_to_wait(stub: Stub) -> None:
    stub.script, stub.headers = [429, 429], {"Retry-After": "7"}
    pauses: list[float] = []
    endpoint(stub, pauses).reply("Grade.", GOOD)
    assert pauses == [7.0, 7.0]


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (429, "status 429"),
        ("garbage", "a reply that is no chat completion: '<html>a proxy says hello'"),
        ("slow", r"no reply in 0\.3 s"),
    ],
)
def test_patience_ends(stub: Stub, step: int | str, message: str) -> None:
    stub.script = [step] * 9
    with pytest.raises(KeditError, match=message) as raised:
        endpoint(stub, [], retries=2).reply("Grade.", GOOD)
    assert str(raised.value).endswith("3 times in a row")
    assert len(stub.seen) == 3
    assert KEY not in str(raised.value)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (401, "it does not take the key"),
        (404, "status 404"),
        (400, "status 400"),
        ("away", "sends requests on to 'http://elsewhere.example/v1'; give that address"),
    ],
)
def test_what_ends_it_at_once(stub: Stub, step: int | str, message: str) -> None:
    stub.script = [step]
    with pytest.raises(KeditError, match=message) as raised:
        endpoint(stub, []).reply("Grade.", GOOD)
    assert len(stub.seen) == 1
    assert KEY not in str(raised.value)
    assert KEY not in repr(endpoint(stub, []))


def test_one_request_may_be_refused(stub: Stub) -> None:
    judge = endpoint(stub, [])
    judge.reply("Grade.", GOOD)
    stub.script = [400]
    with pytest.raises(Refused, match="told to say 400") as raised:
        judge.reply("Grade.", GOOD)
    assert KEY not in str(raised.value)


def test_a_model_that_says_nothing(stub: Stub) -> None:
    stub.script = ["none"]
    assert endpoint(stub, []).reply("Grade.", GOOD) == ""


def test_nobody_is_there(stub: Stub) -> None:
    judge = endpoint(stub, [])
    stub.server_close()
    with pytest.raises(KeditError, match=r"^url: .* cannot be reached: .*; is the server running there\?"):
        judge.reply("Grade.", GOOD)


def test_a_server_that_goes_away_is_waited_for() -> None:
    pauses: list[float] = []
    with stub_server() as stub:
        judge = endpoint(stub, pauses, retries=2)
        judge.reply("Grade.", GOOD)
    with pytest.raises(KeditError, match="3 times in a row"):
        judge.reply("Grade.", GOOD)
    assert len(pauses) == 2


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://host/v1", "http://", "http://host:port/v1", "host", "https://["]
)
def test_no_address(url: str) -> None:
    with pytest.raises(KeditError, match=r"^url: .* is no address; give one such as"):
        Endpoint(url, "judge-1")


def test_a_password_in_the_address_is_not_repeated() -> None:
    with pytest.raises(KeditError, match="user name or password") as raised:
        Endpoint("https://me:secret@host/v1", "judge-1")
    assert "secret" not in str(raised.value)
    assert Endpoint("https://host/v1?code=secret", "judge-1").shown_url == "https://host/v1/chat/completions"
