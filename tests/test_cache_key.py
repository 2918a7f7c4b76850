"""The cache key, both ways: the same question has the same key, another question another."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollamalab.cache.key import cache_key
from ollamalab.protocol.calls import call_of, named
from ollamalab.protocol.upstream import Request

DIGEST = "d" * 64
QUESTION: dict[str, Any] = {
    "model": "smollm2:135m",
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi."}],
    "options": {"num_ctx": 2048, "temperature": 0.5, "seed": 1, "stop": ["\n"]},
    "format": {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "number"}}},
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"x": 1, "y": 2}}}],
    "think": False,
}


def key(
    body: dict[str, Any] | bytes, path: str = "/api/chat", tenant: str = "", digest: str = DIGEST
) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    call = call_of(named(Request(method="POST", path=path, body=data), tenant=tenant))
    found = cache_key(call, digest)
    assert found is not None
    return found


def shuffled(value: Any, order: Any) -> Any:
    """Return objects with their fields in another order, except where the order has a meaning."""
    if isinstance(value, dict):
        names = order(list(value))
        return {
            name: value[name] if name in ("format", "tools", "tool_calls") else shuffled(value[name], order)
            for name in names
        }
    return [shuffled(item, order) for item in value] if isinstance(value, list) else value


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
)
options = st.dictionaries(st.sampled_from(["num_ctx", "seed", "temperature", "top_k", "stop", "x"]), scalars)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", "tool"]), "content": texts},
        optional={"images": st.lists(texts, max_size=2), "thinking": texts, "tool_name": texts},
    ),
    min_size=1,
    max_size=4,
)
bodies = st.fixed_dictionaries(
    {"model": st.just("m"), "messages": messages},
    optional={
        "options": options,
        "format": st.sampled_from(["json", {"type": "object"}, {"type": "string"}]),
        "tools": st.lists(st.fixed_dictionaries({"type": st.just("function"), "n": texts}), max_size=2),
        "think": st.sampled_from([True, False, "low", "high"]),
        "unknown": scalars,
    },
)


@given(bodies, st.randoms(use_true_random=False))
def test_the_order_of_fields_is_not_part_of_the_question(body: dict[str, Any], random: Any) -> None:
    def order(names: list[str]) -> list[str]:
        return random.sample(names, len(names))

    assert key(shuffled(body, order)) == key(body)


def meaning(body: dict[str, Any]) -> Any:
    """Return a body so that two are equal exactly if they mean the same.

    True is not 1, as in JSON; 1 is 1.0 only among the options, where Ollama takes either.
    """

    def typed(value: Any, *, are_numbers_one: bool = False) -> Any:
        if isinstance(value, bool) or (isinstance(value, int | float) and not are_numbers_one):
            return (type(value), value)
        if isinstance(value, dict):
            return {
                name: typed(item, are_numbers_one=are_numbers_one or name == "options")
                for name, item in value.items()
            }
        return [typed(item) for item in value] if isinstance(value, list) else value

    told = {name: value for name, value in body.items() if value is not None}
    if "options" in told:
        told["options"] = {name: value for name, value in told["options"].items() if value is not None}
        if not told["options"]:
            del told["options"]
    return typed(told)


@given(bodies, bodies)
def test_two_questions_have_one_key_exactly_if_they_mean_the_same(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    assert (key(one) == key(other)) == (meaning(one) == meaning(other))


@given(bodies, st.data())
def test_any_other_value_anywhere_is_another_question(body: dict[str, Any], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([name for name in body if name != "model"]))
    value = data.draw(bodies.filter(lambda other: name in other))[name]
    changed = {**body, name: value}
    assert (key(changed) == key(body)) == (meaning(changed) == meaning(body))


@pytest.mark.parametrize("name", ["num_ctx", "num_predict", "seed", "temperature", "num_gpu", "whatever"])
def test_no_option_is_left_out_num_ctx_included(name: str) -> None:
    """LiteLLM leaves ``num_ctx`` out of its key: a long prompt gets the answer of a cut one."""
    one = {**QUESTION, "options": {name: 2048}}
    other = {**QUESTION, "options": {name: 4096}}
    absent = {**QUESTION, "options": {}}
    assert len({key(one), key(other), key(absent)}) == 3


@pytest.mark.parametrize("name", ["options", "format", "tools", "think", "messages"])
def test_nothing_native_is_dropped(name: str) -> None:
    """SOLLOL's key drops ``options``, ``format``, ``tools``: asked for JSON, one gets somebody's prose."""
    rest = {field: value for field, value in QUESTION.items() if field != name}
    assert key(rest) != key(QUESTION)


@pytest.mark.parametrize(
    "name", ["system", "template", "suffix", "context", "raw", "images", "shift", "truncate", "logprobs"]
)
def test_every_field_of_generate_counts(name: str) -> None:
    bare = {"model": "m", "prompt": "Hi."}
    value: Any = {"context": [1, 2], "images": ["QUJD"], "raw": True, "shift": False, "truncate": False}.get(
        name, "x"
    )
    assert key({**bare, name: value}, "/api/generate") != key(bare, "/api/generate")


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","messages":[{"role":"user","content":"x"}],"options":{"temperature":1,"seed":10}}',
        b'{"model":"m","messages":[{"role":"user","content":"x"}],"options":{"temperature":1.0,"seed":1e1}}',
        b'{"MODEL":"M:latest","Messages":[{"Role":"USER","content":"x"}],"options":{"seed":10.0,"temperature":1e0}}',
        b'{"model":"library/m","messages":[{"content":"x","role":"user","thinking":null}],'
        b'"options":{"seed":10,"temperature":1,"top_k":null},"format":null}',
        b'{"model":"m","stream":false,"keep_alive":"5m",'
        b'"messages":[{"role":"user","content":"\\u0078"}],"options":{"temperature":1,"seed":10}}',
    ],
)
def test_spelling_is_not_part_of_the_question(body: bytes) -> None:
    """Number forms, letter case, the ``:latest`` tag, null, escapes; stream and keep_alive."""
    plain = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    assert key(body) == key({**plain, "options": {"temperature": 1, "seed": 10}})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"options": {"seed": 2**53}}, {"options": {"seed": 2**53 + 1}}),
        ({"options": {"use_mmap": True}}, {"options": {"use_mmap": 1}}),
        ({"options": {"Seed": 1}}, {"options": {"seed": 1}}),
        ({"options": {"num_ctx": "2048"}}, {"options": {"num_ctx": 2048}}),
        ({"think": "low"}, {"think": True}),
        ({"context": []}, {}),
        (
            {"format": {"properties": {"a": {}, "b": {}}}},
            {"format": {"properties": {"b": {}, "a": {}}}},
        ),
        ({"tools": [{"a": 1, "b": 2}]}, {"tools": [{"b": 2, "a": 1}]}),
    ],
)
def test_what_only_looks_alike_is_another_question(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Beyond float precision, types, the case of options, and orders that reach the model."""
    assert key({**QUESTION, **one}) != key({**QUESTION, **other})


def test_the_order_of_a_tool_calls_arguments_reaches_the_prompt() -> None:
    def told(arguments: dict[str, int]) -> dict[str, Any]:
        call = {"function": {"name": "f", "arguments": arguments}}
        return {"model": "m", "messages": [{"role": "assistant", "content": "", "tool_calls": [call]}]}

    assert key(told({"a": 1, "b": 2})) != key(told({"b": 2, "a": 1}))


def test_endpoints_tenants_and_digests_have_keys_of_their_own() -> None:
    paths = ("/api/chat", "/api/generate", "/v1/chat/completions", "/v1/completions")
    keys = {key(QUESTION, path) for path in paths}
    keys |= {key(QUESTION, tenant="a"), key(QUESTION, tenant="b"), key(QUESTION, digest="e" * 64)}
    assert len(keys) == 7


def test_names_of_one_digest_share_their_answers() -> None:
    assert key({**QUESTION, "model": "copy"}) == key(QUESTION)


def test_asking_for_usage_is_the_same_question() -> None:
    asked = {**QUESTION, "stream": True, "stream_options": {"include_usage": True}}
    assert key(asked, "/v1/chat/completions") == key(QUESTION, "/v1/chat/completions")


def test_openais_numbers_are_one_where_go_takes_both_forms() -> None:
    def told(**fields: Any) -> bytes:
        return key({**QUESTION, **fields}, "/v1/chat/completions")

    assert told(temperature=1) == told(temperature=1.0)
    assert told(max_tokens=1) != told(max_tokens=1.0)  # the second is a 400 of Ollama's


def test_text_that_is_no_unicode_has_no_key() -> None:
    body = b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}]}'
    assert cache_key(call_of(Request(method="POST", path="/api/chat", body=body)), DIGEST) is None


@pytest.mark.parametrize(
    "messages", [[5], ["x"], [None], [{"role": []}], [{"role": {}, "content": 1}], {}, "x"]
)
def test_any_json_has_a_key(messages: Any) -> None:
    """It is the upstream that says what is wrong with it."""
    assert len(key({"model": "m", "messages": messages})) == 32
