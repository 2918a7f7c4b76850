"""Answers are written as a real Ollama 0.33 wrote them: fields, their order, what is left out."""

import json
from typing import Any

import pytest

from ollamalab.embedded.dialect import Dialect, Finished, OllamaChat, OllamaGenerate
from ollamalab.embedded.events import Call, Ending, Piece, TokenProbability
from ollamalab.embedded.openai_dialect import OpenAIChat, OpenAICompletion

NOW_NS = 1_795_232_985_742_342_567
STAMP = "2026-11-21T03:49:45.742342567Z"

HELLO = TokenProbability(token="Hello", logprob=-1.5, bytes=[72])
ENDING = Ending(done_reason="length", prompt_tokens=33, prompt_ns=7, eval_tokens=4, eval_ns=9)
FINISHED = Finished(ENDING, total_ns=100, load_ns=10)
CALL = Call(id="c1", index=0, name="f", arguments={"city": "Rome"})
USAGE = {"prompt_tokens": 33, "completion_tokens": 4, "total_tokens": 37}


def keys(line: bytes) -> list[str]:
    return list(json.loads(line))


def events(stream: bytes) -> list[Any]:
    assert stream.endswith(b"\n\n")
    payloads = [event.removeprefix("data: ") for event in stream.decode().split("\n\n")[:-1]]
    return [payload if payload == "[DONE]" else json.loads(payload) for payload in payloads]


def test_a_generate_stream_reads_as_ollama_s() -> None:
    dialect = OllamaGenerate("smollm2:135m")
    assert dialect.piece(Piece("Hello"), NOW_NS) == (
        b'{"model":"smollm2:135m","created_at":"%b","response":"Hello","done":false}\n' % STAMP.encode()
    )
    finished = Finished(ENDING, total_ns=100, load_ns=10, context=(1, 2))
    assert dialect.ending(finished, NOW_NS) == (
        b'{"model":"smollm2:135m","created_at":"%b","response":"","done":true,"done_reason":"length",'
        b'"context":[1,2],"total_duration":100,"load_duration":10,"prompt_eval_count":33,'
        b'"prompt_eval_duration":7,"eval_count":4,"eval_duration":9}\n' % STAMP.encode()
    )


def test_a_chat_stream_reads_as_ollama_s() -> None:
    dialect = OllamaChat("smollm2:135m")
    assert dialect.piece(Piece("Hello"), NOW_NS) == (
        b'{"model":"smollm2:135m","created_at":"%b","message":{"role":"assistant","content":"Hello"},'
        b'"done":false}\n' % STAMP.encode()
    )
    assert dialect.ending(FINISHED, NOW_NS) == (
        b'{"model":"smollm2:135m","created_at":"%b","message":{"role":"assistant","content":""},"done":true,'
        b'"done_reason":"length","total_duration":100,"load_duration":10,"prompt_eval_count":33,'
        b'"prompt_eval_duration":7,"eval_count":4,"eval_duration":9}\n' % STAMP.encode()
    )


@pytest.mark.parametrize("dialect", [OllamaChat("m"), OllamaGenerate("m")])
def test_a_whole_answer_has_no_newline_and_a_stream_s_line_has_one(
    dialect: OllamaChat | OllamaGenerate,
) -> None:
    assert dialect.whole(FINISHED, NOW_NS) + b"\n" == dialect.ending(FINISHED, NOW_NS)
    assert dialect.failure('a "quote"') == b'{"error":"a \\"quote\\""}\n'


def test_what_is_empty_or_zero_is_left_out() -> None:
    bare = Finished(Ending(done_reason="load"))
    assert json.loads(OllamaGenerate("m").whole(bare, NOW_NS)) == {
        "model": "m", "created_at": STAMP, "response": "", "done": True, "done_reason": "load",
    }  # fmt: skip
    assert json.loads(OllamaChat("m").whole(bare, NOW_NS)) == {
        "model": "m", "created_at": STAMP, "message": {"role": "assistant", "content": ""},
        "done": True, "done_reason": "load",
    }  # fmt: skip


def test_thinking_logprobs_and_calls_have_ollama_s_places() -> None:
    piece = Piece("Hello", "hm", (HELLO,))
    ending = Ending(piece=piece, calls=(CALL,), eval_tokens=1)
    chat = json.loads(OllamaChat("m").ending(Finished(ending), NOW_NS))
    assert list(chat) == ["model", "created_at", "message", "done", "done_reason", "logprobs", "eval_count"]
    assert list(chat["message"]) == ["role", "content", "thinking", "tool_calls"]
    called = {"index": 0, "name": "f", "arguments": {"city": "Rome"}}
    assert chat["message"]["tool_calls"] == [{"id": "c1", "function": called}]
    assert chat["logprobs"] == [{"token": "Hello", "logprob": -1.5, "bytes": [72]}]
    generate = OllamaGenerate("m").ending(Finished(ending, context=(1,)), NOW_NS)
    assert keys(generate) == [
        "model", "created_at", "response", "thinking", "done", "done_reason", "context", "eval_count",
        "logprobs",
    ]  # fmt: skip
    assert keys(OllamaGenerate("m").piece(piece, NOW_NS)) == [
        "model", "created_at", "response", "thinking", "done", "logprobs",
    ]  # fmt: skip


def test_the_model_is_called_as_the_client_called_it() -> None:
    assert json.loads(OllamaChat('SmolLM2 "x"').piece(Piece("a"), NOW_NS))["model"] == 'SmolLM2 "x"'


def test_an_openai_chat_stream_names_the_role_once_and_one_time() -> None:
    dialect = OpenAIChat("m", include_usage=True)
    stream = dialect.piece(Piece("Hel"), NOW_NS) + dialect.piece(Piece("lo"), NOW_NS + 5_000_000_000)
    stream += dialect.ending(FINISHED, NOW_NS + 9_000_000_000)
    *chunks, done = events(stream)
    assert done == "[DONE]"
    assert [chunk["choices"][0]["delta"] for chunk in chunks[:-1]] == [
        {"role": "assistant", "content": "Hel"},
        {"content": "lo"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None, None, "length"]
    assert (chunks[-1]["choices"], chunks[-1]["usage"]) == ([], USAGE)
    assert {(chunk["id"], chunk["created"], chunk["system_fingerprint"]) for chunk in chunks} == {
        (chunks[0]["id"], NOW_NS // 1_000_000_000, "fp_ollama")
    }


def test_an_openai_chat_without_text_still_opens_with_the_role() -> None:
    first, finish, done = events(OpenAIChat("m").ending(FINISHED, NOW_NS))
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert finish["choices"][0] == {"index": 0, "delta": {}, "finish_reason": "length"}
    assert done == "[DONE]"


def test_openai_s_tool_calls_have_texts_for_arguments() -> None:
    finished = Finished(Ending(calls=(CALL,)))
    called = {"name": "f", "arguments": '{"city":"Rome"}'}
    calls = [{"id": "c1", "index": 0, "type": "function", "function": called}]
    spoken, finish, _ = events(OpenAIChat("m").ending(finished, NOW_NS))
    assert spoken["choices"][0]["delta"] == {"role": "assistant", "content": "", "tool_calls": calls}
    assert finish["choices"][0]["finish_reason"] == "tool_calls"
    whole = json.loads(OpenAIChat("m").whole(finished, NOW_NS))["choices"][0]
    assert (whole["message"]["tool_calls"], whole["finish_reason"]) == (calls, "tool_calls")


def test_thinking_and_content_are_apart_for_openai() -> None:
    both = events(OpenAIChat("m").piece(Piece("yes", "hm", (HELLO,)), NOW_NS))
    assert [chunk["choices"][0]["delta"] for chunk in both] == [
        {"role": "assistant", "reasoning": "hm"},
        {"content": "yes"},
    ]
    assert ["logprobs" in chunk["choices"][0] for chunk in both] == [True, False]


def test_a_whole_openai_chat_reads_as_ollama_s() -> None:
    finished = Finished(Ending(piece=Piece("Hello"), prompt_tokens=33, eval_tokens=4))
    body = OpenAIChat("m").whole(finished, NOW_NS)
    answer = json.loads(body)
    assert body.endswith(b"}\n")
    assert list(answer) == ["id", "object", "created", "model", "system_fingerprint", "choices", "usage"]
    assert (answer["object"], answer["usage"]) == ("chat.completion", USAGE)
    message = {"role": "assistant", "content": "Hello"}
    assert answer["choices"] == [{"index": 0, "message": message, "finish_reason": "stop"}]


def test_an_openai_completion_reads_as_ollama_s() -> None:
    dialect = OpenAICompletion("m", include_usage=True)
    chunk, last, usage, done = events(dialect.piece(Piece("Hi"), NOW_NS) + dialect.ending(FINISHED, NOW_NS))
    assert list(chunk) == ["id", "object", "created", "choices", "model", "system_fingerprint", "usage"]
    assert chunk["choices"] == [{"text": "Hi", "index": 0, "finish_reason": None}]
    assert set(chunk["usage"].values()) == {0}
    assert last["choices"] == [{"text": "", "index": 0, "finish_reason": "length"}]
    assert (usage["choices"], usage["usage"], done) == ([], USAGE, "[DONE]")
    assert keys(dialect.whole(FINISHED, NOW_NS)) == [
        "id", "object", "created", "model", "system_fingerprint", "choices", "usage",
    ]  # fmt: skip


@pytest.mark.parametrize("dialect", [OpenAIChat("m"), OpenAICompletion("m")])
def test_a_broken_openai_stream_says_so_and_is_not_done(dialect: Dialect) -> None:
    (error,) = events(dialect.failure("engine died"))
    assert error["error"]["message"] == "engine died"
    assert error["error"]["type"] == "api_error"
