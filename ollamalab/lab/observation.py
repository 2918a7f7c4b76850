"""Trying what factual claims say: pings, eviction, decoding side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ollamalab.lab.frames import most_at_once, most_busy
from ollamalab.lab.sentences import listed, ping_sentence
from ollamalab.lab.subject import Subject
from ollamalab.lab.trials import Trials
from ollamalab.lab.watching import default_keep_alive_s, watch_pings
from ollamalab.records import Sample

#: Time between pings / keep-alive: six hours with Ollama's default of five minutes.
PING_RATIO = 72


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What was seen of a factual claim.

    Attributes:
        holds: Whether the claim does; None where it could not be tried, or where what was seen cannot tell.
        evidence: What was seen, or why nothing could be.
        n: How often it was tried.
    """

    holds: bool | None
    evidence: str
    n: int = 0


async def observe_pings(
    subject: Subject, *, every_s: float, pings: int, not_run: str | None = None
) -> Observation:
    """Try whether pings keep a model loaded whose keep-alive ends 72 times before the next one.

    Args:
        subject: The model; unloaded first.
        every_s: From the end of a ping to the next.
        pings: How many, at least 2: the first always finds the model unloaded.
        not_run: Why it cannot be tried; None if it can.
    """
    if not_run:
        return Observation(holds=None, evidence=not_run)
    pinged = await watch_pings(subject, every_s=every_s, pings=pings, keep_alive_s=every_s / PING_RATIO)
    kept = await watch_pings(subject, every_s=every_s / 2, pings=2, keep_alive_s=-1)
    evidence = ping_sentence(pinged, kept, await default_keep_alive_s(subject))
    return Observation(holds=pinged.cold_pings == 1, evidence=evidence, n=pings - 1)


def observe_decoding(
    trials: Trials, subjects: Mapping[str, Subject], samples: Iterable[Sample]
) -> Observation:
    """Return whether requests are served one by one: no two sequences ever decode at once.

    Args:
        trials: Loads of more than one request.
        subjects: Arm to server; one with a single slot, or with nobody knows how many, proves nothing.
        samples: Of the engines' own slots, meanwhile.
    """
    kept = list(samples)
    most = {name: most_at_once(trials.of(name)) for name in subjects}
    busy = {name: most_busy(kept, subject) for name, subject in subjects.items()}
    evidence = (
        f"sequences decoding at once, by the client's stamps: {listed(most)}; "
        f"busy slots, by the engine's own state: {listed(busy)}"
    )
    tried = sum(len(trials.of(name)) for name in subjects)
    if max(most.values()) > 1:
        return Observation(holds=False, evidence=evidence, n=tried)
    if any((subject.slots or 0) > 1 for subject in subjects.values()):
        return Observation(holds=True, evidence=evidence, n=tried)
    return Observation(holds=None, evidence=f"{evidence}; but the servers may have one slot only", n=tried)
