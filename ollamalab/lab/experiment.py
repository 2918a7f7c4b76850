"""One experiment in a notebook: its parameters, open servers, samplers and report."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import Any, Literal, TypeVar

from ollamalab.claims import CLAIMS
from ollamalab.compare import ClaimVerdict, Comparison, blocks_for_pairs, design, not_testable, settle_fact
from ollamalab.gpu import open_gpus
from ollamalab.host import HostSampler, ProcessSampler
from ollamalab.hosts import SlotSampler, Target, open_target
from ollamalab.hosts.slots import Slots
from ollamalab.lab.cold import PRELOADED, UNLOADED, compare_reloaded
from ollamalab.lab.models import have_models, is_ours
from ollamalab.lab.observation import Observation
from ollamalab.lab.sentences import Said
from ollamalab.lab.subject import PromptShape, Subject, synthetic_models
from ollamalab.lab.trials import Trials, Visitor, run_visits
from ollamalab.loadgen import LoadResult
from ollamalab.protocol.names import parse_name
from ollamalab.protocol.synthetic import mark_synthetic
from ollamalab.report import Advice, Arm, Contrast, Experiment, Report, root
from ollamalab.report.notebooks import read_notebook
from ollamalab.runner.parameters import parameters_of
from ollamalab.sampling import Sampler, Sampling
from ollamalab.settings import ServerSettings

Opened = TypeVar("Opened")

#: The one arm of a server whose settings are not ours to choose.
AS_IT_IS = "server as it is"


class Lab:
    """What a notebook opens first and closes last.

    Attributes:
        experiment: Name of the notebook.
        parameters: Of its parameters cell, as they are used.
        report: Collects and saves what was found.
        not_run: Arms that the target could not carry, with the reason.
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
        self.not_run: dict[str, str] = {}
        self._opened = AsyncExitStack()
        self._subjects: list[Subject] = []

    async def subject(
        self,
        target: str,
        model: str,
        settings: ServerSettings | None = None,
        *,
        name: str = "",
        others: Sequence[str] = (),
        port: int = 0,
        gpus: Sequence[int] = (),
    ) -> Subject:
        """Open a server and a model on it; it is closed with the lab.

        Args:
            target: "embedded", "ollama", or the URL of a server.
            model: A model that it has, or that the embedded server can get.
            settings: What our server is started with; default Ollama's own.
            name: Names it in the report, where an equal name is replaced; default the target.
            others: More models that it must have.
            port: Where our server listens, also after a restart; 0 takes a free one at each start.
            gpus: GPUs that our server may use, as ``nvidia-smi`` numbers them; none for all.

        Raises:
            TargetError: It does not start or answer, or lacks a model.
            ModelError: The embedded server cannot get a model.
        """
        models = [model, *others]
        await have_models(target, *models)
        opened = await self._opened.enter_async_context(
            open_target(target, settings, models=models, port=port, gpus=gpus)
        )
        subject = await self._opened.enter_async_context(Subject(opened, model, seed=self._seed))
        self._subjects.append(subject)
        synthetic = await synthetic_models(subject.client, models)
        self._note_synthetic(synthetic)
        self.report.server[name or target] = _with_marks(await opened.describe(), synthetic)
        self.report.add_notes(
            f"{variable} is set and does nothing: {reason}" for variable, reason in opened.ignored.items()
        )
        return subject

    def _note_synthetic(self, models: Iterable[str]) -> None:
        self.report.synthetic.update(models)
        for model in sorted(models):
            self.report.add_finding(
                f"{mark_synthetic(model)} has random weights: its load times, memory and speed are those of "
                "its shape, its text is noise."
            )

    async def subjects(
        self, target: str, model: str, arms: Mapping[str, ServerSettings], *, others: Sequence[str] = ()
    ) -> dict[str, Subject]:
        """Open a server per arm, side by side; else as ``subject``.

        The settings of a URL are not ours: there the server *as it is* is the one subject, and the arms
        are noted as not run. It need not have the other models.
        """
        if not is_ours(target):
            alone = await self.subject(target, model, name=AS_IT_IS)
            self.skip(dict.fromkeys(arms, alone.target.unchangeable or ""))
            return {AS_IT_IS: alone}
        await have_models(target, model, *others)  # once, before all of them look for it
        found = await asyncio.gather(
            *(
                self.subject(target, model, settings, name=name, others=others)
                for name, settings in arms.items()
            )
        )
        return dict(zip(arms, found, strict=True))

    def skip(self, not_run: Mapping[str, str]) -> None:
        """Note arms that the target cannot carry, with the reason: they are shown as not run."""
        self.not_run |= not_run
        for name, reason in not_run.items():
            self.report.add_arm(Arm(name=name, not_run=reason))

    async def skip_unless_unloaded(self, subject: Subject, *arms: str) -> None:
        """Skip arms that begin with an unload where the server does not unload when told to."""
        if reason := await subject.why_kept():
            self.skip(dict.fromkeys((*arms, UNLOADED, PRELOADED), reason))

    async def compare(self, visitors: Mapping[str, Visitor], *, pairs: int) -> Trials:
        """Visit the arms in blocks drawn from the seed; keep every record in the report.

        Args:
            visitors: Arm to what its visit does; the first is the baseline. Skipped arms are not visited.
            pairs: Least pairs per arm; fixed beforehand.
        """
        carried = {name: visitor for name, visitor in visitors.items() if name not in self.not_run}
        names = tuple(carried)
        rng = random.Random(self._seed)
        visits = design(names, blocks_for_pairs(pairs, len(names)), rng) if names else ()
        return self._kept(await run_visits(carried, visits, not_run=self.not_run))

    async def compare_reloaded(
        self, subjects: Mapping[str, Subject], shape: PromptShape, *, launches: int, is_brief: bool = False
    ) -> Trials:
        """Compare warm requests, one pair per launch of the engines; see ``cold.compare_reloaded``."""
        rng, not_run = random.Random(self._seed), self.not_run
        return self._kept(
            await compare_reloaded(
                subjects, shape, launches=launches, rng=rng, not_run=not_run, is_brief=is_brief
            )
        )

    def _kept(self, trials: Trials) -> Trials:
        self.report.add_records(trials.records)
        for name in trials.arms:
            self.report.add_arm(Arm(name=name))
        return trials

    def watch(
        self, *targets: Target, interval_s: float = 0.1, gpus: str = "auto", relist_s: float = 1.0
    ) -> Sampling:
        """Return samplers of this host, its GPUs and the servers' processes and slots, as a ``with``.

        Sources carry the URL of their server; hand the samples over with ``keep`` afterwards.

        Args:
            targets: The servers.
            interval_s: Between readings.
            gpus: Where GPU samples come from, such as the monitor of a remote host; see ``open_gpus``.
            relist_s: How late a server's new process, such as an engine, may be found.
        """
        gpu_source = open_gpus(gpus)
        self._opened.callback(gpu_source.close)
        samplers: list[Sampler] = [HostSampler(), gpu_source]
        for target in targets:
            samplers += [
                ProcessSampler(target.pids, source=f"server {target.url}", relist_s=relist_s),
                SlotSampler(partial(_slots, target)),
            ]
        return Sampling(samplers, interval_s=interval_s)

    def keep(self, sampling: Sampling, results: Mapping[str, LoadResult] | None = None) -> None:
        """Put samples into the report, and the records of loads that are no comparison, by arm.

        What could not be sampled, such as a GPU where there is none, is noted with its reason. What the
        sampling itself cost is kept among the samples, as source "sampling".
        """
        self.report.add_samples([*sampling.samples, *sampling.cost_samples()])
        self.report.add_notes(sampling.notes)
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

    def settle(
        self,
        claim: str,
        comparison: Comparison,
        subject: Subject,
        *,
        claimed: Literal["lower", "higher"] | None = None,
        advice: Advice | None = None,
    ) -> None:
        """Keep a measured contrast for the verdicts of the run; if an arm was not run, that and the reason.

        Args:
            claim: Id of the published claim that it settles; "" for none.
            comparison: Primary, so that it counts among the run's tests.
            subject: What it was measured on.
            claimed: The direction that a claim without a number names.
            advice: The setting that the arm has and the baseline has not; it is recommended where the
                comparison, corrected for the run's tests, shows that it is better.
        """
        missing = self.not_run.get(comparison.arm) or self.not_run.get(comparison.baseline)
        if claim and missing:
            self.not_testable(claim, missing)
            return
        sign = "/" if comparison.metric.kind == "ratio" else "−"
        text = f"{comparison.arm} {sign} {comparison.baseline}, {comparison.metric.name}"
        self.report.add_contrast(
            Contrast(
                text=text,
                claim=claim,
                comparison=comparison,
                claimed=claimed,
                target=subject.name,
                advice=advice,
            )
        )

    def observe(self, claim: str, seen: Observation, subject: Subject) -> Said:
        """Settle a factual claim by what was seen; return the verdict for the cell to show."""
        if seen.holds is None:
            return self.not_testable(claim, seen.evidence)
        verdict = settle_fact(holds=seen.holds, evidence=seen.evidence)
        return self._say(claim, verdict, target=subject.name, n=seen.n)

    def not_testable(self, claim: str, reason: str) -> Said:
        """Say why a claim cannot be tested here; return the verdict for the cell to show."""
        return self._say(claim, not_testable(reason))

    def _say(self, claim: str, seen: ClaimVerdict, *, target: str = "", n: int | None = None) -> Said:
        text = CLAIMS[claim].text
        self.report.add_contrast(Contrast(text=text, claim=claim, observed=seen, target=target, n=n))
        return Said(f"**{claim}, {seen.word}:** {text}. *{seen.reason[:1].upper()}{seen.reason[1:]}.*")

    async def enter(self, context: AbstractAsyncContextManager[Opened]) -> Opened:
        """Open something that is closed with the lab, before what was opened earlier."""
        return await self._opened.enter_async_context(context)

    async def close(self) -> None:
        """End every server that was started and every connection."""
        await self._opened.aclose()

    @property
    def _seed(self) -> int:
        return int(self.parameters.get("seed", 0))


def _with_marks(server: Mapping[str, Any], synthetic: Iterable[str]) -> dict[str, Any]:
    """Return the description of a server in which models with random weights say so."""
    keys = {parse_name(model).key for model in synthetic}
    models = [
        {**model, "synthetic": True} if parse_name(model["name"]).key in keys else model
        for model in server["models"]
    ]
    return {**server, "models": models}


def _slots(target: Target) -> Slots:
    """Return the slots of a target's engines under names that say whose they are."""
    return {f"{engine} {target.url}": slots for engine, slots in target.slots().items()}
