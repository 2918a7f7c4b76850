"""Single requests whose answers are compared: paths, verbs, headers, bad input, each kind of good answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: Stands for the model in bodies and paths.
MODEL = "{model}"

_SHORT = {"num_predict": 3, "temperature": 0, "num_ctx": 512}
_TOO_LONG = "word " * 2000


@dataclass(frozen=True)
class Case:
    """One request.

    Attributes:
        name: Names the answer in the recording.
        method: Verb.
        path: With MODEL for the model.
        body: JSON value, with MODEL for the model; or bytes as they are.
        headers: Beside the usual ones.
        depth: How deep the answer is compared.
    """

    name: str
    method: str
    path: str
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    depth: int = 9


def _get(path: str, *, depth: int = 9, **headers: str) -> Case:
    named = "".join(f" {name}={value}" for name, value in headers.items())
    return Case(f"GET {path}{named}", "GET", path, headers=headers, depth=depth)


def _generate(name: str, **body: Any) -> Case:
    return Case(f"generate, {name}", "POST", "/api/generate", {"model": MODEL, **body})


def _chat(name: str, **body: Any) -> Case:
    return Case(f"chat, {name}", "POST", "/api/chat", {"model": MODEL, **body})


def _v1(name: str, path: str, **body: Any) -> Case:
    return Case(f"v1 {path}, {name}", "POST", f"/v1/{path}", {"model": MODEL, **body})


_HELLO = [{"role": "user", "content": "Say hello."}]
_ONCE: dict[str, Any] = {"prompt": "Say hello.", "options": _SHORT}
_SAY: dict[str, Any] = {"messages": _HELLO, "options": _SHORT}
_SAY_V1: dict[str, Any] = {"messages": _HELLO, "max_tokens": 3, "temperature": 0}
_TOOL = {"type": "function", "function": {"name": "f", "description": "f", "parameters": {"type": "object"}}}

SURFACE = (
    _get("/"),
    Case("HEAD /", "HEAD", "/"),
    _get("/api/version"),
    Case("HEAD /api/version", "HEAD", "/api/version"),
    _get("/api/tags", depth=2),
    Case("HEAD /api/tags", "HEAD", "/api/tags"),
    Case("HEAD /api/ps", "HEAD", "/api/ps"),
    _get("/v1/models", depth=2),
    _get("/v1/models/{model}"),
    _get("/v1/models/no-such-model"),
    Case("HEAD /v1/models", "HEAD", "/v1/models"),
    _get("/no/such/path"),
    _get("/API/TAGS"),
    Case("HEAD /no/such/path", "HEAD", "/no/such/path"),
    _get("/api/generate"),
    Case("POST /api/tags", "POST", "/api/tags", {}),
    Case("DELETE /", "DELETE", "/"),
    _get("/api/tags/"),
    Case("POST /api/generate/", "POST", "/api/generate/", {}),
    _get("/", Host="example.com"),
    _get("/", Host="localhost:11434"),
    _get("/no/such/path", Host="example.com"),
    _get("/api/tags", depth=1, Origin="http://localhost:3000"),
    _get("/api/tags", Origin="http://evil.example"),
    Case(
        "preflight from localhost",
        "OPTIONS",
        "/api/chat",
        headers={"Origin": "http://localhost:3000", "Access-Control-Request-Method": "POST"},
    ),
    Case(
        "preflight from elsewhere",
        "OPTIONS",
        "/api/chat",
        headers={"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"},
    ),
    Case("OPTIONS without Origin", "OPTIONS", "/api/chat"),
    Case("show", "POST", "/api/show", {"model": MODEL}, depth=1),
    Case("show, by name", "POST", "/api/show", {"name": MODEL}, depth=1),
    Case("show, unknown", "POST", "/api/show", {"model": "no-such-model"}),
    Case("show, no model", "POST", "/api/show", {}),
)

GENERATE = (
    _generate("stream", **_ONCE),
    _generate("in one piece", **_ONCE, stream=False),
    _generate("stream null", **_ONCE, stream=None),
    _generate("raw", **_ONCE, raw=True, stream=False),
    _generate("raw with template", **_ONCE, raw=True, template="x"),
    _generate("system", **_ONCE, system="Be short.", stream=False),
    _generate("format json", **_ONCE, format="json", stream=False),
    _generate("format unknown", **_ONCE, format="xml"),
    _generate("logprobs", **_ONCE, logprobs=True, top_logprobs=2, stream=False),
    _generate("top_logprobs too many", **_ONCE, logprobs=True, top_logprobs=21),
    _generate("suffix", **_ONCE, suffix="x"),
    _generate("think", **_ONCE, think=True),
    _generate("think unreadable", **_ONCE, think="loud"),
    _generate("think a number", **_ONCE, think=5),
    _generate("render only", **_ONCE, _debug_render_only=True),
    _generate("preload"),
    _generate("unload", keep_alive=0),
    _generate("keep_alive without unit", **_ONCE, keep_alive="3600"),
    _generate("keep_alive empty", **_ONCE, keep_alive=""),
    _generate("keep_alive true", **_ONCE, keep_alive=True),
    _generate("unknown option", prompt="x", options=_SHORT | {"mirostat": 1}, stream=False),
    _generate("option of a wrong type", prompt="x", options={"top_k": "many"}),
    _generate("option null", prompt="x", options=_SHORT | {"top_k": None}, stream=False),
    _generate("stop of a wrong type", prompt="x", options={"stop": [1]}),
    _generate("prompt of a wrong type", prompt=5),
    _generate("options of a wrong type", prompt="x", options=[1]),
    _generate("too long, truncate off", prompt=_TOO_LONG, options=_SHORT, truncate=False),
    _generate("too long, shift off", prompt=_TOO_LONG, options=_SHORT, shift=False),
    _generate("too long", prompt=_TOO_LONG, options=_SHORT, stream=False),
    Case("generate, unknown model", "POST", "/api/generate", {"model": "no-such-model", "prompt": "x"}),
    Case("generate, bad name", "POST", "/api/generate", {"model": "a b", "prompt": "x"}),
    Case("generate, no model", "POST", "/api/generate", {"prompt": "x"}),
    Case("generate, no body", "POST", "/api/generate"),
    Case("generate, cut body", "POST", "/api/generate", b'{"model":'),
    Case("generate, no JSON", "POST", "/api/generate", b"{model:1}"),
    Case("generate, a list", "POST", "/api/generate", b"[1]"),
    Case("generate, null", "POST", "/api/generate", b"null"),
)

CHAT = (
    _chat("stream", **_SAY),
    _chat("in one piece", **_SAY, stream=False),
    _chat("logprobs", **_SAY, logprobs=True, stream=False),
    _chat(
        "schema", **_SAY, format={"type": "object", "properties": {"a": {"type": "integer"}}}, stream=False
    ),
    _chat("preload"),
    _chat("preload, empty list", messages=[]),
    _chat("unload", keep_alive=0),
    _chat("unload, streamed or not", messages=[], keep_alive=0, stream=False),
    _chat("tools", **_SAY, tools=[_TOOL]),
    _chat("no tools", **_SAY, tools=[], stream=False),
    _chat("think", **_SAY, think="high"),
    _chat("unknown role", messages=[{"role": "bard", "content": "x"}], options=_SHORT, stream=False),
    _chat("no content", messages=[{"role": "user"}], options=_SHORT, stream=False),
    _chat("a message that is a string", messages=["x"]),
    _chat("content of a wrong type", messages=[{"role": "user", "content": 5}]),
    _chat("messages of a wrong type", messages="x"),
    _chat("a bad image", messages=[{"role": "user", "content": "x", "images": ["***"]}]),
    _chat("option of a wrong type", messages=_HELLO, options={"temperature": "hot"}),
    _chat("top_logprobs below 0", **_SAY, top_logprobs=-1),
    _chat("too long", messages=[{"role": "user", "content": _TOO_LONG}], options=_SHORT, truncate=False),
    Case("chat, no model", "POST", "/api/chat", {"messages": _HELLO}),
    Case("chat, unknown model", "POST", "/api/chat", {"model": "no-such-model", "messages": _HELLO}),
    Case("chat, no body", "POST", "/api/chat"),
)

EMBED = (
    Case("embed, empty input", "POST", "/api/embed", {"model": MODEL, "input": ""}),
    Case("embed, no input", "POST", "/api/embed", {"model": MODEL}),
    Case("embed, a number", "POST", "/api/embed", {"model": MODEL, "input": 5}),
    Case("embed, a chat model", "POST", "/api/embed", {"model": MODEL, "input": "x"}),
    Case("embed, unknown model", "POST", "/api/embed", {"model": "no-such-model", "input": "x"}),
    Case("embed, no model", "POST", "/api/embed", {"input": "x"}),
    Case("embeddings, empty prompt", "POST", "/api/embeddings", {"model": MODEL, "prompt": ""}),
    Case("embeddings, a chat model", "POST", "/api/embeddings", {"model": MODEL, "prompt": "x"}),
    Case("embeddings, no model", "POST", "/api/embeddings", {"prompt": "x"}),
    Case("embeddings, unknown model", "POST", "/api/embeddings", {"model": "no-such-model", "prompt": "x"}),
)

OPENAI = (
    _v1("in one piece", "chat/completions", **_SAY_V1),
    _v1("stream", "chat/completions", **_SAY_V1, stream=True),
    _v1(
        "stream with usage",
        "chat/completions",
        **_SAY_V1,
        stream=True,
        stream_options={"include_usage": True},
    ),
    _v1("logprobs", "chat/completions", **_SAY_V1, logprobs=True),
    _v1("no messages", "chat/completions"),
    _v1("no content", "chat/completions", messages=[{"role": "user"}]),
    _v1("content a number", "chat/completions", messages=[{"role": "user", "content": 5}]),
    _v1("unreadable effort", "chat/completions", **_SAY_V1, reasoning_effort="foo"),
    _v1("tools", "chat/completions", **_SAY_V1, tools=[_TOOL]),
    _v1("in one piece", "completions", prompt="Hello", max_tokens=3, temperature=0),
    _v1("stream", "completions", prompt="Hello", max_tokens=3, temperature=0, stream=True),
    _v1("no prompt", "completions"),
    _v1("prompt a list", "completions", prompt=["a"]),
    _v1("a chat model", "embeddings", input="x"),
    _v1("no input", "embeddings"),
    _v1("bad encoding", "embeddings", input="x", encoding_format="hex"),
    Case("v1 chat, no body", "POST", "/v1/chat/completions"),
    Case("v1 chat, no model", "POST", "/v1/chat/completions", {"messages": _HELLO}),
    Case("v1 chat, unknown model", "POST", "/v1/chat/completions", {"model": "no-such", "messages": _HELLO}),
    Case("v1 completions, no model", "POST", "/v1/completions", {"prompt": "x"}),
    Case("v1 embeddings, no model", "POST", "/v1/embeddings", {"input": "x"}),
)

CASES = (*SURFACE, *GENERATE, *CHAT, *EMBED, *OPENAI)
