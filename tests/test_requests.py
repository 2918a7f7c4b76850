"""Bodies are read as Ollama reads them; the words of refusals were recorded from a real Ollama 0.33."""

import re

import msgspec
import pytest

from ollamalab.errors import SettingsError
from ollamalab.protocol.durations import FOREVER_S
from ollamalab.protocol.requests import (
    ChatRequest,
    EmbeddingRequest,
    EmbedRequest,
    GenerateRequest,
    Message,
    ShowRequest,
    decode_body,
    decode_fields,
)


def test_streams_unless_told_otherwise() -> None:
    assert decode_body(b"{}", GenerateRequest).stream
    assert decode_body(b'{"stream": null}', ChatRequest).stream
    assert not decode_body(b'{"stream": false}', ChatRequest).stream


def test_only_the_first_value_counts_whatever_its_case() -> None:
    body = decode_body(b'{"MODEL": "a", "Stream": false, "foo": 1} {"model": "b"} xyz', GenerateRequest)
    assert (body.model, body.stream) == ("a", False)
    assert decode_body(b'{"model": "a", "model": "b"}', GenerateRequest).model == "b"


def test_null_is_absent() -> None:
    assert decode_body(b"null", ChatRequest) == ChatRequest()
    body = decode_body(
        b'{"messages": [null, {"role": "USER", "content": null}], "options": null}', ChatRequest
    )
    assert body.messages == [Message(), Message(role="user")]
    assert body.options == {}


@pytest.mark.parametrize(
    ("type_name", "text", "fields"),
    [
        (
            "GenerateRequest",
            b'{"prompt":"a","prompt":null,"raw":true,"RAW":null}',
            {"prompt": "a", "raw": True},
        ),
        ("GenerateRequest", b'{"context":[1],"context":null,"options":{"a":1},"options":null}', {}),
        ("ChatRequest", b'{"think":true,"think":null,"logprobs":true,"logprobs":null}', {"logprobs": True}),
        ("ChatCompletionRequest", b'{"logprobs":true,"logprobs":null,"stop":"a","stop":null}', {}),
        ("ChatRequest", b'{"messages":[{"role":null}],"Options":{"a":null},"format":null} {}', None),
    ],
)
def test_null_after_a_value_empties_only_what_can_be_nil_in_go(
    type_name: str, text: bytes, fields: dict[str, object] | None
) -> None:
    expected = {"messages": [{"role": None}], "options": {"a": None}} if fields is None else fields
    assert decode_fields(text, type_name) == expected


@pytest.mark.parametrize(
    ("body", "options"),
    [
        (b'{"options":{"seed":1,"top_k":2},"options":{"seed":3}}', {"seed": 3, "top_k": 2}),
        (b'{"options":{"seed":1},"Options":{"top_k":2}}', {"seed": 1, "top_k": 2}),
        (b'{"options":{"seed":1},"options":null,"options":{"top_k":2}}', {"top_k": 2}),
        (b'{"options":{"seed":1},"options":7}', 7),
        (b'{"tools":[{"options":{}}],"options":{"options":{"a":1}}}', {"options": {"a": 1}}),
    ],
)
def test_options_given_more_than_once_add_up_as_in_go(body: bytes, options: object) -> None:
    assert decode_fields(body, "ChatRequest")["options"] == options


def test_numbers_behind_a_null_are_read_as_before_it() -> None:
    big = b'{"seed":18446744073709551617,"x":1e2,"y":0.1,"z":-0,"stop":%b}'
    assert decode_fields(big % b"null") == {
        name: value for name, value in decode_fields(big % b"1").items() if name != "stop"
    }


def test_an_empty_context_is_not_an_absent_one() -> None:
    assert decode_body(b"{}", GenerateRequest).context is None
    assert decode_body(b'{"context": []}', GenerateRequest).context == []


@pytest.mark.parametrize(
    ("text", "seconds"), [(b"0", 0.0), (b'"10m"', 600.0), (b"-1", FOREVER_S), (b"1.5", 1.5), (b"null", None)]
)
def test_keep_alive_is_read_to_seconds(text: bytes, seconds: float | None) -> None:
    assert decode_body(b'{"keep_alive": %b}' % text, EmbedRequest).keep_alive == seconds


@pytest.mark.parametrize(
    ("data", "kind", "words"),
    [
        (b"", GenerateRequest, "missing request body"),
        (b" \n", ChatRequest, "missing request body"),
        (b'{"model":', GenerateRequest, "unexpected EOF"),
        (b'{"model":"a', GenerateRequest, "unexpected EOF"),
        (b"{", ShowRequest, "unexpected EOF"),
        (b"{model:1}", GenerateRequest, "invalid character 'm' looking for beginning of object key string"),
        (b"x", GenerateRequest, "invalid character 'x' looking for beginning of value"),
        (b"[1]", GenerateRequest, "json: cannot unmarshal array into Go value of type api.GenerateRequest"),
        (b'"x"', GenerateRequest, "json: cannot unmarshal string into Go value of type api.GenerateRequest"),
        (
            b'{"model":5}',
            GenerateRequest,
            "json: cannot unmarshal number into Go struct field GenerateRequest.model of type string",
        ),
        (
            b'{"stream":"yes"}',
            GenerateRequest,
            "json: cannot unmarshal string into Go struct field GenerateRequest.stream of type bool",
        ),
        (
            b'{"options":[1]}',
            GenerateRequest,
            "json: cannot unmarshal array into Go struct field GenerateRequest.options of type "
            "map[string]interface {}",
        ),
        (
            b'{"context":"x"}',
            GenerateRequest,
            "json: cannot unmarshal string into Go struct field GenerateRequest.context of type []int",
        ),
        (
            b'{"images":"x"}',
            GenerateRequest,
            "json: cannot unmarshal string into Go struct field GenerateRequest.images of type "
            "[]api.ImageData",
        ),
        (
            b'{"messages":"x"}',
            ChatRequest,
            "json: cannot unmarshal string into Go struct field ChatRequest.messages of type []api.Message",
        ),
        (
            b'{"messages":[{"content":[{"type":"text"}]}]}',
            ChatRequest,
            "json: cannot unmarshal array into Go struct field ChatRequest.messages.content of type string",
        ),
        (
            b'{"tools":"x"}',
            ChatRequest,
            "json: cannot unmarshal string into Go struct field ChatRequest.tools of type api.Tools",
        ),
        (
            b'{"prompt":{}}',
            EmbeddingRequest,
            "json: cannot unmarshal object into Go struct field EmbeddingRequest.prompt of type string",
        ),
        (
            b'{"think":"invalid"}',
            ChatRequest,
            'invalid think value: "invalid" (must be "high", "medium", "low", "max", true, or false)',
        ),
        (
            b'{"think":5}',
            ChatRequest,
            'think must be a boolean or string ("high", "medium", "low", "max", true, or false)',
        ),
        (b'{"images":["!!!"]}', GenerateRequest, "illegal base64 data at input byte 0"),
        (b'{"messages":[{"images":["ab!!"]}]}', ChatRequest, "illegal base64 data at input byte 2"),
        (b'{"keep_alive":"3600"}', GenerateRequest, 'time: missing unit in duration "3600"'),
        (b'{"keep_alive":true}', ChatRequest, "Unsupported type: 'bool'"),
        (b'{"keep_alive":{}}', ChatRequest, "Unsupported type: 'map[string]interface {}'"),
    ],
)
def test_what_cannot_be_read_is_refused_in_ollama_s_words(
    data: bytes, kind: type[msgspec.Struct], words: str
) -> None:
    with pytest.raises(SettingsError, match=f"^{re.escape(words)}$"):
        decode_body(data, kind)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (b"NaN", "invalid character 'N' looking for beginning of value"),
        (b"-Infinity", "invalid character 'I' in numeric literal"),
        (b"1e400", "json: cannot unmarshal number 1e400 into Go value of type float64"),
        (b"1" * 5000, f"json: cannot unmarshal number {'1' * 40}... into Go value of type float64"),
        (b"[" * 50_000 + b"]" * 50_000, "exceeded max depth"),
    ],
)
def test_what_no_float_and_no_stack_can_hold_is_refused_too(value: bytes, words: str) -> None:
    """Python reads some of it, and fails at the rest with errors of its own."""
    with pytest.raises(SettingsError, match=f"^{re.escape(words)}$"):
        decode_body(b'{"options":{"seed":%b}}' % value, GenerateRequest)


@pytest.mark.parametrize("think", [True, False, "low", "medium", "high", "max"])
def test_every_way_to_think_is_understood(think: bool | str) -> None:
    assert decode_body(msgspec.json.encode({"think": think}), ChatRequest).think == think
