"""The server that is compared."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
from scheduling import House

from ollamalab import lab
from ollamalab.errors import SamplerUnavailable
from ollamalab.hosts import Target, open_target
from ollamalab.settings import ServerSettings


@dataclass(frozen=True)
class Subject:
    """An open server.

    Attributes:
        target: The server.
        house: For scenes on it.
        is_embedded: Whether it is ours, whose known differences are allowed.
    """

    target: Target
    house: House
    is_embedded: bool


@asynccontextmanager
async def open_subject(
    target: str, model: str, other: str, settings: ServerSettings | None = None
) -> AsyncIterator[Subject]:
    """Open a server with two models; see ``open_target``."""
    await lab.have_models(target, model, other)
    async with (
        open_target(target, settings, models=[model, other]) as opened,
        aiohttp.ClientSession(opened.url, connector=aiohttp.TCPConnector(limit=0)) as http,
    ):
        try:
            is_embedded = opened.kind == "embedded" or opened.slots() is not None
        except SamplerUnavailable:
            is_embedded = False
        yield Subject(opened, House(http, model, other), is_embedded and opened.kind != "ollama")
