"""Answers in Redis: gateways of several hosts share them."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar
from urllib.parse import parse_qsl, urlsplit

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisUnreachable
from redis.exceptions import RedisError

from ollamalab.cache.entry import Answer
from ollamalab.cache.seal import DamagedAnswer, seal, unseal
from ollamalab.cache.stores import StoreStatistics
from ollamalab.errors import SettingsError, StoreError

_log = logging.getLogger(__name__)

#: Before every key of every version; then the number of the layout, changed with ``seal`` alone.
_PREFIX = b"ollamalab:answers:"
_KEY = _PREFIX + b"1:"

_PATIENCE_S = 0.5  #: for one answer; a model's own takes longer, but a client shall not notice
_PAUSE_S = 5.0  #: without Redis after it was lost, then one call tries
_STEP_PATIENCE_S = 10.0  #: for one step of emptying, which nobody but an operator waits for
_SCANNED_AT_ONCE = 1_000
_MAX_CONNECTIONS = 16
_KEEPS_ALL = "noeviction"

_DATABASE = re.compile(r"/?[0-9]*")
_TLS_OPTIONS = {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"}

T = TypeVar("T")


class RedisStore:
    """A store in a Redis (or Valkey) server, which removes each answer itself when its time is over.

    How many answers it keeps is the server's to decide: set ``maxmemory``, and ``maxmemory-policy`` to
    ``allkeys-lru`` or ``volatile-lru``. A server that is lost or slow means misses and one warning;
    it is left alone for five seconds before the next try, so that few requests wait for it.

    Args:
        url: ``redis://[[USER]:PASSWORD@]HOST[:PORT][/DB]``, or ``rediss://`` for TLS. What stands
            before the host is never logged nor shown.
        max_answer_bytes: A longer answer is not kept.
        clock: Seconds since 1970.
        timer: Seconds that only grow.

    Raises:
        SettingsError: The address cannot be read. That nobody answers there shows later.
    """

    def __init__(
        self,
        url: str,
        *,
        max_answer_bytes: int,
        clock: Callable[[], float] = time.time,
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._address = _address(url)
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=_MAX_CONNECTIONS,
            timeout=None,  # all waiting is under one deadline, in _within
            socket_timeout=None,
            socket_connect_timeout=None,
            # once, for a connection that Redis has closed while it was idle
            retry=Retry(NoBackoff(), 1, supported_errors=(RedisUnreachable,)),
        )
        self._redis = Redis.from_pool(pool)
        self._max_answer_bytes = max_answer_bytes
        self._clock = clock
        self._timer = timer
        self._is_lost = False
        self._retry_s = 0.0
        self._errors = 0
        self._has_looked = False
        self._logged: set[str] = set()

    async def get(self, key: bytes) -> Answer | None:
        """Return the answer of a key, fresh or still of use; None if there is none or Redis is lost."""
        sealed = await self._try(lambda: self._redis.get(_KEY + key), None)
        if not isinstance(sealed, bytes):
            return None
        try:
            answer = unseal(key, sealed)
        except DamagedAnswer as error:
            self._fail(error)
            await self.delete(key)
            return None
        return answer if answer and answer.worthless_s > self._clock() else None

    async def put(self, key: bytes, answer: Answer) -> None:
        """Keep an answer in place of any other of its key until its time is over."""
        sealed = seal(key, answer)
        left_ms = int((answer.worthless_s - self._clock()) * 1000)
        if left_ms < 1 or len(sealed) > self._max_answer_bytes:
            await self.delete(key)
        else:
            await self._try(lambda: self._redis.set(_KEY + key, sealed, px=left_ms), None)

    async def delete(self, key: bytes) -> None:
        """Remove the answer of a key, if there is one."""
        await self._try(lambda: self._redis.unlink(_KEY + key), None)

    async def clear(self) -> int:
        """Remove every answer, those of other layouts too; return how many there were.

        Raises:
            StoreError: They could not all be removed.
        """
        removed, cursor = 0, 0
        try:
            while True:
                scan = self._redis.scan(cursor, match=_PREFIX + b"*", count=_SCANNED_AT_ONCE)
                cursor, keys = await _within(_STEP_PATIENCE_S, scan)
                if keys:
                    removed += await _within(_STEP_PATIENCE_S, self._redis.unlink(*keys))
                if cursor == 0:
                    return removed
        except (RedisError, OSError) as error:  # TimeoutError is an OSError
            raise StoreError(
                f"{self._address} cannot be emptied ({_shown(error)}); {removed} answers were removed; "
                "is the server running, and is its address right?"
            ) from error

    async def sweep(self) -> int:
        """Return 0: Redis removes what is over. Warn, once, if it can make no room for what is new."""
        if not self._has_looked:
            await self._look_for_room()
        return 0

    def statistics(self) -> StoreStatistics:
        """Return how many calls failed; the rest is for Redis to tell, over all who use it."""
        return StoreStatistics(entries=None, bytes=None, evicted=None, expired=None, errors=self._errors)

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    async def _look_for_room(self) -> None:
        """Look, as soon as Redis answers, whether it would refuse new answers once it is full."""
        try:
            memory = await _within(_PATIENCE_S, self._redis.info("memory"))
        except (RedisUnreachable, OSError):
            return
        except RedisError:  # it keeps that to itself
            memory = {}
        self._has_looked = True
        if memory.get("maxmemory") and memory.get("maxmemory_policy") == _KEEPS_ALL:
            _log.warning(
                "redis keeps all: address=%s maxmemory_policy=%s; once its maxmemory is full, no answer is "
                "kept until others expire: set maxmemory-policy to allkeys-lru or volatile-lru",
                self._address,
                _KEEPS_ALL,
            )

    async def _try(self, command: Callable[[], Awaitable[T]], failed: T) -> T:
        if self._is_lost:
            if self._timer() < self._retry_s:
                return failed
            self._retry_s = self._timer() + _PAUSE_S  # this call tries; others go on without
        try:
            result = await _within(_PATIENCE_S, command())
        except (RedisUnreachable, OSError) as error:
            self._retry_s = self._timer() + _PAUSE_S
            self._errors += 1
            if not self._is_lost:
                self._is_lost = True
                _log.warning(
                    "redis lost: address=%s error=%s; answers are asked anew until it is back",
                    self._address,
                    _shown(error),
                )
            return failed
        except RedisError as error:  # it answers, but will not: memory full, read-only, no permission
            self._fail(error)
            return failed
        if self._is_lost:
            self._is_lost = False
            _log.info("redis back: address=%s", self._address)
        return result

    def _fail(self, error: Exception) -> None:
        self._errors += 1
        kind = type(error).__name__
        if kind not in self._logged:
            self._logged.add(kind)
            _log.warning(
                "redis refuses: address=%s error=%s; further ones of this kind are only counted",
                self._address,
                _shown(error),
            )


async def _within(patience_s: float, reply: Awaitable[T]) -> T:
    async with asyncio.timeout(patience_s):
        return await reply


def _shown(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _address(url: str) -> str:
    """Return scheme, host and port, without what may be secret.

    Raises:
        SettingsError: It cannot be read. The message leaves the address out: of a password in which "/"
            or "?" is not escaped, a part stands where host or path are expected.
    """
    scheme = url.partition("://")[0]
    unreadable = SettingsError(
        f"the {scheme}:// address of the cache cannot be read; "
        f"write {scheme}://[[USER]:PASSWORD@]HOST[:PORT][/DB][?ssl_ca_certs=FILE] "
        "and escape special characters of the password (%2F for /)"
    )
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        host.encode("idna")
    except ValueError:
        raise unreadable from None
    options = {name for name, _ in parse_qsl(parts.query, keep_blank_values=True)}
    allowed = _TLS_OPTIONS if scheme == "rediss" else set()
    if not host or parts.fragment or options - allowed or not _DATABASE.fullmatch(parts.path):
        raise unreadable
    shown = f"[{host}]" if ":" in host else host
    return f"{scheme}://{shown}" + (f":{port}" if port else "")
