"""What makes two requests the same question: the cache key. Pure.

Every field counts, those that Ollama does not know included: a field too many costs a miss, one too
few gives somebody another question's answer. Left out are only the model's spelling, for which its
digest stands, and what changes no word of the answer: ``stream``, ``stream_options``, ``keep_alive``.

The same are: fields in another order, field names and roles in another case, null and absent, and in
``options`` 1, 1.0 and 1e0. *Not* the same is another order inside ``tools``, ``format``,
``response_format`` and the arguments of tool calls: there it reaches the model, in its prompt or as
the order in which a grammar lets it write.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import msgspec

from ollamalab.protocol.calls import Call

#: Part of every key; another number, and everything kept so far is forgotten.
KEY_SCHEMA = 1

_UNTOLD = frozenset(("model", "stream", "stream_options", "keep_alive"))
_IN_ORDER = frozenset(("tools", "format", "response_format"))
#: Go's float fields under ``/v1``; for its integers 1.0 is an error, so there 1 and 1.0 differ.
_FLOATS = frozenset(("temperature", "top_p", "frequency_penalty", "presence_penalty"))
_PLAIN_ROLES = ("user", "assistant", "system", "tool")  # no set: what is sent may have no hash
_INT64 = 2**63

_in_order = msgspec.json.Encoder().encode
_sorted = msgspec.json.Encoder(order="deterministic").encode


def cache_key(call: Call, digest: str) -> bytes | None:
    """Return the key of a call: equal for the same question to the same model by the same tenant.

    Args:
        call: Of a generating endpoint; each endpoint has keys of its own.
        digest: Of the model that will answer.

    Returns:
        32 bytes (SHA-256); None for text that is no Unicode (a lone surrogate), which has no key.
    """
    fields = {
        name: _canonical_field(name, value) for name, value in call.fields.items() if name not in _UNTOLD
    }
    if fields.get("options") == {}:
        del fields["options"]
    try:
        question = _sorted((KEY_SCHEMA, call.endpoint.path, digest, call.tenant, fields))
    except UnicodeEncodeError:
        return None
    return sha256(question).digest()


def _canonical_field(name: str, value: Any) -> Any:
    if name == "messages" and isinstance(value, list):
        return [_canonical_message(message) for message in value]
    if name == "options" and isinstance(value, dict):
        return {key: _canonical_number(item) for key, item in value.items() if item is not None}
    if name in _IN_ORDER:
        return msgspec.Raw(_in_order(value))
    return _canonical_number(value) if name in _FLOATS else value


def _canonical_message(message: Any) -> Any:
    if not isinstance(message, dict):
        return message
    if len(message) == 2 and message.get("role") in _PLAIN_ROLES and message.get("content") is not None:
        return message  # nearly all of them, and half of the key's cost
    fields: Mapping[str, Any] = {key.lower(): item for key, item in message.items() if item is not None}
    role = fields.get("role")
    canonical = dict(fields)
    if isinstance(role, str):
        canonical["role"] = role.lower()
    if "tool_calls" in fields:
        canonical["tool_calls"] = msgspec.Raw(_in_order(fields["tool_calls"]))
    return canonical


def _canonical_number(value: Any) -> Any:
    if type(value) is float and value.is_integer() and -_INT64 <= value < _INT64:
        return int(value)
    return value
