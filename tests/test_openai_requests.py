"""OpenAI's requests mean the Ollama requests that Ollama makes of them."""

import re
from typing import Any

import msgspec
import pytest

from ollamalab.errors import SettingsError
from ollamalab.protocol.openai import (
    ChatCompletionRequest,
    CompletionRequest,
    EmbeddingsRequest,
    to_chat,
    to_embed,
    to_generate,
)
from ollamalab.protocol.requests import ChatRequest, Message, ToolCall, ToolFunction, decode_body

HELLO = [{"role": "user", "content": "hello"}]


def chat(**fields: Any) -> ChatRequest:
    return to_chat(decode_body(msgspec.json.encode({"messages": HELLO, **fields}), ChatCompletionRequest))


def test_temperature_and_top_p_are_one_here_and_streams_are_asked_for() -> None:
    body = chat()
    assert body.options == {"temperature": 1.0, "top_p": 1.0}
    assert not body.stream
    assert body.keep_alive is None
    assert chat(stream=True).stream


def test_options_are_carried_over_and_unknown_fields_are_not() -> None:
    body = chat(
        max_tokens=7,
        seed=3,
        temperature=0,
        top_p=0.5,
        stop="x",
        frequency_penalty=0.1,
        presence_penalty=0.2,
        max_completion_tokens=99,
        n=2,
        options={"num_ctx": 99},
        keep_alive=0,
    )
    assert body.options == {
        "num_predict": 7,
        "seed": 3,
        "temperature": 0.0,
        "top_p": 0.5,
        "stop": ["x"],
        "frequency_penalty": 0.1,
        "presence_penalty": 0.2,
    }
    assert body.keep_alive is None


@pytest.mark.parametrize(
    ("effort", "think"),
    [
        ("none", False),
        ("minimal", "low"),
        ("medium", "medium"),
        ("xhigh", "max"),
        ("ultra", "max"),
        ("", None),
    ],
)
def test_reasoning_effort_becomes_think(effort: str, think: bool | str | None) -> None:
    assert chat(reasoning_effort=effort).think == think
    assert chat(reasoning={"effort": effort}).think == think


@pytest.mark.parametrize(
    ("wanted", "format"),
    [
        ({"type": "json_object"}, "json"),
        (
            {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}},
            {"type": "object"},
        ),
        ({"type": "text"}, None),
        ({"type": "xml"}, None),
    ],
)
def test_response_format_becomes_format(wanted: dict[str, Any], format: object) -> None:
    assert chat(response_format=wanted).format == format


def test_each_part_of_a_content_list_becomes_a_message() -> None:
    parts = [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}},
    ]
    body = chat(messages=[{"role": "User", "content": parts}])
    assert body.messages == [Message(role="user", content="look"), Message(role="user", images=["aGk="])]


def test_tool_calls_become_objects_and_a_result_gets_its_tool_s_name() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    body = chat(
        messages=[
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "2"},
        ]
    )
    called = ToolCall(function=ToolFunction(name="f", arguments={"a": 1}), id="c1")
    assert body.messages == [
        Message(role="assistant", tool_calls=[called]),
        Message(role="tool", content="2", tool_name="f", tool_call_id="c1"),
    ]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"messages": []}, "[] is too short - 'messages'"),
        ({"messages": [{"role": "user"}]}, "invalid message content type: <nil>"),
        ({"messages": [{"role": "user", "content": 5}]}, "invalid message content type: float64"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "invalid message format"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": "http://x/y.png"}]}
                ]
            },
            "image URLs are not currently supported, please use base64 encoded data instead",
        ),
        (
            {"reasoning_effort": "foo"},
            'invalid reasoning value: "foo" (must be "minimal", "low", "medium", "high", "xhigh", "ultra", '
            '"max", or "none")',
        ),
    ],
)
def test_what_cannot_be_answered_is_refused_in_ollama_s_words(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=f"^{re.escape(words)}$"):
        chat(**fields)


def test_a_completion_becomes_a_generate_request() -> None:
    body = to_generate(
        decode_body(b'{"prompt": "hi", "max_tokens": 3, "stop": ["a", 5], "top_p": 0}', CompletionRequest)
    )
    assert (body.prompt, body.stream) == ("hi", False)
    assert body.options == {
        "temperature": 1.0,
        "top_p": 1.0,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "num_predict": 3,
        "stop": ["a"],
    }


def test_an_empty_text_is_embedded_and_no_input_is_refused() -> None:
    assert to_embed(EmbeddingsRequest(input="")).input == [""]
    assert to_embed(EmbeddingsRequest(input=["a"], dimensions=3)).dimensions == 3
    for nothing in (None, []):
        with pytest.raises(SettingsError, match=r"^invalid input$"):
            to_embed(EmbeddingsRequest(input=nothing))
    with pytest.raises(SettingsError, match=r"^Invalid value for 'encoding_format' = x\."):
        to_embed(EmbeddingsRequest(input="a", encoding_format="x"))
