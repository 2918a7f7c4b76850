"""A call: what the parts on a request's way know of it, read once. Pure.

A ``Request`` is bytes. Its ``Call`` says what they mean: which endpoint, which model, streaming or
not, for whom, how urgent. The first part that needs it reads it (``named``); the others find it
there, and each adds the seconds it took to the call's ledger.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import msgspec
from msgspec.structs import replace

from ollamalab.errors import RequestRefused, SettingsError
from ollamalab.protocol.endpoints import Endpoint, endpoint_of
from ollamalab.protocol.forms import form_value
from ollamalab.protocol.names import parse_name
from ollamalab.protocol.packed import unpacked
from ollamalab.protocol.requests import decode_fields, go_mismatch
from ollamalab.protocol.upstream import Request

DEFAULT_PRIORITY = 5
LOWEST_PRIORITY = 9

#: What clients may send to the gateway; names in lower case, as everywhere.
PRIORITY_HEADER = "x-ollamalab-priority"
CLIENT_HEADER = "x-ollamalab-client"
DEADLINE_HEADER = "x-ollamalab-deadline-ms"
CACHE_CONTROL_HEADER = "cache-control"

#: What the gateway says on inference replies.
CACHE_HEADER = "x-ollamalab-cache"
UPSTREAM_HEADER = "x-ollamalab-upstream"
QUEUE_HEADER = "x-ollamalab-queue-ms"
TIMING_HEADER = "server-timing"

#: In a call's ledger once it has a place, or was refused one: the wait in the queue.
QUEUED = "queue"

_BAD_REQUEST, _NOT_FOUND = 400, 404
_MAX_CLIENT_CHARACTERS = 200
_MAX_DEADLINE_MS = 86_400_000  # a day
_MAX_DIGITS = 18  # Python refuses to read thousands


class Call(msgspec.Struct, kw_only=True):
    """One request, understood.

    Attributes:
        endpoint: Where it goes.
        fields: The body's JSON object, top-level names in lower case, nulls left out; empty for a
            request without one.
        model: The model as the client spelled it; "" if it names none.
        model_key: Equal for every spelling of one model (``ModelName.key``); "" without a model or if
            the text is no model name, which the upstream will refuse.
        is_stream: Whether the answer is to be streamed.
        client: Whom fairness counts it for: name of the API key, else ``X-Ollamalab-Client``, else the
            peer's address.
        tenant: Who shares cached answers: name of the API key, "" without keys.
        priority: 0 first to 9 last.
        deadline_s: Moment (``time.perf_counter``) after which nobody wants the answer; None = no limit.
        cache_control: ``Cache-Control`` as sent, "" if not.
        cache_outcome: What the cache did, as ``X-Ollamalab-Cache`` says it; "" if it is not known.
        ledger: Part to seconds that it took before the first byte, in order of passage.
        passage: What the part that counts places hears of this request; the part that knows where the
            request went may complete it. None without such a part.
        rest_until_s: Moment (``time.perf_counter``) before which the reader of the answer wants no more of
            it, except its end; a connection may gather what comes meanwhile. 0 = never mind.
    """

    endpoint: Endpoint
    fields: Mapping[str, Any] = {}
    model: str = ""
    model_key: str = ""
    is_stream: bool = False
    client: str = ""
    tenant: str = ""
    priority: int = DEFAULT_PRIORITY
    deadline_s: float | None = None
    cache_control: str = ""
    cache_outcome: str = ""
    ledger: dict[str, float] = {}
    passage: object | None = None
    rest_until_s: float = 0.0

    @property
    def options(self) -> Mapping[str, Any]:
        """The ``options`` of ``/api``; empty elsewhere and if they are no object."""
        options = self.fields.get("options")
        return options if isinstance(options, dict) else {}

    @property
    def num_predict(self) -> int | None:
        """Tokens asked for at most; None if open-ended or unreadable."""
        endpoint = self.endpoint
        holder = self.fields if endpoint.is_openai else self.fields.get("options")
        value = holder.get(endpoint.limit_field) if isinstance(holder, dict) else None
        return int(value) if isinstance(value, int | float) and value > 0 else None


class Heading(msgspec.Struct, frozen=True, kw_only=True):
    """What the head of a request says of its call. Clients send the same ones over and over.

    Attributes:
        endpoint: Where it goes.
        client: As ``X-Ollamalab-Client`` says it; "" if it does not.
        priority: 0 first to 9 last.
        deadline_ms: From its arrival; None = no limit.
        cache_control: ``Cache-Control`` as sent, "" if not.
        content_type: As sent, "" if not.
        has_fields: Whether the body says more: which model, streamed or not.
        is_packed: Whether the body is packed with zstd.
    """

    endpoint: Endpoint
    client: str
    priority: int
    deadline_ms: int | None
    cache_control: str
    content_type: str
    has_fields: bool
    is_packed: bool


def read_heading(path: str, headers: Mapping[str, str]) -> Heading:
    """Return what the head of a request says.

    Args:
        path: With its query, if any.
        headers: Names in lower case.

    Raises:
        RequestRefused: 404 for an unknown path, 400 for a header that cannot be read.
    """
    endpoint = endpoint_of(path.partition("?")[0])
    if endpoint is None:
        raise RequestRefused(_NOT_FOUND, "404 page not found")
    deadline_ms = _whole_number(headers, DEADLINE_HEADER, 1, _MAX_DEADLINE_MS)
    priority = _whole_number(headers, PRIORITY_HEADER, 0, LOWEST_PRIORITY)
    return Heading(
        endpoint=endpoint,
        client=headers.get(CLIENT_HEADER, "").strip()[:_MAX_CLIENT_CHARACTERS],
        priority=DEFAULT_PRIORITY if priority is None else priority,
        deadline_ms=deadline_ms,
        cache_control=headers.get(CACHE_CONTROL_HEADER, ""),
        content_type=headers.get("content-type", ""),
        has_fields=endpoint.names_model,
        is_packed=endpoint.takes_zstd and headers.get("content-encoding") == "zstd",  # exactly, as in Ollama
    )


def read_call(
    heading: Heading, body: bytes, *, client: str = "", tenant: str = "", arrived_s: float | None = None
) -> Call:
    """Return what a request means.

    Args:
        heading: What its head says.
        body: As it came.
        client: For whom it counts if there is neither a tenant nor a header that says.
        tenant: Holder of its API key: for whom it counts, and who shares cached answers with it.
        arrived_s: Moment from which a deadline counts (``time.perf_counter``); None ignores deadlines.

    Raises:
        RequestRefused: 400 for a body that cannot be read.
    """
    deadline_ms = heading.deadline_ms
    call = Call(
        endpoint=heading.endpoint,
        client=tenant or heading.client or client,
        tenant=tenant,
        priority=heading.priority,
        deadline_s=None if deadline_ms is None or arrived_s is None else arrived_s + deadline_ms / 1000,
        cache_control=heading.cache_control,
    )
    if heading.has_fields:
        if heading.endpoint.takes_form:
            _read_form(call, heading.content_type, body)
        else:
            _read_body(call, body, is_packed=heading.is_packed)
    return call


def named(request: Request, *, client: str = "", tenant: str = "", arrived_s: float | None = None) -> Request:
    """Return the request with its call; itself if it has one. Takes what ``read_call`` does.

    Raises:
        RequestRefused: As ``read_heading`` and ``read_call`` do.
    """
    if request.call is not None:
        return request
    heading = read_heading(request.path, request.headers)
    call = read_call(heading, request.body, client=client, tenant=tenant, arrived_s=arrived_s)
    return replace(request, call=call)


def call_of(request: Request) -> Call:
    """Return what a request means, read now if nobody has; raises what ``named`` raises."""
    call = request.call
    return read_call(read_heading(request.path, request.headers), request.body) if call is None else call


def _read_body(call: Call, body: bytes, *, is_packed: bool) -> None:
    endpoint = call.endpoint
    try:
        body = unpacked(body) if is_packed else body
        # Ollama would replace such bytes, and answer a question that nobody asked.
        body.decode()
        fields = decode_fields(body, endpoint.body_type)
    except UnicodeDecodeError as error:
        problem = f"the body is not UTF-8: {error.reason} at byte {error.start}"
        raise RequestRefused(_BAD_REQUEST, problem) from error
    except SettingsError as error:
        raise RequestRefused(_BAD_REQUEST, str(error)) from error
    model, stream = fields.get("model", ""), fields.get("stream", endpoint.streams_by_default)
    if not isinstance(model, str):
        raise RequestRefused(_BAD_REQUEST, go_mismatch(model, f"{endpoint.body_type}.model", "string"))
    if not isinstance(stream, bool):
        raise RequestRefused(_BAD_REQUEST, go_mismatch(stream, f"{endpoint.body_type}.stream", "bool"))
    call.fields, call.model, call.is_stream = fields, model, stream
    call.model_key = _key_of(model)


def _read_form(call: Call, content_type: str, body: bytes) -> None:
    model = form_value(body, content_type, "model")
    if not model:  # in Ollama's words, which would say the same, but perhaps of another reading
        raise RequestRefused(_BAD_REQUEST, "model is required")
    call.model, call.model_key = model, _key_of(model)


@lru_cache(maxsize=1024)
def _key_of(model: str) -> str:
    try:
        return parse_name(model).key if model else ""
    except SettingsError:
        return ""


def _whole_number(headers: Mapping[str, str], name: str, lowest: int, highest: int) -> int | None:
    text = headers.get(name)
    if text is None:
        return None
    is_short_number = text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS
    if not (is_short_number and lowest <= int(text) <= highest):
        raise RequestRefused(
            _BAD_REQUEST, f"{name} must be a whole number from {lowest} to {highest}, got {_shown(text)}"
        )
    return int(text)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
