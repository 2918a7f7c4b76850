"""Request bodies of ``/api``, typed, and read as Ollama reads them.

Any content type is JSON; only the first JSON value counts; field names match in any case; null is
absent; unknown fields are ignored; what has the wrong type is refused in Go's words, because
clients and their users know those.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

import msgspec

from ollamalab.errors import SettingsError
from ollamalab.protocol.durations import parse_keep_alive_s

THINK_LEVELS = ("high", "medium", "low", "max")
MAX_TOP_LOGPROBS = 20

_THINK_FORMS = '"high", "medium", "low", "max", true, or false'


class ToolFunction(msgspec.Struct):
    """What a tool call calls; ``arguments`` is an object here and text under ``/v1``."""

    name: str = ""
    arguments: dict[str, Any] = {}
    index: int = 0


class ToolCall(msgspec.Struct):
    """One call of a tool, by the model or repeated to it."""

    function: ToolFunction
    id: str = ""


class Message(msgspec.Struct):
    """One message of a chat; ``role`` is lower case, ``images`` are base64."""

    role: str = ""
    content: str = ""
    thinking: str = ""
    images: list[str] = []
    tool_calls: list[ToolCall] = []
    tool_name: str = ""
    tool_call_id: str = ""


class _Inference(msgspec.Struct, kw_only=True):
    """Fields that ``/api/generate`` and ``/api/chat`` share.

    Attributes:
        format: None, "", "json" or a JSON schema.
        keep_alive: Seconds; None = unchanged.
        think: None = the model's default.
        truncate: Whether a history that is too long loses its oldest messages.
        shift: Whether generation goes on past the context; load-time, None = yes.
        logprobs: Whether each token's log probability is wanted.
        top_logprobs: Alternatives per token, 0-20.
    """

    model: str = ""
    stream: bool = True
    format: Any = None
    keep_alive: float | None = None
    options: dict[str, Any] = {}
    think: bool | str | None = None
    truncate: bool = True
    shift: bool | None = None
    logprobs: bool = False
    top_logprobs: int = 0


class GenerateRequest(_Inference, kw_only=True):
    """``POST /api/generate``; ``context`` is None if absent, which differs from empty."""

    prompt: str = ""
    suffix: str = ""
    system: str = ""
    template: str = ""
    context: list[int] | None = None
    raw: bool = False
    images: list[str] = []


class ChatRequest(_Inference, kw_only=True):
    """``POST /api/chat``."""

    messages: list[Message] = []
    tools: list[dict[str, Any]] = []


class EmbedRequest(msgspec.Struct, kw_only=True):
    """``POST /api/embed``; ``input`` is a text or a list of texts."""

    model: str = ""
    input: Any = None
    truncate: bool = True
    dimensions: int = 0
    keep_alive: float | None = None
    options: dict[str, Any] = {}


class EmbeddingRequest(msgspec.Struct, kw_only=True):
    """``POST /api/embeddings``, the older form of embed."""

    model: str = ""
    prompt: str = ""
    keep_alive: float | None = None
    options: dict[str, Any] = {}


class ShowRequest(msgspec.Struct, kw_only=True):
    """``POST /api/show``; ``name`` is the older spelling of ``model``."""

    model: str = ""
    name: str = ""
    system: str = ""
    verbose: bool = False
    options: dict[str, Any] = {}


class ModelRequest(msgspec.Struct, kw_only=True):
    """What the endpoints that change models have in common."""

    model: str = ""
    name: str = ""
    stream: bool = True


Body = TypeVar("Body", bound=msgspec.Struct)


def decode_body(data: bytes, kind: type[Body]) -> Body:
    """Return a request body.

    Args:
        data: The bytes as they came.
        kind: One of the structs here, or another whose name is Go's.

    Raises:
        SettingsError: Not JSON, or a field has the wrong type; Ollama's words, for a 400.
    """
    fields = decode_fields(data, kind.__name__)
    if "keep_alive" in fields:
        fields["keep_alive"] = parse_keep_alive_s(fields["keep_alive"])
    if "think" in fields:
        _check_think(fields["think"])
    messages = fields.get("messages")
    if isinstance(messages, list):
        fields["messages"] = [_message_fields(item) for item in messages]
    try:
        body = msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        raise SettingsError(_go_type_error(str(error), kind.__name__)) from error
    _check_images(body)
    return body


def decode_fields(data: bytes, type_name: str = "Request") -> dict[str, Any]:
    """Return a body's top-level fields by lower-case name, nulls left out; their types unchecked.

    Of a field given more than once the last counts, as in Go; unless that is null, which Go ignores for
    texts, numbers and flags, so that the one before stands. ``options`` add up.

    Args:
        data: The bytes as they came.
        type_name: Go's name of what it should be, for the message.

    Raises:
        SettingsError: Not a JSON object; Ollama's words, for a 400.
    """
    value = _first_value(data)
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise SettingsError(
            f"json: cannot unmarshal {_json_kind(value)} into Go value of type api.{type_name}"
        )
    fields = _folded(value)
    is_once = len(fields) == len(value) or not _may_repeat(value, type_name)
    if is_once and (_OPTIONS not in fields or data.count(b'"options"') < 2):
        return fields
    return _folded_in_order(data, type_name)


def _may_repeat(value: Mapping[str, Any], type_name: str) -> bool:
    """Whether the order of a body's fields may matter, or what stood before a null."""
    names = {key.lower() for key in value}
    plain = _PLAIN_FIELDS.get(type_name, _PLAIN_EVERYWHERE)
    return len(names) < len(value) or any(
        item is None and key.lower() in plain for key, item in value.items()
    )


def _folded_in_order(data: bytes, type_name: str) -> dict[str, Any]:
    """Return what ``_folded`` does, for a body that may give a field more than once.

    At a null Go keeps a field's earlier value, unless the field is one that can be nil: then it is nil.
    To a map, which ``options`` are, it adds.
    """
    pairs: list[tuple[str, Any]] = []

    def note(found: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal pairs
        pairs = found  # in the end those of the outermost object
        return dict(found)

    _lenient_value(data, note)
    kept = _PLAIN_FIELDS.get(type_name, _PLAIN_EVERYWHERE)
    fields: dict[str, Any] = {}
    for key, value in pairs:
        name = key.lower()
        before = fields.get(name)
        if name == _OPTIONS and isinstance(before, dict) and isinstance(value, dict):
            fields[name] = before | value
        elif value is not None:
            fields[name] = value
        elif name not in kept:
            fields.pop(name, None)
    return fields


_OPTIONS = "options"
_PLAIN_EVERYWHERE = ("model",)

#: By body, the fields that Go holds as plain values: no pointer, map, list or "any", which can be nil.
_PLAIN_FIELDS = {
    "GenerateRequest": (
        *("model", "prompt", "suffix", "system", "template"),
        *("raw", "logprobs", "top_logprobs", "_debug_render_only"),
    ),
    "ChatRequest": ("model", "logprobs", "top_logprobs", "_debug_render_only"),
    "EmbedRequest": ("model", "dimensions", "encoding_format"),
    "EmbeddingRequest": ("model", "prompt"),
    "ChatCompletionRequest": ("model", "stream", "top_logprobs", "_debug_render_only"),
    "CompletionRequest": (
        *("model", "prompt", "suffix", "stream", "top_p"),
        *("frequency_penalty", "presence_penalty", "_debug_render_only"),
    ),
    "ResponsesRequest": ("model", "instructions", "background"),
    "MessagesRequest": ("model", "stream", "max_tokens"),
}


def _folded(value: dict[str, Any]) -> dict[str, Any]:
    """Return fields by lower-case name, nulls left out: Go ignores case, and null changes nothing."""
    return {key.lower(): item for key, item in value.items() if item is not None}


def _message_fields(value: object) -> object:
    if value is None:
        return {}
    if not isinstance(value, dict):
        return value
    fields = _folded(value)
    if isinstance(role := fields.get("role"), str):
        fields["role"] = role.lower()
    return fields


def _first_value(data: bytes) -> Any:
    """Return the first JSON value, whatever follows it, as Go's decoder does."""
    try:
        return msgspec.json.decode(data)
    except RecursionError as error:
        raise SettingsError(TOO_DEEP) from error
    except (msgspec.DecodeError, ValueError):  # of no JSON, of no Unicode, of too many digits
        return _lenient_value(data)


def _lenient_value(
    data: bytes, object_of: Callable[[list[tuple[str, Any]]], dict[str, Any]] | None = None
) -> Any:
    """Return the first JSON value where msgspec would not: behind it, or in its numbers, is more.

    Args:
        data: The bytes as they came.
        object_of: Makes an object of its fields in order; None = the last of a name counts.
    """
    text = data.decode(errors="replace").lstrip(" \t\r\n")
    if not text:
        raise SettingsError("missing request body")
    decoder = json.JSONDecoder(
        object_pairs_hook=object_of, parse_float=_finite, parse_int=_whole, parse_constant=_no_number
    )
    try:
        value, _end = decoder.raw_decode(text)
    except json.JSONDecodeError as error:
        raise SettingsError(_go_syntax_error(error)) from error
    except RecursionError as error:
        raise SettingsError(TOO_DEEP) from error
    return value


#: Ollama's words for objects within objects too deep; that is 10,000 levels in Go, and fewer here.
TOO_DEEP = "exceeded max depth"


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        shown = digits if len(digits) <= _SHOWN_DIGITS else f"{digits[:_SHOWN_DIGITS]}..."
        raise SettingsError(f"json: cannot unmarshal number {shown} into Go value of type float64")
    return value


def _whole(digits: str) -> int:
    return int(digits) if len(digits) <= sys.float_info.max_10_exp else int(_finite(digits))


def _no_number(name: str) -> NoReturn:
    place = "in numeric literal" if name.startswith("-") else "looking for beginning of value"
    raise SettingsError(f"invalid character '{name.lstrip('-')[0]}' {place}")


_SHOWN_DIGITS = 40


_AFTER = {
    "Expecting property name": "looking for beginning of object key string",
    "Expecting ':'": "after object key",
    "Expecting ','": "after value",
    "Illegal trailing comma before end of object": "looking for beginning of object key string",
    "Invalid control character": "in string literal",
    "Invalid \\escape": "in string escape code",
}


def _go_syntax_error(error: json.JSONDecodeError) -> str:
    if error.pos >= len(error.doc.rstrip()) or error.msg.startswith("Unterminated string"):
        return "unexpected EOF"
    place = next((words for start, words in _AFTER.items() if error.msg.startswith(start)), None)
    return f"invalid character '{error.doc[error.pos]}' {place or 'looking for beginning of value'}"


def _check_think(value: object) -> None:
    if isinstance(value, str) and value not in THINK_LEVELS:
        raise SettingsError(f'invalid think value: "{value}" (must be {_THINK_FORMS})')
    if not isinstance(value, bool | str):
        raise SettingsError(f"think must be a boolean or string ({_THINK_FORMS})")


def _check_images(body: msgspec.Struct) -> None:
    images = list(getattr(body, "images", ()))
    for message in getattr(body, "messages", ()):
        images += getattr(message, "images", ())
    for image in images:
        try:
            base64.b64decode(image, validate=True)
        except (binascii.Error, ValueError) as error:
            legal = _BASE64.match(image)
            raise SettingsError(f"illegal base64 data at input byte {legal.end() if legal else 0}") from error


_BASE64 = re.compile(r"[A-Za-z0-9+/]*")

_GO_FIELDS = {
    "options": "map[string]interface {}",
    "messages": "[]api.Message",
    "tools": "api.Tools",
    "images": "[]api.ImageData",
    "tool_calls": "[]api.ToolCall",
}
_GO_ELEMENTS = {"messages": "api.Alias"}
_GO_TYPES = {"str": "string", "float": "float64", "array": "[]int", "object": "map[string]interface {}"}
_JSON_KINDS = {"str": "string", "int": "number", "float": "number", "bool": "bool", "array": "array"}
_MISFIT = re.compile(r"Expected `(\w+)[^`]*`, got `(\w+)`(?: - at `\$\.?(.*)`)?")


def _go_type_error(text: str, struct: str) -> str:
    """Return Go's wording of msgspec's "Expected `str`, got `int` - at `$.model`"."""
    misfit = _MISFIT.match(text)
    if misfit is None:
        return text
    wanted, got, path = misfit.groups()
    names = [name for name in re.split(r"[.\[\]]+", path or "") if name and not name.isdigit()]
    last = names[-1] if names else ""
    is_whole = not (path or "").endswith("]")
    known = _GO_FIELDS if is_whole else _GO_ELEMENTS
    go_type = known.get(last) or _GO_TYPES.get(wanted, wanted)
    field = ".".join([struct, *names])
    return (
        f"json: cannot unmarshal {_JSON_KINDS.get(got, got)} into Go struct field {field} of type {go_type}"
    )


def go_mismatch(value: object, field: str, go_type: str) -> str:
    """Return Go's words for a field of the wrong type, such as "ChatRequest.model" that is no string."""
    return f"json: cannot unmarshal {_json_kind(value)} into Go struct field {field} of type {go_type}"


def _json_kind(value: object) -> str:
    kinds = ((bool, "bool"), (int | float, "number"), (str, "string"), (list, "array"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "object")
