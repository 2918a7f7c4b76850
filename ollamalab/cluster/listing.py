"""What is asked of the cluster rather than of a model: lists, descriptions, changes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import msgspec

from ollamalab.cluster.member import Member
from ollamalab.cluster.merging import LISTS, merge_lists
from ollamalab.cluster.reply import MadeReply
from ollamalab.cluster.watch import body_of
from ollamalab.errors import NoUpstream, OllamaLabError, RequestRefused, SettingsError
from ollamalab.protocol.names import parse_name
from ollamalab.protocol.upstream import Request

#: For a member's list; ``/api/ps`` may wait for the unload of another model, up to 5 s.
_PATIENCE_S = 6.0

_OK, _BAD_REQUEST = 200, 400
_JSON_TYPE = "application/json; charset=utf-8"
_V1_MODEL = "/v1/models/"


def refuse_change(members: Iterable[Member]) -> RequestRefused:
    """Return why models cannot be changed through a gateway in front of several servers.

    Each server has models of its own, and to pull or delete on one of them, or on all, are two things
    that a client cannot tell apart.
    """
    names = ", ".join(member.name for member in members)
    return RequestRefused(
        _BAD_REQUEST,
        f"models can be changed through a gateway with one upstream only, this one has several ({names}); "
        "ask the server itself",
    )


async def merged_list(members: Iterable[Member], path: str, *, retry_after_s: float) -> MadeReply:
    """Return one list from those of all members that are up; who does not answer is left out.

    Args:
        members: Whom to ask.
        path: One of ``LISTS``.
        retry_after_s: When to ask again if nobody answers.

    Raises:
        NoUpstream: Nobody answered.
        BadReply: An answer was not such a list.
    """
    asked = list(members)
    up = [member for member in asked if member.health.is_up] or asked
    bodies = await asyncio.gather(*(_list_of(member, path) for member in up))
    found = [body for body in bodies if body is not None]
    if not found:
        raise NoUpstream("no upstream answers; see /lab/status", retry_after_s=retry_after_s)
    return MadeReply(_OK, _JSON_TYPE, merge_lists(path, found))


def is_merged(path: str) -> bool:
    """Return whether a path is a list of models."""
    return path in LISTS


def model_described(request: Request) -> str:
    """Return the key of the model that a request wants described; "" if it names none that could be."""
    path = request.path.partition("?")[0]
    try:
        if path.startswith(_V1_MODEL):
            return parse_name(path.removeprefix(_V1_MODEL)).key
        if path == "/api/show":
            body = msgspec.json.decode(request.body, type=_Shown)
            return parse_name(body.model or body.name).key
    except (msgspec.MsgspecError, UnicodeDecodeError, SettingsError):
        return ""  # the member that is asked will say what is wrong
    return ""


class _Shown(msgspec.Struct):
    model: str = ""
    name: str = ""


async def _list_of(member: Member, path: str) -> bytes | None:
    try:
        async with asyncio.timeout(_PATIENCE_S):
            return await body_of(member.upstream, path)
    except (TimeoutError, OllamaLabError):
        return None
