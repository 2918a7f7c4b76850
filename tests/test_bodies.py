"""llama.cpp is asked what Ollama would ask it."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollamalab.embedded.bodies import chat_body, closed_schema, completion_body, schema_of, shortened_prompt
from ollamalab.errors import SettingsError
from ollamalab.protocol.options import Options
from ollamalab.protocol.requests import Message, ToolCall, ToolFunction

USER = Message(role="user", content="hi")


def test_every_sampling_option_reaches_the_engine() -> None:
    options = Options(
        num_keep=1, seed=2, num_predict=3, top_k=4, top_p=0.5, min_p=0.6, typical_p=0.7, repeat_last_n=8,
        temperature=0.9, repeat_penalty=1.1, presence_penalty=1.2, frequency_penalty=1.3, stop=("x",),
    )  # fmt: skip
    sampling = {
        "n_keep": 1, "seed": 2, "n_predict": 3, "top_k": 4, "top_p": 0.5, "min_p": 0.6, "typical_p": 0.7,
        "repeat_last_n": 8, "temperature": 0.9, "repeat_penalty": 1.1, "presence_penalty": 1.2,
        "frequency_penalty": 1.3, "stop": ("x",), "stream": True, "cache_prompt": True,
    }  # fmt: skip
    assert completion_body("p", options, num_ctx=512) == {"prompt": "p", **sampling}
    chat = chat_body([USER], options, num_ctx=512)
    assert chat == {"messages": [{"role": "user", "content": "hi"}], **sampling}


def test_no_tokens_asked_for_is_left_to_the_engine_in_completions_only() -> None:
    """As in Ollama, where 0 generates to the end in one path and one token in the other."""
    assert "n_predict" not in completion_body("p", Options(num_predict=0), num_ctx=512)
    assert chat_body([USER], Options(num_predict=0), num_ctx=512)["n_predict"] == 0


@pytest.mark.parametrize(("top", "asked"), [(0, 1), (1, 1), (20, 20)])
def test_the_engine_is_asked_for_an_alternative_at_least(top: int, asked: int) -> None:
    chat = chat_body([USER], Options(), num_ctx=512, logprobs=True, top_logprobs=top)
    assert (chat["logprobs"], chat["top_logprobs"]) == (True, asked)
    assert completion_body("p", Options(), num_ctx=512, logprobs=True, top_logprobs=top)["n_probs"] == asked
    assert "logprobs" not in chat_body([USER], Options(), num_ctx=512, top_logprobs=top)


@pytest.mark.parametrize(
    ("think", "arguments"),
    [
        (None, None),
        (False, {"enable_thinking": False}),
        (True, {"enable_thinking": True}),
        ("high", {"enable_thinking": True, "reasoning_effort": "high"}),
    ],
)
def test_think_becomes_arguments_of_the_template(think: bool | str | None, arguments: object) -> None:
    assert chat_body([USER], Options(), num_ctx=512, think=think).get("chat_template_kwargs") == arguments


def test_tool_calls_and_results_are_repeated_in_openai_s_form() -> None:
    call = ToolCall(function=ToolFunction(name="f", arguments={"b": 1, "a": "é"}), id="c1")
    body = chat_body(
        [
            Message(role="assistant", tool_calls=[call]),
            Message(role="tool", content="2", tool_name="f", tool_call_id="c1"),
        ],
        Options(),
        num_ctx=512,
        tools=[{"type": "function"}],
    )
    called = {"name": "f", "arguments": '{"b":1,"a":"é"}'}
    assert body["messages"] == [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "c1", "index": 0, "type": "function", "function": called}],
        },
        {"role": "tool", "content": "2", "tool_call_id": "c1", "name": "f"},
    ]
    assert body["tools"] == [{"type": "function"}]


def test_images_become_parts_with_their_kind() -> None:
    messages = [Message(role="user", content="look", images=["iVBORw0KGgoAAA", "xyz"])]
    (message,) = chat_body(messages, Options(), num_ctx=512)["messages"]
    assert [part["type"] for part in message["content"]] == ["text", "image_url", "image_url"]
    urls = [part["image_url"]["url"] for part in message["content"][1:]]
    assert urls == ["data:image/png;base64,iVBORw0KGgoAAA", "data:image/jpeg;base64,xyz"]


@pytest.mark.parametrize(
    ("format", "schema"),
    [(None, None), ("", None), ("json", {}), ({"type": "string"}, {"type": "string"})],
)
def test_format_means_a_schema(format: object, schema: object) -> None:
    assert schema_of(format) == schema


@pytest.mark.parametrize(
    ("format", "quoted"), [("xml", r'"\"xml\""'), (5, '"5"'), (True, '"true"'), ([1], '"[1]"')]
)
def test_another_format_is_refused_in_ollama_s_words(format: object, quoted: str) -> None:
    words = f'invalid format: {quoted}; expected "json" or a valid JSON Schema object'
    with pytest.raises(SettingsError, match=f"^{re.escape(words)}$"):
        schema_of(format)


def test_a_schema_is_asked_for_in_each_path_s_own_way() -> None:
    schema = {"type": "string"}
    wanted = chat_body([USER], Options(), num_ctx=512, schema=schema)["response_format"]
    assert wanted["json_schema"]["schema"] == schema
    assert completion_body("p", Options(), num_ctx=512, schema=schema)["json_schema"] == schema
    any_object = chat_body([USER], Options(), num_ctx=512, schema={})["response_format"]
    assert any_object == {"type": "json_object"}
    assert completion_body("p", Options(), num_ctx=512, schema={})["json_schema"] == {"type": "object"}


AGE: dict[str, Any] = {"type": "object", "properties": {"age": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("schema", "closed"),
    [
        (AGE, {**AGE, "additionalProperties": False}),
        ({**AGE, "additionalProperties": True}, {**AGE, "additionalProperties": True}),
        ({"type": "object"}, {"type": "object"}),
        ({"items": AGE}, {"items": {**AGE, "additionalProperties": False}}),
        ({"anyOf": [AGE]}, {"anyOf": [{**AGE, "additionalProperties": False}]}),
        ({"allOf": [AGE, AGE]}, {"allOf": [AGE, AGE]}),
        ({"$defs": {"a": AGE}}, {"$defs": {"a": {**AGE, "additionalProperties": False}}}),
        ({"enum": [AGE]}, {"enum": [AGE]}),
        (
            {"properties": {"properties": AGE}},
            {
                "properties": {"properties": {**AGE, "additionalProperties": False}},
                "additionalProperties": False,
            },
        ),
    ],
)
def test_objects_have_the_properties_they_name_and_no_others(
    schema: dict[str, Any], closed: dict[str, Any]
) -> None:
    assert closed_schema(schema) == closed


@pytest.mark.parametrize(
    ("tokens", "num_ctx", "num_keep", "left"),
    [
        (9, 10, 4, [*range(9)]),
        (10, 10, 4, [0, 1, 2, 3, 7, 8, 9]),
        (20, 10, 4, [0, 1, 2, 3, 17, 18, 19]),
        (20, 10, 0, [15, 16, 17, 18, 19]),
        (20, 10, -1, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        (20, 10, 99, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
    ],
)
def test_a_long_prompt_loses_its_middle(tokens: int, num_ctx: int, num_keep: int, left: list[int]) -> None:
    assert shortened_prompt(range(tokens), num_ctx=num_ctx, num_keep=num_keep) == left


@given(tokens=st.integers(1, 500), num_ctx=st.integers(2, 300), num_keep=st.integers(-1, 400))
def test_a_prompt_that_was_cut_leaves_room_and_keeps_its_ends(
    tokens: int, num_ctx: int, num_keep: int
) -> None:
    left = shortened_prompt(range(tokens), num_ctx=num_ctx, num_keep=num_keep)
    assert len(left) < num_ctx
    assert left == sorted(set(left))
    if tokens < num_ctx:
        assert len(left) == tokens
    elif 0 <= num_keep < num_ctx - 1:
        assert left[:num_keep] == list(range(num_keep))
