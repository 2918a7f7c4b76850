"""The embedded server as tests use it: a process of its own, with models for every capability."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from ollamalab.embedded.derive import write_variant
from ollamalab.embedded.fetch import DEFAULT_MODEL, ensure_model
from ollamalab.embedded.models import ModelStore
from ollamalab.hosts.process import Launch, ServerProcess

_CHATML = """{%- for message in messages %}
{%- if message.role == 'assistant' and message.tool_calls %}<|im_start|>assistant
{% for call in message.tool_calls %}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% else %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

TOOL_TEMPLATE = (
    """{%- if tools %}<|im_start|>system
You can call tools. Tools:
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}Call one with <tool_call>
{"name": NAME, "arguments": ARGUMENTS}
</tool_call><|im_end|>
{% endif %}
"""
    + _CHATML
)

THINKING_TEMPLATE = (
    _CHATML.rpartition("{% endif %}")[0]
    + "{%- if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
    + "{%- else %}<think>\n{%- endif %}{% endif %}"
)

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather in a city",
        "parameters": {
            "type": "object",
            "required": ["city"],
            "properties": {"city": {"type": "string"}},
        },
    },
}


@dataclass(frozen=True)
class EmbeddedServer:
    """A running server.

    Attributes:
        url: Where it listens.
        http: A client session for it.
        model: SmolLM2; it chats, without tools or thinking.
        tools: The same weights with a template that takes tools.
        thinking: The same weights with a template that thinks.
        process: Its process.
    """

    url: str
    http: aiohttp.ClientSession
    process: ServerProcess
    model: str = DEFAULT_MODEL
    tools: str = "tools:latest"
    thinking: str = "thinking:latest"

    async def post(self, path: str, body: object) -> tuple[int, Any]:
        """Return status and JSON of an answer in one piece."""
        async with self.http.post(path, json=body) as reply:
            return reply.status, json.loads(await reply.read())

    async def get(self, path: str) -> Any:
        """Return the JSON of a GET."""
        async with self.http.get(path) as reply:
            assert reply.status == 200
            return json.loads(await reply.read())

    async def lines(self, path: str, body: object) -> list[dict[str, Any]]:
        """Return the lines of a stream."""
        async with self.http.post(path, json=body) as reply:
            assert reply.status == 200
            assert reply.headers["Content-Type"] == "application/x-ndjson"
            return [json.loads(line) for line in (await reply.read()).split(b"\n") if line]

    async def busy_slots(self) -> int:
        """Return how many slots the engines themselves say are at work."""
        return sum(
            slot["is_processing"] for engine in await self.get("/lab/engines") for slot in engine["slots"]
        )

    async def until(self, is_so: Callable[[], Awaitable[bool]]) -> None:
        """Wait until an asynchronous check is true; nothing tells when."""
        while not await is_so():  # noqa: ASYNC110 - facts about engines send no event
            await asyncio.sleep(0.01)


@asynccontextmanager
async def embedded_server(folder: Path, *flags: str, **environment: str) -> AsyncIterator[EmbeddedServer]:
    """Give a server on a free port; its engines end with it.

    Args:
        folder: For derived models and its log.
        flags: Of ``ollamalab embedded``.
        environment: ``OLLAMA_*`` variables; others of them are not passed on.
    """
    source = ensure_model(DEFAULT_MODEL, ModelStore()).path
    variants = {"tools": TOOL_TEMPLATE, "thinking": THINKING_TEMPLATE}
    models: list[str] = []
    for name, template in variants.items():
        path = folder / f"{name}.gguf"
        write_variant(source, path, fields={"tokenizer.chat_template": template})
        models += ["--model", str(path)]
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("OLLAMA_")}
    launch = Launch(
        name="ollamalab embedded",
        command=(sys.executable, "-m", "ollamalab", "embedded", "--port", "0", *models, *flags),
        environment={**inherited, "OLLAMA_CONTEXT_LENGTH": "1024", **environment},
        advice="see its log",
    )
    process = await ServerProcess.start(launch, log_folder=folder)
    try:
        async with aiohttp.ClientSession(process.url) as http:
            yield EmbeddedServer(process.url, http, process)
    finally:
        await process.stop()
