"""What a request means is read once, as Ollama would read it."""

from __future__ import annotations

import re
from typing import Any

import pytest

from ollamalab.errors import RequestRefused
from ollamalab.protocol.calls import Call, call_of, named, read_call, read_heading
from ollamalab.protocol.endpoints import ENDPOINTS, Kind, endpoint_of
from ollamalab.protocol.packed import MAX_UNPACKED_BYTES, zstd
from ollamalab.protocol.upstream import Request


def request_to(path: str, body: bytes = b"", **headers: str) -> Request:
    named_headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return Request(method="POST", path=path, headers=named_headers, body=body)


def read(request: Request, **known: Any) -> Call:
    return read_call(read_heading(request.path, request.headers), request.body, **known)


def test_a_request_is_read_once():
    """A named request keeps its call; naming it again gives the very same one."""
    request = named(request_to("/api/chat", b'{"model":"m"}'))
    assert named(request) is request
    assert call_of(request) is request.call


@pytest.mark.parametrize(
    ("path", "body", "is_stream"),
    [
        ("/api/chat", b'{"model":"m"}', True),
        ("/api/generate", b'{"model":"m","stream":null}', True),
        ("/api/generate", b'{"model":"m","Stream":false}', False),
        ("/v1/chat/completions", b'{"model":"m"}', False),
        ("/v1/completions", b'{"model":"m","stream":true}', True),
        ("/api/embed", b'{"model":"m"}', False),
    ],
)
def test_streaming_is_the_default_only_where_it_is_ollamas(path: str, body: bytes, is_stream: bool):
    assert call_of(request_to(path, body)).is_stream is is_stream


@pytest.mark.parametrize(
    ("path", "body", "model", "is_stream"),
    [
        ("/api/chat", b'{"model":"m","model":null}', "m", True),
        ("/api/chat", b'{"model":"m","MODEL":null}', "m", True),
        ("/api/chat", b'{"model":"m","model":null,"Model":"n"}', "n", True),
        ("/api/chat", b'{"Model":"m","model":"n","Model":"o"}', "o", True),
        ("/api/chat", b'{"model":null}', "", True),
        ("/api/chat", b'{"model":"m","stream":false,"stream":null}', "m", True),
        ("/v1/completions", b'{"model":"m","stream":true,"stream":null}', "m", True),
        ("/v1/responses", b'{"model":"m","stream":true,"stream":null}', "m", False),
        ("/v1/messages", b'{"model":"m","stream":true,"stream":null}', "m", True),
    ],
)
def test_of_a_field_given_twice_null_takes_nothing_back_unless_it_does_in_go(
    path: str, body: bytes, model: str, is_stream: bool
):
    """With its model taken back a request had none, and passed the queue by."""
    call = call_of(request_to(path, body))
    assert (call.model, call.is_stream) == (model, is_stream)
    assert bool(call.model_key) is bool(model)


@pytest.mark.parametrize("spelling", ["SmolLM2", "smollm2:latest", "library/smollm2", "SMOLLM2:Latest"])
def test_every_spelling_of_a_model_has_one_key(spelling: str):
    call = call_of(request_to("/api/chat", b'{"MODEL":"%s"}' % spelling.encode()))
    assert call.model == spelling
    assert call.model_key == "registry.ollama.ai/library/smollm2:latest"


def test_a_text_that_is_no_model_name_is_left_to_the_server():
    call = call_of(request_to("/api/chat", b'{"model":"a b"}'))
    assert (call.model, call.model_key) == ("a b", "")


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/api/chat", b"", "missing request body"),
        ("/api/chat", b"{", "unexpected EOF"),
        ("/api/chat", b'{"model": "\xff"}', "the body is not UTF-8: invalid start byte at byte 11"),
        ("/api/chat", b"[]", "json: cannot unmarshal array into Go value of type api.ChatRequest"),
        (
            "/api/generate",
            b'{"model": 7}',
            "json: cannot unmarshal number into Go struct field GenerateRequest.model of type string",
        ),
        (
            "/api/chat",
            b'{"stream": "yes"}',
            "json: cannot unmarshal string into Go struct field ChatRequest.stream of type bool",
        ),
    ],
)
def test_a_body_that_cannot_be_read_is_refused_in_ollamas_words(path: str, body: bytes, words: str):
    with pytest.raises(RequestRefused, match=re.escape(words)) as caught:
        named(request_to(path, body))
    assert caught.value.status == 400


@pytest.mark.parametrize("value", ["10", "-1", "five", "", "１", "5 ", "0" * 5000])
def test_a_priority_outside_0_to_9_is_refused_by_name_and_value(value: str):
    with pytest.raises(RequestRefused, match="x-ollamalab-priority must be a whole number from 0 to 9"):
        named(request_to("/api/chat", b"{}", x_ollamalab_priority=value))


def test_headers_say_how_urgent_and_for_whom():
    request = request_to(
        "/api/chat",
        b"{}",
        x_ollamalab_priority="0",
        x_ollamalab_client=" batch ",
        x_ollamalab_deadline_ms="250",
        cache_control="no-cache",
    )
    call = read(request, client="10.0.0.7", arrived_s=100.0)
    assert (call.priority, call.client, call.cache_control) == (0, "batch", "no-cache")
    assert call.deadline_s == pytest.approx(100.25)


def test_a_client_without_a_name_counts_by_its_address():
    assert read(request_to("/api/chat", b"{}"), client="10.0.0.7").client == "10.0.0.7"


def test_the_holder_of_a_key_cannot_pass_for_another():
    """With a key, the name in a header is ignored: it would move one's load to somebody else."""
    request = request_to("/api/chat", b"{}", x_ollamalab_client="somebody")
    call = read(request, client="10.0.0.7", tenant="alice")
    assert (call.client, call.tenant) == ("alice", "alice")


@pytest.mark.parametrize(
    ("path", "body", "tokens"),
    [
        ("/api/chat", b'{"options":{"num_predict":32}}', 32),
        ("/api/chat", b'{"options":{"num_predict":-1}}', None),
        ("/api/chat", b'{"options":"much"}', None),
        ("/api/chat", b"{}", None),
        ("/v1/chat/completions", b'{"max_tokens":7}', 7),
        ("/v1/chat/completions", b'{"options":{"num_predict":32}}', None),
        ("/v1/messages", b'{"max_tokens":9}', 9),
        ("/v1/responses", b'{"max_output_tokens":8,"max_tokens":7}', 8),
    ],
)
def test_the_length_asked_for_is_read_where_each_api_has_it(path: str, body: bytes, tokens: int | None):
    assert call_of(request_to(path, body)).num_predict == tokens


def test_an_unknown_path_is_refused_in_the_words_of_ollamas_router():
    with pytest.raises(RequestRefused, match="404 page not found") as caught:
        named(request_to("/api/nothing", b"{}"))
    assert caught.value.status == 404


def test_a_packed_body_of_responses_is_read_and_passes_on_untouched():
    """Ollama takes zstd there."""
    packed = zstd.compress(b'{"model":"m","stream":true,"max_output_tokens":9}')
    request = named(request_to("/v1/responses", packed, content_encoding="zstd"))
    assert request.body == packed
    call = call_of(request)
    assert (call.model, call.is_stream, call.num_predict) == ("m", True, 9)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"model":"m"}', "failed to decompress zstd body"),
        (zstd.compress(b'{"model":"m"}')[:-1], "unexpected EOF"),
        (zstd.compress(bytes(MAX_UNPACKED_BYTES + 1)), "http: request body too large"),
        (zstd.compress(b'{"model":'), "unexpected EOF"),
    ],
)
def test_a_packed_body_that_cannot_be_read_is_refused(body: bytes, words: str):
    with pytest.raises(RequestRefused, match=words) as caught:
        call_of(request_to("/v1/responses", body, content_encoding="zstd"))
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("path", "encoding"),
    [("/v1/responses", "gzip"), ("/v1/responses", "ZSTD"), ("/v1/messages", "zstd"), ("/api/chat", "zstd")],
)
def test_a_body_that_only_claims_to_be_compressed_is_read(path: str, encoding: str):
    """Ollama reads it as it stands; with its model unread it would pass the queue by."""
    assert call_of(request_to(path, b'{"model":"m"}', content_encoding=encoding)).model == "m"


FORM = b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper\r\n--x--\r\n'


def test_a_form_names_its_model():
    headers = {"content_type": "multipart/form-data; boundary=x"}
    call = call_of(request_to("/v1/audio/transcriptions", FORM, **headers))
    assert (call.model, call.model_key) == ("whisper", "registry.ollama.ai/library/whisper:latest")
    assert (call.is_stream, call.fields) == (False, {})


@pytest.mark.parametrize("body", [b"", b"--x--\r\n", b'{"model":"m"}'])
def test_a_form_without_a_model_is_refused_as_ollama_does_and_passes_no_queue_by(body: bytes):
    with pytest.raises(RequestRefused, match="model is required") as caught:
        named(request_to("/v1/audio/transcriptions", body, content_type="multipart/form-data; boundary=x"))
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", Kind.READING),
        ("/api/chat", Kind.GENERATION),
        ("/v1/completions", Kind.GENERATION),
        ("/v1/embeddings", Kind.EMBEDDING),
        ("/v1/responses", Kind.GENERATION),
        ("/v1/messages", Kind.GENERATION),
        ("/v1/audio/transcriptions", Kind.GENERATION),
        ("/v1/models/smollm2:135m", Kind.READING),
        ("/api/blobs/sha256:00", Kind.CHANGE),
        ("/api/delete", Kind.CHANGE),
    ],
)
def test_each_path_has_its_kind(path: str, kind: Kind):
    endpoint = endpoint_of(path)
    assert endpoint is not None
    assert endpoint.kind is kind


@pytest.mark.parametrize(
    "path",
    [
        *("/api", "/api/chat/", "/API/chat", "/v1/models/", "/api/blobs/", "", "x"),
        *("/v1/models/../../metrics", "/v1/models/%2e%2E/x", "/v1/models/..%2fx", "/v1/models/a/./b"),
    ],
)
def test_paths_that_ollama_does_not_know_are_nothing(path: str):
    assert endpoint_of(path) is None


def test_what_names_its_events_generates_and_is_never_cached():
    assert {path for path, endpoint in ENDPOINTS.items() if endpoint.names_events} == {
        "/v1/responses",
        "/v1/messages",
    }
    cached = {path for path, endpoint in ENDPOINTS.items() if endpoint.is_cached}
    assert cached == {"/api/generate", "/api/chat", "/v1/chat/completions", "/v1/completions"}


def test_only_generation_under_api_streams_by_default():
    streaming = {path for path, endpoint in ENDPOINTS.items() if endpoint.streams_by_default}
    assert streaming == {"/api/generate", "/api/chat", "/api/pull", "/api/push", "/api/create"}
