"""What is compared of an answer, and what is not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from shapes import Answer, shape_of


def shape(body: str, content_type: str = "application/json", **headers: str) -> dict[str, Any]:
    answer = Answer(200, {"content-type": content_type, **headers}, body.encode())
    return shape_of(answer, model="Some:model")


def test_values_of_the_moment_become_their_kinds() -> None:
    body = {
        "created_at": "2026-11-21T10:15:51.603233662Z",
        "expires_at": "2026-11-21T10:15:51+01:00",
        "digest": "ab" * 32,
        "blob": "sha256:" + "ab" * 32,
        "response": "",
        "text": "Hello",
        "n": 5,
        "x": 0.5,
        "done": True,
        "template": None,
    }
    assert shape(json.dumps(body))["json"] == [
        ["created_at", "UTC moment"],
        ["expires_at", "moment with offset"],
        ["digest", "digest"],
        ["blob", "sha256:digest"],
        ["response", "empty string"],
        ["text", "string"],
        ["n", "integer"],
        ["x", "number"],
        ["done", True],
        ["template", None],
    ]


def test_texts_of_the_protocol_stay_and_the_model_is_named_alike() -> None:
    assert shape('{"error":"model \'Some:model\' not found"}')["json"] == [
        ["error", "text: model '{model}' not found"]
    ]
    assert shape('{"model":"Some:model"}') == shape('{"model":"Some:model"}')
    assert shape('{"model":"Some:model"}') != shape('{"model":"some:MODEL"}')


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('{"a":1,"b":2}', '{"b":2,"a":1}'),
        ('{"a":1}', '{"a":1}\n'),
        ('{"a":1}', '{"a":null}'),
        ('{"error":"x"}', '{"error":"y"}'),
    ],
    ids=["order of fields", "newline at the end", "kind of a value", "text of an error"],
)
def test_what_a_client_may_notice_is_a_difference(one: str, other: str) -> None:
    assert shape(one) != shape(other)


def test_how_many_lines_a_stream_has_is_no_difference() -> None:
    lines = ['{"response":"a","done":false}'] * 3 + ['{"response":"","done":true,"done_reason":"stop"}']
    long = shape("\n".join(lines) + "\n", "application/x-ndjson")
    short = shape("\n".join(lines[2:]) + "\n", "application/x-ndjson")
    assert long == short
    assert len(long["lines"]) == 2


def test_events_keep_their_names_and_their_end() -> None:
    events = shape('data: {"id":"x"}\n\ndata: [DONE]\n\n', "text/event-stream")["events"]
    assert events == [["", [["id", "string"]]], ["", "[DONE]"]]


def test_only_headers_that_say_something_are_compared() -> None:
    assert shape("{}", date="now", vary="Origin")["headers"] == {
        "content-type": "application/json",
        "vary": "Origin",
    }
    # Go cuts a long answer into chunks on its own account; for a stream chunks are the protocol.
    assert "transfer-encoding" not in shape("{}", **{"transfer-encoding": "chunked"})["headers"]
    stream = shape("{}\n", "application/x-ndjson", **{"transfer-encoding": "chunked"})
    assert "transfer-encoding" in stream["headers"]


def test_other_bodies_are_compared_as_they_are() -> None:
    assert shape("404 page not found", "text/plain")["text"] == "404 page not found"
    assert "text" not in shape("", "text/plain")
