"""What ``GET /api/tags`` says: the models there are, and their digests."""

from __future__ import annotations

import msgspec

from ollamalab.errors import BadReply, SettingsError
from ollamalab.protocol.names import parse_name


class _Entry(msgspec.Struct):
    name: str = ""
    model: str = ""
    digest: str = ""


class _Listing(msgspec.Struct):
    models: list[_Entry] | None = None


_decoder = msgspec.json.Decoder(_Listing)


def listed_digests(body: bytes) -> dict[str, str]:
    """Return the digest of each model of an answer to ``GET /api/tags``, by its key (``ModelName.key``).

    Names that only a later Ollama could read are left out.

    Raises:
        BadReply: It is not such an answer.
    """
    try:
        entries = _decoder.decode(body).models or []
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadReply(f"/api/tags answered what Ollama would not ({error})") from error
    digests = {}
    for entry in entries:
        try:
            digests[parse_name(entry.model or entry.name).key] = entry.digest
        except SettingsError:
            continue
    return digests
