"""``ollamalab cache``: what to do with kept answers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import typer

from ollamalab.cli.root import app
from ollamalab.errors import SettingsError

if TYPE_CHECKING:
    from ollamalab.cache.stores import Store

cache_app = typer.Typer(help="Answers kept by `serve --cache`.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(cache_app, name="cache")


@cache_app.callback()
def _cache() -> None:
    """Answers kept by `serve --cache`."""


@cache_app.command()
def clear(
    where: str = typer.Argument(
        ..., metavar="PATH_OR_URL", help="The file, or the redis:// address, as given to `serve --cache`."
    ),
) -> None:
    """Remove every answer; gateways that use the file or server go on with an empty cache."""
    from ollamalab.cache.database import file_path
    from ollamalab.cache.stores import DISK, is_redis, open_store
    from ollamalab.settings import CacheSettings

    if not is_redis(where):
        path = file_path(where.removeprefix(DISK))
        if not path.exists():
            raise SettingsError(_nothing_there(where))
        where = f"{DISK}{path}"
    store = open_store(where, CacheSettings())
    assert store is not None
    count = asyncio.run(_clear(store))
    typer.echo(f"removed {count} answer{'' if count == 1 else 's'}")


async def _clear(store: Store) -> int:
    try:
        return await store.clear()
    finally:
        await store.close()


def _nothing_there(where: str) -> str:
    if where in ("memory", "off"):
        return (
            f"{where!r} is no file: a cache in memory is gone when its `ollamalab serve` ends; "
            "give the PATH of a cache on disk, or a redis:// address"
        )
    shown = "the address" if "@" in where else repr(where)  # there may be a password
    return f"there is no cache at {shown}; give the PATH of a cache on disk, or a redis:// address"
