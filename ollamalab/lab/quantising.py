"""One model in several quantisations: speed, memory, and how far they say the same.

Terms. *Variant*: the model with its weights in one format; it is named by the format (F16, Q8_0 ...).
*Derived*: made by us from a file that was quantised already, so that nothing the source had lost comes
back: how near it stays to that source can be told, how good it is cannot.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev
from typing import Any

import psutil

from ollamalab.compare import Visit, blocks_for_pairs, visit_values
from ollamalab.embedded.models import DERIVED_FROM
from ollamalab.errors import SamplerUnavailable, UpstreamError
from ollamalab.hosts import EngineProcess
from ollamalab.lab.experiment import Lab
from ollamalab.lab.models import have_models, is_ours
from ollamalab.lab.subject import ONE_REQUEST, PromptShape, Subject
from ollamalab.lab.trials import Statistic, Trials, Visitor
from ollamalab.protocol.names import parse_name
from ollamalab.records import RequestRecord
from ollamalab.report import Column, Table
from ollamalab.settings import ServerSettings

_MB = 1e6


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One quantisation of the model, on a server.

    Attributes:
        name: Its format as the server names it, "Q4_0"; the model's name where two are alike.
        subject: Server and model.
        file_bytes: Size of its file; None where the server does not tell.
        weights: How many it has; None where the server does not tell.
        derived_from: What we made it from; None for an original, or where the server does not tell.
    """

    name: str
    subject: Subject
    file_bytes: int | None
    weights: int | None
    derived_from: str | None

    @property
    def bits_per_weight(self) -> float | None:
        """Bits of its file per weight: embeddings often keep more than the rest."""
        return 8 * self.file_bytes / self.weights if self.file_bytes and self.weights else None


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What a loaded variant takes; None where it is not told.

    Attributes:
        listed_bytes: ``size`` of ``/api/ps``.
        vram_bytes: ``size_vram`` of ``/api/ps``: the part on GPUs.
        resident_bytes: Main memory of its engine's process that is in use (RSS).
    """

    listed_bytes: int | None
    vram_bytes: int | None
    resident_bytes: int | None

    @property
    def total_bytes(self) -> int | None:
        """Main memory of the engine and its part on GPUs; what is listed if the engine is not ours to see."""
        if self.resident_bytes is None:
            return self.listed_bytes
        return self.resident_bytes + (self.vram_bytes or 0)


# The variants and their servers


async def open_variants(
    experiment: Lab, target: str, models: Sequence[str], settings: ServerSettings | None
) -> dict[str, Variant]:
    """Open a server for each model, side by side, or the one server at a URL; return them by name, in order.

    Args:
        experiment: Closes them.
        target: "embedded", "ollama", or the URL of a server.
        models: Variants of one model; the embedded server derives those of its own model on first use.
        settings: What our servers are started with.

    Raises:
        TargetError: A server does not start or answer, or lacks a model.
        ModelError: The embedded server cannot get a model.
    """
    await have_models(target, *models)  # before all of them look for the same source
    ours = settings if is_ours(target) else None
    subjects = await asyncio.gather(
        *(experiment.subject(target, model, ours, name=model) for model in models)
    )
    shown = {subject.model: await subject.client.show(subject.model) for subject in subjects}
    names = variant_names(shown)
    variants = [
        _variant(names[subject.model], subject, shown[subject.model], await subject.client.tags())
        for subject in subjects
    ]
    return {variant.name: variant for variant in variants}


def variant_names(shown: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return what each model is called by: its format, or its own name where the format tells too little.

    Args:
        shown: Model to what ``/api/show`` says of it.
    """
    levels = {
        model: str(reply.get("details", {}).get("quantization_level")) for model, reply in shown.items()
    }
    known = list(levels.values())
    return {
        model: level if level not in ("None", "", "unknown") and known.count(level) == 1 else model
        for model, level in levels.items()
    }


def _variant(
    name: str, subject: Subject, shown: Mapping[str, Any], tags: Sequence[Mapping[str, Any]]
) -> Variant:
    info = shown.get("model_info") or {}
    key = parse_name(subject.model).key
    sizes = [tag.get("size") for tag in tags if parse_name(tag["name"]).key == key]
    return Variant(
        name=name,
        subject=subject,
        file_bytes=next(iter(sizes), None),
        weights=info.get("general.parameter_count"),
        derived_from=info.get(DERIVED_FROM),
    )


# Speed


@dataclass(kw_only=True)
class Launches:
    """Visits of variants whose engines are launched anew every few blocks.

    What one launch happens to get, such as its memory layout, would pass for an effect of the format. So
    before a group of blocks every variant is unloaded, which ends its engine, and asked at once, in an order
    drawn anew: that request tells the load and is not compared.

    Attributes:
        variants: By name; the first is the baseline.
        shape: Lengths of prompts and answers.
        pairs: Least pairs per variant.
        launches: How often each engine is launched.
        seed: Of the order of launches.
        why_kept: Why the server does not unload when told to, so that nothing is launched; None if it does.
        loads: The first request after each launch, labelled with its variant and launch.
    """

    variants: Mapping[str, Variant]
    shape: PromptShape
    pairs: int
    launches: int
    seed: int
    why_kept: str | None = None
    loads: list[RequestRecord] = field(default_factory=list)

    @property
    def blocks_per_launch(self) -> int:
        """How many blocks an engine serves before it is launched anew."""
        blocks = blocks_for_pairs(self.pairs, len(self.variants))
        return max(1, -(-blocks // self.launches))

    def visitors(self) -> dict[str, Visitor]:
        """Return a visitor per variant: one request, after a launch where one is due."""
        rng = random.Random(self.seed)
        launched: set[int] = set()

        def visitor(subject: Subject) -> Visitor:
            request = subject.loads(ONE_REQUEST, self.shape)

            async def visit(visit: Visit) -> Sequence[RequestRecord]:
                launch = visit.block // self.blocks_per_launch
                if launch not in launched:
                    launched.add(launch)
                    await self._launch(launch, rng)
                return list(await request(visit))

            return visit

        return {name: visitor(variant.subject) for name, variant in self.variants.items()}

    async def _launch(self, launch: int, rng: random.Random) -> None:
        names = list(self.variants)
        for place, name in enumerate(rng.sample(names, len(names))):
            subject = self.variants[name].subject
            if self.why_kept is None:
                await subject.unload()
            (record,) = (await subject.offer(ONE_REQUEST, self.shape, stream=f"launch {launch}")).records
            self.loads.append(replace(record, arm=name, block=launch, visit=launch * len(names) + place))

    def load_trials(self) -> Trials:
        """Return the first requests after each launch, to compare loads: one pair per launch."""
        missing = {} if self.why_kept is None else dict.fromkeys(self.variants, self.why_kept)
        return Trials(arms=tuple(self.variants), records=tuple(self.loads), not_run=missing)

    def spread(self, trials: Trials, arm: str, statistic: Statistic) -> float | None:
        """Return how much a variant differs from launch to launch: standard deviation of log means."""
        groups: defaultdict[int, list[float]] = defaultdict(list)
        for visit, value in visit_values(trials.of(arm), statistic).items():
            if value is not None and value > 0:
                groups[visit.block // self.blocks_per_launch].append(value)
        logs = [math.log(fmean(group)) for group in groups.values()]
        return stdev(logs) if len(logs) > 1 else None

    def spread_note(self, trials: Trials, statistic: Statistic) -> str:
        """Return how much the variants differ from launch to launch, for a table's caption."""
        spreads = {arm: self.spread(trials, arm, statistic) for arm in trials.arms}
        texts = [f"{arm} {'n/a' if value is None else f'{value:.0%}'}" for arm, value in spreads.items()]
        return f" Spread of the decode rate over {self.launches} launches: {', '.join(texts)}."


# Memory


async def memory_of(variant: Variant) -> Memory:
    """Return what a variant takes now; it is loaded if it is not."""
    subject = variant.subject
    await subject.client.preload(subject.model)
    listed = await subject.listing() or {}
    resident_bytes = None
    try:
        engine = await engine_of(subject)
        resident_bytes = psutil.Process(engine.pid).memory_info().rss
    except (SamplerUnavailable, UpstreamError, psutil.Error):
        pass  # of another host, or another user: shown as n/a
    return Memory(
        listed_bytes=listed.get("size"), vram_bytes=listed.get("size_vram"), resident_bytes=resident_bytes
    )


async def engine_of(subject: Subject) -> EngineProcess:
    """Return the engine that has a subject's model in memory.

    Raises:
        SamplerUnavailable: The server does not let it be known.
        UpstreamError: The server does not answer.
    """
    engines = await asyncio.to_thread(subject.target.engines)
    key = parse_name(subject.model).key
    own = [engine for engine in engines if engine.model and parse_name(engine.model).key == key]
    if not own and len(engines) == 1 and engines[0].model is None:
        own = engines  # the only model of a server of ours
    if not own:
        raise SamplerUnavailable(f"{subject.target.url} does not tell which engine has {subject.model}")
    return own[0]


def variants_table(variants: Mapping[str, Variant], memory: Mapping[str, Memory]) -> Table:
    """Return what each variant takes, on disk and loaded."""
    rows = []
    for name, variant in variants.items():
        sizes = (
            variant.file_bytes,
            memory[name].listed_bytes,
            memory[name].vram_bytes,
            memory[name].resident_bytes,
        )
        in_mb = [None if size is None else size / _MB for size in sizes]
        rows.append((name, variant.subject.model, variant.bits_per_weight, *in_mb))
    names = ("File", "/api/ps", "of it on GPUs", "Engine resident")
    return Table.of(
        "memory",
        "What each variant takes",
        [
            Column(name="Variant"),
            Column(name="Model"),
            Column(name="Bits per weight", format=".1f"),
            *(Column(name=name, unit="MB", format=".0f") for name in names),
        ],
        rows,
        caption="MB of 10⁶ bytes, after the visits. Bits per weight: of the whole file, whose embeddings may "
        "keep more bits than the rest. Engine resident: main memory of its process (RSS), with its program, "
        "buffers and the context's keys and values.",
    )
