"""One experiment in a notebook: its parameters, open servers, samplers and report."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import Any

from ollamalab.claims import CLAIMS
from ollamalab.compare import ClaimVerdict, Comparison, blocks_for_pairs, design, not_testable, settle_fact
from ollamalab.gpu import gpu_sampler
from ollamalab.host import HostSampler, ProcessSampler
from ollamalab.hosts import SlotSampler, Target, open_target
from ollamalab.hosts.slots import Slots
from ollamalab.lab.sentences import Said
from ollamalab.lab.subject import Subject
from ollamalab.lab.trials import Trials, Visitor, run_visits
from ollamalab.loadgen import LoadResult
from ollamalab.report import Contrast, Experiment, Report, root
from ollamalab.report.notebooks import read_notebook
from ollamalab.runner.parameters import parameters_of
from ollamalab.sampling import Sampler, Sampling
from ollamalab.settings import ServerSettings


class Lab:
    """What a notebook opens first and closes last.

    Attributes:
        experiment: Name of the notebook.
        parameters: Of its parameters cell, as they are used.
        report: Collects and saves what was found.
    """

    def __init__(self, experiment: str, namespace: Mapping[str, Any]) -> None:
        """Open the report of an experiment.

        Args:
            experiment: Name of the notebook, "02_cold_start".
            namespace: The notebook's ``globals()``: the parameters are read from it by the names in
                its parameters cell.
        """
        self.experiment = experiment
        notebook = root() / "notebooks" / f"{experiment}.ipynb"
        names = parameters_of(read_notebook(notebook), notebook.name)
        self.parameters = {name: namespace[name] for name in names}
        self.report = Report(experiment, parameters=self.parameters)
        self._opened = AsyncExitStack()
        self._subjects: list[Subject] = []

    async def subject(
        self, target: str, model: str, settings: ServerSettings | None = None, *, name: str = ""
    ) -> Subject:
        """Open a server and a model on it; it is closed with the lab.

        Args:
            target: "embedded", "ollama", or the URL of a server.
            model: A model that it has.
            settings: What our server is started with; default Ollama's own.
            name: Names it in the report, where an equal name is replaced; default the target.

        Raises:
            TargetError: It does not start or answer, or lacks the model.
        """
        opened = await self._opened.enter_async_context(open_target(target, settings, models=[model]))
        subject = await self._opened.enter_async_context(Subject(opened, model, seed=self._seed))
        self._subjects.append(subject)
        self.report.server[name or target] = await opened.describe()
        return subject

    async def subjects(
        self, target: str, model: str, arms: Mapping[str, ServerSettings]
    ) -> dict[str, Subject]:
        """Open a server per arm, side by side, with the model loaded; else as ``subject``."""

        async def opened(name: str, settings: ServerSettings) -> Subject:
            subject = await self.subject(target, model, settings, name=name)
            await subject.client.preload(model)
            return subject

        found = await asyncio.gather(*(opened(name, settings) for name, settings in arms.items()))
        return dict(zip(arms, found, strict=True))

    async def compare(self, visitors: Mapping[str, Visitor], *, pairs: int) -> Trials:
        """Visit the arms in blocks drawn from the seed; keep every record in the report.

        Args:
            visitors: Arm to what its visit does; the first is the baseline.
            pairs: Least pairs per arm; fixed beforehand.
        """
        names = tuple(visitors)
        visits = design(names, blocks_for_pairs(pairs, len(names)), random.Random(self._seed))
        trials = await run_visits(visitors, visits)
        self.report.add_records(trials.records)
        return trials

    def watch(self, *targets: Target, interval_s: float = 0.1) -> Sampling:
        """Return samplers of this host, its GPUs and the servers' processes and slots, as a ``with``.

        Sources carry the URL of their server; hand the samples over with ``keep`` afterwards.
        """
        gpus = gpu_sampler()
        self._opened.callback(gpus.close)
        samplers: list[Sampler] = [HostSampler(), gpus]
        for target in targets:
            samplers += [
                ProcessSampler(target.pids, source=f"server {target.url}"),
                SlotSampler(partial(_slots, target)),
            ]
        return Sampling(samplers, interval_s=interval_s)

    def keep(self, sampling: Sampling, results: Mapping[str, LoadResult] | None = None) -> None:
        """Put samples into the report, and the records of loads that are no comparison, by arm."""
        self.report.add_samples(sampling.samples)
        for arm, result in (results or {}).items():
            self.report.add_records(replace(record, arm=arm) for record in result.records)

    def save(self) -> Experiment:
        """Add how the client fared, write everything, return it as read back from the disk."""
        health = [health for subject in self._subjects for health in subject.health]
        unfit = [reason for one in health for reason in one.reasons]
        if unfit:
            self.report.add_finding(
                f"In {sum(not one.fit for one in health)} of {len(health)} loads the client was not fit to "
                f"measure, first because {unfit[0]}."
            )
        return self.report.save()

    def settle(self, claim: str, comparison: Comparison, subject: Subject) -> None:
        """Keep a measured contrast for the verdicts of the run.

        Args:
            claim: Id of the published claim that it settles; "" for none.
            comparison: Primary, so that it counts among the run's tests.
            subject: What it was measured on.
        """
        sign = "/" if comparison.metric.kind == "ratio" else "−"
        text = f"{comparison.arm} {sign} {comparison.baseline}, {comparison.metric.name}"
        self.report.add_contrast(Contrast(text=text, claim=claim, comparison=comparison, target=subject.name))

    def observe(self, claim: str, *, holds: bool, evidence: str, subject: Subject, n: int) -> Said:
        """Settle a factual claim by what was seen, ``n`` times; return the verdict for the cell to show."""
        return self._say(claim, settle_fact(holds=holds, evidence=evidence), target=subject.name, n=n)

    def not_testable(self, claim: str, reason: str) -> Said:
        """Say why a claim cannot be tested here; return the verdict for the cell to show."""
        return self._say(claim, not_testable(reason))

    def _say(self, claim: str, seen: ClaimVerdict, *, target: str = "", n: int | None = None) -> Said:
        text = CLAIMS[claim].text
        self.report.add_contrast(Contrast(text=text, claim=claim, observed=seen, target=target, n=n))
        return Said(f"**{claim}, {seen.word}:** {text}. *{seen.reason[:1].upper()}{seen.reason[1:]}.*")

    async def close(self) -> None:
        """End every server that was started and every connection."""
        await self._opened.aclose()

    @property
    def _seed(self) -> int:
        return int(self.parameters.get("seed", 0))


def _slots(target: Target) -> Slots:
    """Return the slots of a target's engines under names that say whose they are."""
    return {f"{engine} {target.url}": slots for engine, slots in target.slots().items()}
