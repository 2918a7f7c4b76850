"""What goes wrong has the status and the form that the client's API promises."""

from __future__ import annotations

import json

import pytest

from ollamalab import errors
from ollamalab.errors import (
    BadReply,
    NoUpstream,
    OllamaLabError,
    QueueFull,
    RequestRefused,
    SettingsError,
    ShareExceeded,
    UpstreamTimeout,
    UpstreamUnavailable,
    WaitTimeout,
)
from ollamalab.gateway.failures import error_line, failure_of
from ollamalab.protocol.lines import StreamTail


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RequestRefused(413, "x"), 413),
        (SettingsError("x"), 400),
        (ShareExceeded("x"), 429),
        (QueueFull("x"), 503),
        (WaitTimeout("x"), 504),
        (UpstreamTimeout("x"), 504),
        (UpstreamUnavailable("x"), 503),
        (BadReply("x"), 503),
        (OllamaLabError("x"), 500),
    ],
)
@pytest.mark.parametrize("is_openai", [False, True])
def test_each_failure_has_its_status_and_the_form_of_its_api(
    error: OllamaLabError, status: int, is_openai: bool
):
    failure = failure_of(error, is_openai=is_openai)
    assert failure.status == status
    body = json.loads(failure.body)
    assert (body["error"]["message"] if is_openai else body["error"]) == "x"
    assert failure.headers["content-type"].startswith("application/json")


@pytest.mark.parametrize(("wait_s", "header"), [(None, None), (0.0, "1"), (0.2, "1"), (7.1, "8")])
@pytest.mark.parametrize("kind", [QueueFull, NoUpstream])
def test_what_will_pass_says_when_to_come_back_in_whole_seconds(
    kind: type[QueueFull | NoUpstream], wait_s: float | None, header: str | None
):
    failure = failure_of(kind("x", retry_after_s=wait_s), is_openai=False)
    assert failure.status == 503
    assert failure.headers.get("retry-after") == header


def test_every_error_of_ours_becomes_a_status():
    """A new kind of error is answered too, never a hang-up."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    with_more = (errors.RequestRefused, errors.UpstreamRejected, errors.OutOfRange)
    made = [kind for kind in kinds if kind not in with_more]
    assert {failure_of(kind("x"), is_openai=False).status for kind in made} <= {400, 429, 500, 503, 504}


def test_a_broken_ndjson_stream_ends_with_an_error_line():
    line = error_line(BadReply("gone"), is_openai=False, is_mid_line=False)
    assert line == b'{"error":"gone"}\n'


def test_a_stream_that_broke_inside_a_line_ends_that_line_first():
    stream = b'{"response":"hal' + error_line(BadReply("gone"), is_openai=False, is_mid_line=True)
    assert json.loads(stream.splitlines()[-1]) == {"error": "gone"}


@pytest.mark.parametrize("begun", [b"", b'data: {"choi', b'data: {"choices":[]}\n'])
def test_a_broken_sse_stream_ends_with_an_event_of_its_own(begun: bytes):
    tail = StreamTail(is_openai=True)
    tail.feed(begun)
    stream = begun + error_line(BadReply("gone"), is_openai=True, is_mid_line=tail.is_mid_line)
    event = stream.split(b"\n\n")[-2].strip()
    assert json.loads(event.removeprefix(b"data: "))["error"]["message"] == "gone"
    assert stream.endswith(b"\n\n")
