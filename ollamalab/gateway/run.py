"""Runs the gateway: listens, announces its address, reports, and ends tidily."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from ollamalab.errors import SettingsError
from ollamalab.gateway.app import Gateway, Page
from ollamalab.gateway.exposition import Exposition
from ollamalab.gateway.keys import KeyRing
from ollamalab.gateway.pipeline import Pipeline
from ollamalab.gateway.relay import Relay
from ollamalab.gateway.served import HEALTH_PATH, METRICS_PATH, STATUS_PATH
from ollamalab.gateway.server import HttpServer
from ollamalab.gateway.status import JSON_TYPE, Snapshot, status_page
from ollamalab.gateway.traffic import Traffic
from ollamalab.listening import StopSignal, access_rules, allow_open_files, bound_socket, url_of
from ollamalab.settings import GatewaySettings
from ollamalab.settings.files import changed_keys

logger = logging.getLogger(__name__)

_MORE_OBJECTS = 20_000


@dataclass(frozen=True, slots=True)
class Running:
    """A gateway that answers.

    Attributes:
        url: Where.
        pipeline: Its parts.
        server: Its HTTP side.
        keys: Who may ask; None lets everybody.
    """

    url: str
    pipeline: Pipeline
    server: HttpServer
    keys: KeyRing | None


@asynccontextmanager
async def opened(settings: GatewaySettings) -> AsyncIterator[Running]:
    """Open a gateway; at the end it finishes the streams that are under way, up to their deadline.

    Raises:
        SettingsError: Nobody can listen there, or a file or store cannot be used.
    """
    keys = KeyRing.read(settings.api_key_file) if settings.api_key_file else None
    with bound_socket(settings.host, settings.port) as listener:
        rules = access_rules(listener, settings.origins)
        async with Pipeline(settings) as pipeline:
            traffic = Traffic(logs_requests=settings.logs_requests)
            relay = Relay(pipeline.upstream, has_cache=pipeline.cache is not None, batch=settings.batch)
            pages: dict[str, Page] = {}
            gateway = Gateway(
                relay,
                rules=rules,
                pages=pages,
                keys=keys,
                is_admin=settings.is_admin,
                observe=traffic.observe,
            )
            server = HttpServer(gateway.handle, settings.limits, gate=gateway.holder)
            started_s = time.perf_counter()

            def snapshot() -> Snapshot:
                return Snapshot(
                    uptime_s=time.perf_counter() - started_s,
                    open_connections=server.open_connections,
                    active_requests=server.active_requests,
                    cluster=pipeline.cluster.statistics(),
                    upstream_connections=pipeline.open_connections(),
                    cache=pipeline.cache.statistics() if pipeline.cache else None,
                    queue=pipeline.queue.statistics(),
                    warmup=pipeline.warmer.statistics() if pipeline.warmer else None,
                    batch=settings.batch.text,
                    batched=relay.batched,
                    traffic=traffic,
                )

            pages[HEALTH_PATH] = lambda: (JSON_TYPE, b'{"status":"ok"}')
            pages[STATUS_PATH] = lambda: status_page(snapshot())
            pages[METRICS_PATH] = Exposition(snapshot).page
            await server.start(listener)
            try:
                yield Running(url_of(listener), pipeline, server, keys)
            finally:
                await server.stop(settings.stop_timeout_s)


async def serve(read: Callable[[], GatewaySettings], *, announce: Callable[[str], None]) -> bool:
    """Serve until SIGINT or SIGTERM; at SIGHUP take what settings and keys then say, as far as that can be.

    Args:
        read: Returns the whole gateway; called again at SIGHUP.
        announce: Gets the URL once connections are accepted.

    Returns:
        Whether Ctrl-C ended it.

    Raises:
        SettingsError: As ``read`` and ``opened``.
    """
    settings = read()
    allow_open_files()
    stop, again = StopSignal(), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, again.set)
    async with opened(settings) as running, asyncio.TaskGroup() as group:
        announce(running.url)
        _spare_the_collector()
        reloading = group.create_task(_reload_at(again, running, read, settings))
        is_interrupt = await stop.wait()
        reloading.cancel()
        logger.info("event=stopping deadline_s=%g", settings.stop_timeout_s)
    return is_interrupt


def _spare_the_collector() -> None:
    """Look for cycles less often, and not among what was there before the first request.

    Requests leave none behind: what they make goes with them, by its reference counts. Of the time of a
    gateway that relays streams this is 3 %.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_MORE_OBJECTS)


async def _reload_at(
    again: asyncio.Event, running: Running, read: Callable[[], GatewaySettings], settings: GatewaySettings
) -> None:
    """Take other settings whenever asked, and the keys that their files then hold.

    What cannot be used leaves everything as it is.
    """
    keys, key_file = running.keys, settings.api_key_file
    while True:
        await again.wait()
        again.clear()
        try:
            wanted = await asyncio.to_thread(read)
            keys_now = None if key_file is None else await asyncio.to_thread(KeyRing.read, key_file)
            await running.pipeline.take(wanted)
        except SettingsError as error:
            logger.error("event=reload_failed error=%s", error)
            continue
        if keys is not None and keys_now is not None:
            keys.take(keys_now)
        taken = replace(settings, upstreams=wanted.upstreams, warmup=wanted.warmup)
        logger.info("event=reloaded changed=%s", ",".join(changed_keys(settings, taken)) or "nothing")
        waiting = changed_keys(taken, wanted)
        if waiting:
            logger.warning("event=reload_incomplete restart_needed_for=%s", ",".join(waiting))
        settings = taken
