"""One thread that reads samplers at a steady beat, on the clock of the tokens.

A *sampler* knows how to read something now (this host, a process tree, GPUs, slots); a *round* reads
all of them once. The beat steps ``due_s += interval_s``, so a slow round delays none but itself; beats
that pass while a round is still busy are *missed*, counted and not made up for. What the watching
itself costs is measured with it.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from ollamalab.errors import SamplerUnavailable, SettingsError
from ollamalab.records import Sample

_JOIN_S = 4.0  # nbval gives a kernel 5 s to end


class Sampler(Protocol):
    """Reads something on this machine; used from one thread at a time.

    Attributes:
        notes: What it can no longer tell and why, one line each; shown beside the samples.
    """

    notes: list[str]

    def read(self) -> Mapping[str, Mapping[str, float | None]]:
        """Return the values of each source, now; see ``records.Sample``.

        Raises:
            SamplerUnavailable: It has nothing to read any more, for good; the message is the reason.
        """
        ...


@runtime_checkable
class Threaded(Protocol):
    """A sampler that reads in a thread of its own, whose time would else be nobody's.

    Attributes:
        cpu_s: CPU time of that thread so far.
    """

    cpu_s: float


@dataclass(frozen=True, kw_only=True)
class SamplingStatistics:
    """What a stretch of sampling did and cost.

    Attributes:
        rounds: Rounds that were read.
        missed: Beats that passed while a round was busy.
        held: Samples in the buffer.
        dropped: Oldest samples that had to make room.
        elapsed_s: From the first round's start to the last one's end.
        cpu_s: CPU time of it all: of the thread, its waking included, and of threads that samplers have.
        reading_s: Kind of sampler to seconds its readings took in all, on the clock.
        reading_cpu_s: Kind of sampler to the CPU time of its readings; the beat's own is what remains.
        longest_s: The longest round; None before the first has ended.
    """

    rounds: int
    missed: int
    held: int
    dropped: int
    elapsed_s: float
    cpu_s: float
    reading_s: Mapping[str, float]
    reading_cpu_s: Mapping[str, float]
    longest_s: float | None

    @property
    def cpu_ratio(self) -> float | None:
        """Share of one core that the sampling took; None before the first round has ended."""
        return self.cpu_s / self.elapsed_s if self.elapsed_s else None


def next_beat(due_s: float, now_s: float, interval_s: float) -> tuple[float, int]:
    """Return when the next round is due and how many beats were missed before it.

    Args:
        due_s: When the round that has just ended was due.
        now_s: When it ended.
        interval_s: Between beats; beats lie at ``due_s + n·interval_s`` for ever.
    """
    late_s = now_s - due_s
    missed = max(0, int(late_s // interval_s))
    return due_s + (missed + 1) * interval_s, missed


class Sampling:
    """Reads samplers in a thread of its own, while inside the ``with``.

    There is one round when it is entered (finished before the ``with`` body runs) and one when it is
    left, so that counters span the whole body, however short. A sampler that becomes unavailable
    is left out from then on and its reason noted; any other failure of a sampler is a mistake in it
    and is raised at the end of the ``with``.
    """

    def __init__(
        self,
        samplers: Sequence[Sampler],
        *,
        interval_s: float = 0.25,
        capacity: int = 200_000,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Prepare; nothing is read yet.

        Args:
            samplers: Read one after the other, in this order. They stay the caller's to close.
            interval_s: Between rounds; > 0.
            capacity: Samples held at most; the oldest make room.
            clock: Monotonic seconds, the one that stamps the tokens.

        Raises:
            SettingsError: The interval or the capacity is not above 0.
        """
        if not interval_s > 0 or capacity < 1:
            raise SettingsError(f"interval_s and capacity must be > 0, got {interval_s!r} and {capacity!r}")
        self._samplers = list(samplers)
        self._interval_s = interval_s
        self._clock = clock
        self._capacity = capacity
        # Bare tuples: a Sample takes longer to make than to read, and most are looked at once, afterwards.
        self._held: deque[tuple[float, str, Mapping[str, float | None]]] = deque(maxlen=capacity)
        self._lock = threading.Lock()  # of the fields below and the buffer
        self._notes: list[str] = []
        self._rounds = self._missed = self._dropped = 0
        self._reading_s: defaultdict[str, float] = defaultdict(float)
        self._reading_cpu_s: defaultdict[str, float] = defaultdict(float)
        threaded = [sampler for sampler in samplers if isinstance(sampler, Threaded)]
        self._elsewhere = [(type(sampler).__name__, sampler, sampler.cpu_s) for sampler in threaded]
        self._longest_s: float | None = None
        self._begun_s = self._elapsed_s = self._cpu_s = 0.0
        self._failure: Exception | None = None
        self._first_round_done = threading.Event()
        # Held while inside the ``with``. A lock, because Event.wait is Python that each beat would run cold.
        self._inside = threading.Lock()
        # A daemon, so that a reading which never returns (a hung driver) cannot hold up the exit.
        self._thread = threading.Thread(target=self._run, name="ollamalab-sampling", daemon=True)

    @property
    def samples(self) -> list[Sample]:
        """What has been read so far, in order of time; a copy."""
        with self._lock:
            held = list(self._held)
        return [Sample(at_s=at_s, source=source, values=values) for at_s, source, values in held]

    @property
    def notes(self) -> list[str]:
        """What could not be told, and why: of the samplers and of the sampling itself."""
        with self._lock:
            return [note for sampler in self._samplers for note in sampler.notes] + self._notes

    def statistics(self) -> SamplingStatistics:
        """Return what the sampling has done and cost so far."""
        with self._lock:
            cpu_s, reading_cpu_s = self._cpu_s, dict(self._reading_cpu_s)
            for kind, sampler, before_s in self._elsewhere:
                cpu_s += sampler.cpu_s - before_s
                reading_cpu_s[kind] = reading_cpu_s.get(kind, 0.0) + sampler.cpu_s - before_s
            return SamplingStatistics(
                rounds=self._rounds,
                missed=self._missed,
                held=len(self._held),
                dropped=self._dropped,
                elapsed_s=self._elapsed_s,
                cpu_s=cpu_s,
                reading_s=dict(self._reading_s),
                reading_cpu_s=reading_cpu_s,
                longest_s=self._longest_s,
            )

    def cost_samples(self) -> list[Sample]:
        """Return what it has cost so far as samples of its own, to be kept beside the others.

        Source "sampling": ``cpu_s``, ``elapsed_s``, ``rounds``, ``missed``, ``dropped``; and for each kind of
        sampler "sampling:KIND": ``cpu_s`` and ``elapsed_s`` of its readings.
        """
        found = self.statistics()
        at_s = self._begun_s + found.elapsed_s
        whole: dict[str, float | None] = {
            "cpu_s": found.cpu_s,
            "elapsed_s": found.elapsed_s,
            "rounds": found.rounds,
            "missed": found.missed,
            "dropped": found.dropped,
        }
        return [
            Sample(at_s=at_s, source="sampling", values=whole),
            *(
                Sample(
                    at_s=at_s,
                    source=f"sampling:{kind}",
                    values={"cpu_s": found.reading_cpu_s[kind], "elapsed_s": elapsed_s},
                )
                for kind, elapsed_s in found.reading_s.items()
            ),
        ]

    def __enter__(self) -> Self:
        self._inside.acquire()
        self._thread.start()
        self._first_round_done.wait()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._inside.release()
        self._thread.join(_JOIN_S)
        if self._thread.is_alive():
            with self._lock:
                self._notes.append(
                    f"a reading did not come back within {_JOIN_S:g} s; the last round is missing"
                )
        if self._failure is not None and error is None:
            raise self._failure

    def _run(self) -> None:
        active = list(self._samplers)
        self._begun_s = due_s = self._clock()
        try:
            self._read_round(active)
            self._first_round_done.set()
            has_left = False
            while not has_left:
                due_s, missed = next_beat(due_s, self._clock(), self._interval_s)
                if missed:
                    with self._lock:
                        self._missed += missed
                has_left = self._inside.acquire(timeout=max(0.0, due_s - self._clock()))
                self._read_round(active)
        except Exception as error:
            self._failure = error
        finally:
            self._first_round_done.set()

    def _read_round(self, active: list[Sampler]) -> None:
        """Read every sampler once; take out those that have become unavailable."""
        round_begun_s, before_cpu_s = self._clock(), time.thread_time()
        for sampler in tuple(active):
            kind = type(sampler).__name__
            begun_s = self._clock()
            try:
                readings = sampler.read()
            except SamplerUnavailable as error:
                active.remove(sampler)
                with self._lock:
                    self._notes.append(str(error))
                continue
            ended_s, cpu_s = self._clock(), time.thread_time()
            # The middle: the value was true somewhere between the question and its answer.
            at_s = (begun_s + ended_s) / 2
            with self._lock:
                self._reading_s[kind] += ended_s - begun_s
                self._reading_cpu_s[kind] += cpu_s - before_cpu_s
                self._dropped += max(0, len(self._held) + len(readings) - self._capacity)
                self._held.extend((at_s, source, values) for source, values in readings.items())
            before_cpu_s = cpu_s
        ended_s = self._clock()
        with self._lock:
            self._rounds += 1
            self._elapsed_s = ended_s - self._begun_s
            self._cpu_s = time.thread_time()  # the thread began with the sampling
            self._longest_s = max(self._longest_s or 0.0, ended_s - round_begun_s)
