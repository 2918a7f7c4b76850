"""Where the time of one request went: the client's own stages joined with the server's durations."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ollamalab.metrics import Stages


@dataclass(kw_only=True, slots=True)
class Moments:
    """When each stage of the client began or ended (``time.perf_counter``); None if it did not occur.

    Attributes:
        called_s: The call began.
        prepared_s: The request was built and serialised.
        lookup_s: A new connection was wanted.
        resolved_s: The name was looked up; None for an address.
        connected_s: TCP stood.
        tls_s: The TLS handshake began.
        secured_s: It was done.
        send_s: The first byte of the request was about to be written.
        sent_end_s: The last byte was written.
        headers_s: Status and headers were read.
        final_s: The final line was read.
        body_end_s: The body's end was read.
        parsed_s: The reply was parsed.
    """

    called_s: float
    prepared_s: float | None = None
    lookup_s: float | None = None
    resolved_s: float | None = None
    connected_s: float | None = None
    tls_s: float | None = None
    secured_s: float | None = None
    send_s: float | None = None
    sent_end_s: float | None = None
    headers_s: float | None = None
    final_s: float | None = None
    body_end_s: float | None = None
    parsed_s: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class StageLedger:
    """Where the time of one request went, in seconds; parts and residual add up to ``e2e_s``.

    A part that did not occur, or that the server did not tell, is None.

    Attributes:
        prepare_s: Building the request and its JSON.
        dns_s: Looking the name up; None for an address and on a reused connection.
        connect_s: TCP handshake.
        tls_s: TLS handshake.
        send_s: Writing the request.
        load_s: Until the model was ready; the wait to be scheduled is in it.
        slot_wait_s: total - load - prompt_eval - eval. An upper bound of the wait for a slot:
            templating, tokenising and the server's own loopback are in it.
        prompt_eval_s: Evaluating the uncached prompt, the first token's decode included.
        eval_s: Generating every later token.
        network_s: Request written to final line read - total: the way there and back, and the HTTP
            handling on both sides. Below 0 by as much as the server began before all was written.
        parse_s: Parsing the lines, after the last one.
        residual_s: What none of these explains: the client library between its stages, and without
            the server's durations also everything behind them.
        e2e_s: From the call to the parsed reply.
    """

    prepare_s: float | None
    dns_s: float | None
    connect_s: float | None
    tls_s: float | None
    send_s: float | None
    load_s: float | None
    slot_wait_s: float | None
    prompt_eval_s: float | None
    eval_s: float | None
    network_s: float | None
    parse_s: float | None
    residual_s: float
    e2e_s: float

    def parts(self) -> dict[str, float]:
        """Return every part that occurred, in order of time, the residual last; they add up to E2E."""
        named = {one.name.removesuffix("_s"): getattr(self, one.name) for one in fields(self)}
        del named["e2e"]
        return {name: seconds for name, seconds in named.items() if seconds is not None}


def stage_ledger(moments: Moments, server: Stages) -> StageLedger:
    """Return the ledger of a finished request.

    Args:
        moments: The client's; the reply has been parsed.
        server: What ``metrics.stages`` says of the request's record; load, slot wait, prompt and eval
            are taken from it.
    """
    at = moments
    network_s = None
    parts = (server.load_s, server.slot_wait_s, server.prompt_eval_s, server.eval_s)
    known = [part for part in parts if part is not None]
    if at.sent_end_s is not None and at.final_s is not None and len(known) == len(parts):
        network_s = at.final_s - at.sent_end_s - sum(known)
    e2e_s = (at.parsed_s or at.called_s) - at.called_s
    spans = {
        "prepare_s": _between(at.called_s, at.prepared_s),
        "dns_s": _between(at.lookup_s, at.resolved_s),
        "connect_s": _between(at.resolved_s or at.lookup_s, at.connected_s),
        "tls_s": _between(at.tls_s, at.secured_s),
        "send_s": _between(at.send_s, at.sent_end_s),
        "load_s": server.load_s,
        "slot_wait_s": server.slot_wait_s,
        "prompt_eval_s": server.prompt_eval_s,
        "eval_s": server.eval_s,
        "network_s": network_s,
        "parse_s": _between(at.body_end_s, at.parsed_s),
    }
    explained_s = sum(span for span in spans.values() if span is not None)
    return StageLedger(**spans, residual_s=e2e_s - explained_s, e2e_s=e2e_s)


def _between(start_s: float | None, end_s: float | None) -> float | None:
    return None if start_s is None or end_s is None else end_s - start_s
