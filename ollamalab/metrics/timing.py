"""What one request took: durations and rates computed from the moments of its record.

Terms. *Planned*: counted from ``intended_s``, when the plan wanted the request sent, so that waiting
for a slow server or client is not forgotten. *Sent*: counted from ``sent_s``. The end of a request has
two moments: its *last token* and its *final line*. Every function returns None where a moment or a
server field is absent; none returns 0 for "unknown".

A record with a failed outcome still has the durations that its moments allow; the functions over many
records (``metrics.load``) decide which outcomes count.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from ollamalab.records import Outcome, RequestRecord

#: Outcomes whose ``end_s`` is the final line rather than a failure.
FINISHED = frozenset({Outcome.OK, Outcome.EMPTY})


def _elapsed_s(start_s: float | None, end_s: float | None) -> float | None:
    return None if start_s is None or end_s is None else end_s - start_s


def send_lag_s(record: RequestRecord) -> float | None:
    """Return how late the client sent it: ``sent_s - intended_s``; None if it was never sent."""
    return _elapsed_s(record.intended_s, record.sent_s)


def ttft_s(record: RequestRecord) -> float | None:
    """Return the time to first token: first chunk with content or thinking - send."""
    return _elapsed_s(record.sent_s, record.first_token_s)


def planned_ttft_s(record: RequestRecord) -> float | None:
    """Return the time to first token from the *planned* send; the headline of an open loop."""
    return _elapsed_s(record.intended_s, record.first_token_s)


def e2e_last_token_s(record: RequestRecord) -> float | None:
    """Return last chunk with content - send: the end-to-end time that TTFT and TPOT add up to."""
    return _elapsed_s(record.sent_s, record.last_token_s)


def e2e_final_line_s(record: RequestRecord) -> float | None:
    """Return final line - send: the end-to-end time to set against ``total_duration``.

    None for a request that ended without a final line.
    """
    return _elapsed_s(record.sent_s, record.end_s) if record.outcome in FINISHED else None


def response_s(record: RequestRecord) -> float | None:
    """Return final line - *planned* send: waiting included, whoever caused it.

    Source: the definition of wrk2, which corrects coordinated omission. None for a request that ended
    without a final line.
    """
    return _elapsed_s(record.intended_s, record.end_s) if record.outcome in FINISHED else None


def output_tokens(record: RequestRecord) -> int:
    """Return the tokens generated: ``eval_count`` as the server counts, else the chunks received."""
    return len(record.token_times_s) if record.output_tokens is None else record.output_tokens


def streamed_tokens(record: RequestRecord) -> int:
    """Return how many of the tokens reached the stream.

    ``eval_count`` counts the end token, which is never sent, when the model stopped by itself
    (llama.cpp: 48 counted, 47 sent). Without ``eval_count``, the chunks received.
    """
    ended_by_token = record.output_tokens is not None and record.done_reason == "stop"
    return output_tokens(record) - (1 if ended_by_token else 0)


def tpot_s(record: RequestRecord) -> float | None:
    """Return the time per output token after the first, seen from the client.

    (last token - first token) / (streamed tokens - 1). Tokens, not chunks, are counted wherever the
    server says how many there were; the unsent end token is left out. Queueing and prefill belong to
    time to first token. Other tools name this ITL, or count the first token too: compare formulas.

    Returns:
        Seconds per token; None with fewer than two tokens, or when all arrived in one read.
    """
    span_s = _elapsed_s(record.first_token_s, record.last_token_s)
    intervals = streamed_tokens(record) - 1
    return span_s / intervals if span_s and span_s > 0 and intervals >= 1 else None


def token_gaps_s(record: RequestRecord) -> list[float]:
    """Return the gaps between consecutive content chunks, in order; empty with fewer than two."""
    return [later - earlier for earlier, later in pairwise(record.token_times_s)]


def decode_tokens_per_s(record: RequestRecord) -> float | None:
    """Return the decode rate from the server's own fields.

    (eval_count - 1) / eval_duration: llama.cpp starts that clock after the first token, so 48 tokens
    take 47 intervals. None with fewer than two tokens or without the fields.
    """
    server = record.server
    if server is None or not server.eval_s or server.eval_tokens is None or server.eval_tokens < 2:
        return None
    return (server.eval_tokens - 1) / server.eval_s


def prefill_tokens_per_s(record: RequestRecord) -> float | None:
    """Return prompt_eval_count / prompt_eval_duration.

    True only if nothing of the prompt was cached: the count includes cached tokens, the duration does
    not, and Ollama has no field for their number. A nonce in the prompt makes it true.
    """
    server = record.server
    if server is None or not server.prompt_eval_s or not server.prompt_tokens:
        return None
    return server.prompt_tokens / server.prompt_eval_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Stages:
    """Where the time of one request went, in seconds; the parts add up to ``e2e_final_line_s``.

    Attributes:
        connect_s: Until a new connection stood; None on a reused one.
        load_s: Until the model was ready; the wait to be scheduled is in it.
        slot_wait_s: total - load - prompt_eval - eval. An upper bound of the wait for a slot:
            templating, tokenising and the server's own loopback are in it.
        prompt_eval_s: Evaluating the uncached prompt, the first token's decode included.
        eval_s: Generating every later token.
        network_s: E2E to the final line - connect - total: network, client and HTTP.
    """

    connect_s: float | None
    load_s: float | None
    slot_wait_s: float | None
    prompt_eval_s: float | None
    eval_s: float | None
    network_s: float | None


def stages(record: RequestRecord) -> Stages:
    """Return the stages of one request; those that cannot be told are None."""
    connect_s = _elapsed_s(record.sent_s, record.connected_s)
    server = record.server
    if server is None:
        return Stages(
            connect_s=connect_s,
            load_s=None,
            slot_wait_s=None,
            prompt_eval_s=None,
            eval_s=None,
            network_s=None,
        )
    slot_wait_s = None
    parts = (server.load_s, server.prompt_eval_s, server.eval_s)
    known = [part for part in parts if part is not None]
    if server.total_s is not None and len(known) == len(parts):
        slot_wait_s = server.total_s - sum(known)
    e2e_s = e2e_final_line_s(record)
    network_s = None
    if e2e_s is not None and server.total_s is not None:
        network_s = e2e_s - (connect_s or 0.0) - server.total_s
    return Stages(
        connect_s=connect_s,
        load_s=server.load_s,
        slot_wait_s=slot_wait_s,
        prompt_eval_s=server.prompt_eval_s,
        eval_s=server.eval_s,
        network_s=network_s,
    )
