"""The embedded server's API does real inference as Ollama would; each test is one thing asked of it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from embedded_server import WEATHER, EmbeddedServer

SHORT = {"num_predict": 4, "temperature": 0, "seed": 1}
LONG = "word " * 900


def chat(server: EmbeddedServer, content: str = "Say hello.", **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": content}]
    return {"model": server.model, "messages": messages, "stream": False, "options": SHORT, **fields}


def generate(server: EmbeddedServer, prompt: str = "Say hello.", **fields: Any) -> dict[str, Any]:
    return {"model": server.model, "prompt": prompt, "stream": False, "options": SHORT, **fields}


async def answer(server: EmbeddedServer, path: str, body: object) -> dict[str, Any]:
    status, found = await server.post(path, body)
    assert status == 200, found
    reply: dict[str, Any] = found
    return reply


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
async def test_a_stream_and_a_whole_answer_say_the_same(server: EmbeddedServer, path: str) -> None:
    body = (chat if path == "/api/chat" else generate)(server)
    whole = await answer(server, path, body)
    *pieces, final = await server.lines(path, body | {"stream": True})

    def said(line: dict[str, Any]) -> str:
        text = line["message"]["content"] if "message" in line else line["response"]
        assert isinstance(text, str)
        return text

    assert "".join(map(said, pieces)) == said(whole)
    times = {"created_at", "message", "response"}
    assert [key for key in final if key not in times] == [key for key in whole if key not in times]


async def test_a_seed_decides_and_temperature_zero_needs_none(server: EmbeddedServer) -> None:
    async def story(**options: Any) -> str:
        body = generate(server, "Story:", options={"num_predict": 12, **options})
        text: str = (await answer(server, "/api/generate", body))["response"]
        return text

    assert await story(temperature=0) == await story(temperature=0)
    assert await story(temperature=1, seed=3) == await story(temperature=1, seed=3)
    assert len({await story(temperature=1.5, seed=seed) for seed in range(4)}) > 1


async def test_a_stop_text_ends_an_answer_and_is_not_in_it(server: EmbeddedServer) -> None:
    options = {"num_predict": 30, "temperature": 0, "stop": ["9"]}
    body = generate(server, "Count: 1 2 3 4 5 6", raw=True, options=options)
    reply = await answer(server, "/api/generate", body)
    assert (reply["response"], reply["done_reason"]) == (" 7 8 ", "stop")


async def test_raw_skips_the_template_and_gives_no_context(server: EmbeddedServer) -> None:
    raw = await answer(server, "/api/generate", generate(server, "The sky is", raw=True))
    assert raw["prompt_eval_count"] == 3
    assert "context" not in raw
    templated = await answer(server, "/api/generate", generate(server, "The sky is"))
    assert templated["prompt_eval_count"] > 20
    for field in ({"template": "x"}, {"system": "x"}, {"context": [1]}):
        assert await server.post("/api/generate", generate(server, raw=True, **field)) == (
            400,
            {"error": "raw mode does not support template, system, or context"},
        )


async def test_system_replaces_the_model_s_own_and_a_template_replaces_both(server: EmbeddedServer) -> None:
    own = await answer(server, "/api/generate", generate(server))
    pirate = await answer(server, "/api/generate", generate(server, system="You are a pirate."))
    assert pirate["prompt_eval_count"] < own["prompt_eval_count"]
    simple = generate(server, template="{{ .System }} Q: {{ .Prompt }} A:", system="sys")
    assert (await answer(server, "/api/generate", simple))["prompt_eval_count"] == 8
    status, error = await server.post("/api/generate", generate(server, template="{{ range .Messages }}"))
    assert status == 400
    assert "{{ range .Messages }} is beyond this server" in error["error"]


async def test_context_carries_a_conversation_on(server: EmbeddedServer) -> None:
    first = await answer(server, "/api/generate", generate(server, "My name is Bob."))
    assert len(first["context"]) == first["prompt_eval_count"] + first["eval_count"]
    second = await answer(server, "/api/generate", generate(server, "Who am I?", context=first["context"]))
    assert second["context"][: len(first["context"])] == first["context"]
    assert second["prompt_eval_count"] > len(first["context"])
    status, error = await server.post("/api/generate", generate(server, context=[99_999_999]))
    assert status == 500
    assert error["error"].startswith("detokenize error: ")


SCHEMA = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
async def test_a_format_holds_the_answer_to_it(server: EmbeddedServer, path: str) -> None:
    async def formatted(format: object) -> str:
        body = (chat if path == "/api/chat" else generate)(server, "How old are you? JSON.")
        options = {"num_predict": 40, "temperature": 0}
        reply = await answer(server, path, body | {"format": format, "options": options})
        text: str = reply["message"]["content"] if "message" in reply else reply["response"]
        return text

    age = json.loads(await formatted(SCHEMA))
    assert list(age) == ["age"]
    assert isinstance(age["age"], int)
    assert json.loads(await formatted({"enum": ["red"]})) == "red"
    assert (await formatted("json")).lstrip().startswith("{")


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
async def test_a_format_that_is_none_is_refused_before_any_text(server: EmbeddedServer, path: str) -> None:
    body = (chat if path == "/api/chat" else generate)(server)
    words = r'invalid format: "\"xml\""; expected "json" or a valid JSON Schema object'
    assert await server.post(path, body | {"format": "xml"}) == (500, {"error": words})
    for schema in ({"type": "foo"}, {"$ref": "#/nope"}):
        for fields in ({}, {"raw": True}):
            status, error = await server.post(path, body | {"format": schema, "stream": True} | fields)
            assert status == 400
            assert "JSON schema" in error["error"]


async def test_log_probabilities_are_those_of_the_tokens(server: EmbeddedServer) -> None:
    for path, body in (("/api/chat", chat(server)), ("/api/generate", generate(server))):
        body |= {"logprobs": True, "options": SHORT | {"num_predict": 2}}
        reply = await answer(server, path, body)
        text = reply["message"]["content"] if "message" in reply else reply["response"]
        assert b"".join(bytes(entry["bytes"]) for entry in reply["logprobs"]).decode() == text
        assert all(entry["logprob"] <= 0 and "top_logprobs" not in entry for entry in reply["logprobs"])
        likeliest = await answer(server, path, body | {"top_logprobs": 3})
        for entry in likeliest["logprobs"]:
            ranked = [other["logprob"] for other in entry["top_logprobs"]]
            assert (len(ranked), ranked[0]) == (3, entry["logprob"])
            assert ranked == sorted(ranked, reverse=True)
        for count in (21, -1):
            assert await server.post(path, body | {"top_logprobs": count}) == (
                400,
                {"error": "top_logprobs must be between 0 and 20"},
            )


async def test_thinking_is_refused_where_the_model_cannot(server: EmbeddedServer) -> None:
    refused = (400, {"error": '"smollm2:135m" does not support thinking'})
    for path, body in (("/api/chat", chat(server)), ("/api/generate", generate(server))):
        assert await server.post(path, body | {"think": True}) == refused
        assert await server.post(path, body | {"think": "high"}) == refused
        assert (await server.post(path, body | {"think": False}))[0] == 200
        assert (await server.post(path, body | {"think": "much"}))[0] == 400


async def test_tools_are_refused_without_a_template_for_them(server: EmbeddedServer) -> None:
    refused = (400, {"error": "registry.ollama.ai/library/smollm2:135m does not support tools"})
    assert await server.post("/api/chat", chat(server, tools=[WEATHER])) == refused
    assert (await server.post("/api/chat", chat(server, tools=[])))[0] == 200


def weather_talk(*cities: str) -> list[dict[str, Any]]:
    """A conversation in which tools were called, so that even a small model calls the next one."""
    talk: list[dict[str, Any]] = []
    for city in cities:
        call = {"function": {"name": "get_weather", "arguments": {"city": city}}}
        talk += [
            {"role": "user", "content": f"What is the weather in {city}?"},
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_name": "get_weather", "content": "sunny"},
        ]
    return [*talk, {"role": "user", "content": "What is the weather in Paris?"}]


async def test_a_tool_is_called_through_the_model_s_template(server: EmbeddedServer) -> None:
    body = chat(server) | {
        "model": server.tools,
        "messages": weather_talk("Rome", "Oslo", "Lima"),
        "tools": [WEATHER],
        "options": {"temperature": 0, "num_predict": 60},
    }
    whole = await answer(server, "/api/chat", body)
    *_, final = await server.lines("/api/chat", body | {"stream": True})
    for reply in (whole, final):
        (call,) = reply["message"]["tool_calls"]
        assert call["id"]
        assert call["function"] == {"index": 0, "name": "get_weather", "arguments": {"city": "Paris"}}
        assert reply["done_reason"] == "stop"
    shown = await answer(server, "/api/show", {"model": server.tools})
    assert shown["capabilities"] == ["tools", "completion"]


async def test_images_and_suffixes_are_refused_by_a_text_model(server: EmbeddedServer) -> None:
    status, error = await server.post("/api/generate", generate(server, images=["aGVsbG8="]))
    assert status == 400
    assert "model does not support multimodal requests" in error["error"]
    image = [{"role": "user", "content": "x", "images": ["aGVsbG8="]}]
    status, error = await server.post("/api/chat", chat(server, messages=image))
    assert status == 500
    assert "image input is not supported" in error["error"]
    assert await server.post("/api/generate", generate(server, suffix="x")) == (
        400,
        {"error": "registry.ollama.ai/library/smollm2:135m does not support insert"},
    )


async def test_a_long_history_loses_its_oldest_messages_but_not_the_system(server: EmbeddedServer) -> None:
    options = SHORT | {"num_ctx": 256}
    turns = [{"role": "user", "content": f"{number} " + "word " * 70} for number in range(9)]
    talk = [{"role": "system", "content": "SYS"}, *turns, {"role": "user", "content": "end"}]
    body = chat(server, messages=talk, options=options)
    reply = await answer(server, "/api/chat", body)
    assert 200 < reply["prompt_eval_count"] <= 256
    only_last = chat(server, messages=[talk[0], talk[-1]], options=options)
    assert (await answer(server, "/api/chat", only_last))["prompt_eval_count"] < 40
    status, error = await server.post("/api/chat", body | {"truncate": False})
    assert status == 400
    assert "exceeds the available context size (256 tokens)" in error["error"]


async def test_a_long_prompt_loses_its_middle_unless_the_context_must_not_shift(
    server: EmbeddedServer,
) -> None:
    body = generate(server, LONG, raw=True, options=SHORT | {"num_ctx": 256})
    assert (await answer(server, "/api/generate", body))["prompt_eval_count"] == 130
    status, error = await server.post("/api/generate", body | {"shift": False})
    assert status == 400
    assert error["error"].startswith("the prompt is longer than the context length currently available")
    status, error = await server.post("/api/generate", body | {"truncate": False})
    assert status == 400
    assert "exceeds the available context size" in error["error"]


@pytest.mark.parametrize(("shift", "reason", "tokens"), [(True, "length", 80), (False, "length", 25)])
async def test_a_full_context_shifts_or_ends_the_answer(
    server: EmbeddedServer, shift: bool, reason: str, tokens: int
) -> None:
    options = {"num_ctx": 256, "num_predict": 80, "temperature": 1.5, "seed": 3}
    body = generate(server, "word " * 230 + "Once", raw=True, shift=shift, options=options)
    reply = await answer(server, "/api/generate", body)
    assert (reply["done_reason"], reply["eval_count"]) == (reason, tokens)


def length(vector: list[float]) -> float:
    return sum(value * value for value in vector) ** 0.5


async def test_embeddings_are_normalised_cut_and_compared(server: EmbeddedServer) -> None:
    texts = ["The cat sat on the mat.", "A cat is sitting on a mat.", "Stock prices fell sharply today."]
    reply = await answer(server, "/api/embed", {"model": server.model, "input": texts})
    assert list(reply) == [
        "model",
        "embeddings",
        "total_duration",
        "load_duration",
        "prompt_eval_count",
    ]
    cat, sitting, stock = reply["embeddings"]
    assert len(cat) == 576
    assert length(cat) == pytest.approx(1)
    alike = sum(a * b for a, b in zip(cat, sitting, strict=True))
    unlike = sum(a * b for a, b in zip(cat, stock, strict=True))
    assert alike > unlike
    short = await answer(server, "/api/embed", {"model": server.model, "input": texts[0], "dimensions": 8})
    # Texts that are embedded together share a batch, which changes low bits.
    cut = [value / length(cat[:8]) for value in cat[:8]]
    assert short["embeddings"][0] == pytest.approx(cut, abs=0.01)
    legacy = await answer(server, "/api/embeddings", {"model": server.model, "prompt": texts[0]})
    assert list(legacy) == ["embedding"]
    assert legacy["embedding"] == pytest.approx(cat, abs=0.01)


async def test_a_text_embedded_beside_others_has_the_vector_it_has_alone(server: EmbeddedServer) -> None:
    """Slots once mixed up what they pooled: a text's vector was at 0.68 to its own."""
    texts = ["The cat sat on the mat.", "A cat is sitting on a mat.", "Stock prices fell sharply today."]

    async def embedded(given: list[str]) -> list[list[float]]:
        reply = await answer(server, "/api/embed", {"model": server.model, "input": given})
        return list(reply["embeddings"])

    alone = [(await embedded([text]))[0] for text in texts]
    together = await asyncio.gather(*(embedded(texts) for _ in range(8)))
    for vectors in together:
        for own, vector in zip(alone, vectors, strict=True):
            assert sum(a * b for a, b in zip(own, vector, strict=True)) == pytest.approx(1, abs=1e-3)


async def test_a_text_too_long_to_embed_is_cut_or_refused(server: EmbeddedServer) -> None:
    body = {"model": server.model, "input": LONG, "dimensions": 4, "options": {"num_ctx": 256}}
    reply = await answer(server, "/api/embed", body)
    assert 250 <= reply["prompt_eval_count"] <= 256
    refused = (400, {"error": "the input length exceeds the context length"})
    assert await server.post("/api/embed", body | {"truncate": False}) == refused
    assert await server.post("/api/embed", body | {"input": ["short", LONG], "truncate": False}) == refused


@pytest.mark.parametrize("value", [5, True, {}, ["a", 5], [["a"]]])
async def test_only_texts_can_be_embedded(server: EmbeddedServer, value: object) -> None:
    body = {"model": server.model, "input": value}
    assert await server.post("/api/embed", body) == (400, {"error": "invalid input type"})


async def test_show_tells_all_that_the_file_says(server: EmbeddedServer) -> None:
    shown = await answer(server, "/api/show", {"model": server.model})
    assert list(shown) == [
        "modelfile",
        "template",
        "details",
        "model_info",
        "tensors",
        "capabilities",
        "modified_at",
    ]
    assert shown["capabilities"] == ["completion"]
    assert shown["details"]["quantization_level"] == "Q4_1"
    assert shown["model_info"]["llama.context_length"] == 8192
    assert shown["model_info"]["tokenizer.ggml.tokens"] is None
    assert "tokenizer.chat_template" not in shown["model_info"]
    assert "<|im_start|>" in shown["template"]
    assert len(shown["tensors"]) == 272
    verbose = await answer(server, "/api/show", {"name": server.model, "verbose": True})
    assert len(verbose["model_info"]["tokenizer.ggml.tokens"]) == 49_152


async def test_ps_tells_memory_context_and_expiry(server: EmbeddedServer) -> None:
    await answer(server, "/api/generate", {"model": server.model})
    (running,) = [m for m in (await server.get("/api/ps"))["models"] if m["name"] == server.model]
    assert running["size"] > 98_000_000
    assert running["size_vram"] == 0
    assert running["details"]["family"] == "llama"


async def test_what_changes_models_is_refused_with_the_way_to_do_it(server: EmbeddedServer) -> None:
    for method, path in (
        ("POST", "/api/push"),
        ("POST", "/api/create"),
        ("POST", "/api/copy"),
        ("DELETE", "/api/delete"),
        ("POST", "/api/blobs/sha256:0"),
    ):
        async with server.http.request(method, path, json={"model": "x"}) as reply:
            assert reply.status == 501
            assert "ollamalab models" in (await reply.json())["error"]


async def test_a_model_that_is_there_has_been_pulled(server: EmbeddedServer) -> None:
    steps = await server.lines("/api/pull", {"model": server.model})
    assert [steps[0]["status"], steps[-1]["status"]] == ["pulling manifest", "success"]
    assert await server.post("/api/pull", {"model": server.model, "stream": False}) == (
        200,
        {"status": "success"},
    )
    *_, failed = await server.lines("/api/pull", {"model": "nope"})
    assert failed["error"].startswith("pull model manifest: file does not exist")
    assert (await server.post("/api/pull", {"model": "nope", "stream": False}))[0] == 500


async def test_two_slots_decode_side_by_side(server: EmbeddedServer) -> None:
    """While two long answers run, the engine itself says that both its slots are at work."""
    body = chat(server, "Tell a long story.", options={"num_predict": 400, "temperature": 1, "seed": 1})
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(answer(server, "/api/chat", body)) for _ in range(2)]

        async def both_busy() -> bool:
            return await server.busy_slots() == 2

        await server.until(both_busy)
        for task in tasks:
            task.cancel()
