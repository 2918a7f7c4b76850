"""What each path of an Ollama server is for. Pure.

Source: Ollama's ``server/routes.go`` (v0.33) and its replies to unknown paths and wrong verbs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from urllib.parse import unquote


class Kind(StrEnum):
    """What a request does there."""

    GENERATION = "generation"  #: text from a model, streamed or whole
    EMBEDDING = "embedding"  #: vectors from a model
    READING = "reading"  #: lists and descriptions; no model works
    CHANGE = "change"  #: downloads, makes or removes models


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """One path.

    Attributes:
        path: Without query; "/api/blobs/" and "/v1/models/" stand for all that begins so.
        kind: What a request does there.
        methods: Those that the path knows; any other is a 405.
        streams_by_default: Whether a body without ``stream`` asks for a stream.
        body_type: Go's name of the body, which errors mention.
        limit_field: Field that says how many tokens the answer may have; one of ``options`` under ``/api``.
        is_cached: Whether its answers may be kept and given again.
        names_events: Whether the events of its streams have names (``event: ...``) and types, the last of
            which ends the stream where others have ``[DONE]``.
        takes_form: Whether its body is a form instead of JSON.
        takes_zstd: Whether its body may be packed with zstd.
        is_openai: Whether errors and streams have the forms of ``/v1``: OpenAI's errors, SSE for NDJSON.
        names_model: Whether the body says which model is wanted, and that model works.
    """

    path: str
    kind: Kind
    methods: tuple[str, ...] = ("POST",)
    streams_by_default: bool = False
    body_type: str = "Request"
    limit_field: str = "num_predict"
    is_cached: bool = False
    names_events: bool = False
    takes_form: bool = False
    takes_zstd: bool = False
    is_openai: bool = field(init=False)
    names_model: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "is_openai", self.path.startswith("/v1/"))
        names_model = self.kind in (Kind.GENERATION, Kind.EMBEDDING)
        object.__setattr__(self, "names_model", names_model)


_READ = ("GET", "HEAD")
_GET = ("GET",)

_ENDPOINTS = (
    Endpoint(path="/", kind=Kind.READING, methods=_READ),
    Endpoint(path="/api/version", kind=Kind.READING, methods=_READ),
    Endpoint(path="/api/tags", kind=Kind.READING, methods=_READ),
    Endpoint(path="/api/status", kind=Kind.READING, methods=_GET),
    Endpoint(path="/api/ps", kind=Kind.READING, methods=_GET),
    Endpoint(path="/api/show", kind=Kind.READING),
    Endpoint(
        path="/api/generate",
        kind=Kind.GENERATION,
        streams_by_default=True,
        body_type="GenerateRequest",
        is_cached=True,
    ),
    Endpoint(
        path="/api/chat",
        kind=Kind.GENERATION,
        streams_by_default=True,
        body_type="ChatRequest",
        is_cached=True,
    ),
    Endpoint(path="/api/embed", kind=Kind.EMBEDDING, body_type="EmbedRequest"),
    Endpoint(path="/api/embeddings", kind=Kind.EMBEDDING, body_type="EmbeddingRequest"),
    Endpoint(path="/api/pull", kind=Kind.CHANGE, streams_by_default=True),
    Endpoint(path="/api/push", kind=Kind.CHANGE, streams_by_default=True),
    Endpoint(path="/api/create", kind=Kind.CHANGE, streams_by_default=True),
    Endpoint(path="/api/copy", kind=Kind.CHANGE),
    Endpoint(path="/api/delete", kind=Kind.CHANGE, methods=("DELETE",)),
    Endpoint(
        path="/v1/chat/completions",
        kind=Kind.GENERATION,
        body_type="ChatCompletionRequest",
        limit_field="max_tokens",
        is_cached=True,
    ),
    Endpoint(
        path="/v1/completions",
        kind=Kind.GENERATION,
        body_type="CompletionRequest",
        limit_field="max_tokens",
        is_cached=True,
    ),
    Endpoint(
        path="/v1/responses",
        kind=Kind.GENERATION,
        body_type="ResponsesRequest",
        limit_field="max_output_tokens",
        names_events=True,
        takes_zstd=True,
    ),
    Endpoint(
        path="/v1/messages",
        kind=Kind.GENERATION,
        body_type="MessagesRequest",
        limit_field="max_tokens",
        names_events=True,
    ),
    Endpoint(path="/v1/audio/transcriptions", kind=Kind.GENERATION, takes_form=True),
    Endpoint(path="/v1/embeddings", kind=Kind.EMBEDDING, body_type="EmbedRequest"),
    Endpoint(path="/v1/models", kind=Kind.READING, methods=_GET),
)

#: Every fixed path, by itself.
ENDPOINTS: Mapping[str, Endpoint] = MappingProxyType({entry.path: entry for entry in _ENDPOINTS})

_PREFIXES = (
    Endpoint(path="/api/blobs/", kind=Kind.CHANGE, methods=("HEAD", "POST")),
    Endpoint(path="/v1/models/", kind=Kind.READING, methods=_GET),
)


def endpoint_of(path: str) -> Endpoint | None:
    """Return what a path is for; None if Ollama knows no such path.

    Args:
        path: Without its query.
    """
    known = ENDPOINTS.get(path)
    if known is not None:
        return known
    return next((entry for entry in _PREFIXES if _is_below(path, entry.path)), None)


def _is_below(path: str, prefix: str) -> bool:
    """Whether a path goes on after a prefix; not by dots, which a proxy before a server would follow away."""
    rest = path[len(prefix) :]
    return path.startswith(prefix) and bool(rest) and not {".", ".."} & set(unquote(rest).split("/"))
