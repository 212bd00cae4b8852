"""How many prompts, how many tokens and how much time would a start take, step by step?

Where the run has done work of the same kind, tokens (those of prompts and new ones) and time follow
from what that took (`metrics.jsonl`). Else they are the most that the knobs allow, and the time is
estimated from the device's peak, if that is known.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from ste_jax.commands.proposal import PACES, seconds_of
from ste_jax.config.schema import Config, LabelledSetKnobs
from ste_jax.pipeline.intake import read_labelled
from ste_jax.pipeline.phases import phases_of
from ste_jax.pipeline.phases.phase import Phase
from ste_jax.pipeline.preflight import seed_of
from ste_jax.reporting.tables import aligned
from ste_jax.run.changes import counted
from ste_jax.run.layout import RunDir
from ste_jax.run.metrics_log import read_metrics
from ste_jax.run.plan import ALL, REST, Plan, whole
from ste_jax.run.tables import Table
from ste_jax.system.errors import SteError, WorkError
from ste_jax.system.progress_lines import duration


@dataclass(frozen=True)
class Figures:
    """What a step would take; None is not known."""

    step: str
    number: int | None
    """How many prompts are asked, or `unit`s."""
    tokens: int | None
    seconds: float | None
    bound: bool = False
    """Whether number and tokens are the most that there can be."""
    unit: str = "prompts"
    estimated: bool = False
    """Whether the time is not measured in this run."""


def forecast(
    config: Config,
    run: RunDir,
    plan: Plan,
    processes: int = 1,
    estimate: Mapping[str, float] | None = None,
) -> list[Figures]:
    """What each step of a plan would take in which a model is asked or trained. `estimate` has the
    seconds of whole stages, for those that this run has not done yet."""
    events = read_metrics(run.root) if run.begun() else []
    return list(_Forecast(config, run, plan, events, processes, estimate or {}).steps())


_CHIPS = {"v5 lite": ("v5e-8", 8), "v6 lite": ("v6e-8", 8), "80gb": ("gpu-80gb", 1)}
"""A part of what JAX calls a chip -> the device that so many of them are."""


def device_of(config: Config, *, here: bool) -> str:
    """The device that a config is for, one of `PACES`, by its name or, if it is for those that are
    `here`, by them; empty if it is not known."""
    named = (name for name in PACES if config.name.endswith(f"-{name}"))
    if (found := next(named, "")) or not here:
        return found
    devices = jax.devices()
    kind = devices[0].device_kind.lower()
    known = (name for part, (name, n) in _CHIPS.items() if part in kind and n == len(devices))
    return "cpu" if devices[0].platform == "cpu" else next(known, "")


def estimate_of(config: Config, run: RunDir, device: str) -> dict[str, float]:
    """The seconds that whole stages take, estimated from a device's peak; empty if it is not
    known. A stage that asks an endpoint is left out."""
    if device not in PACES:
        return {}
    try:
        parameters = seed_of(config, run)[0].parameter_count()
    except SteError:  # it is gone
        return {}
    found = seconds_of(config, parameters, PACES[device])
    elsewhere = {
        "label": config.select.generator,
        "pair": config.pair.generator,
        "annotate": config.annotate.generator,
    }
    return {stage: seconds for stage, seconds in found.items() if not elsewhere.get(stage)}


@dataclass(frozen=True)
class _Rate:
    """What one row, or one optimizer step, took."""

    tokens: float
    seconds: float


@dataclass(frozen=True)
class _Forecast:
    config: Config
    run: RunDir
    plan: Plan
    events: Sequence[dict[str, Any]]
    processes: int
    estimate: Mapping[str, float]

    def steps(self) -> Iterator[Figures]:
        """The steps in order."""
        config, knobs = self.config, self.config.select
        pool = self._count(self.run.pool) if self.run.begun() else 0
        asked = pool or knobs.train + knobs.heldout
        if self._is_planned("label"):
            pool = pool or config.pool.sample or config.pool.limit
            most = self._most(1, classify=1)
            yield self._asked("label", "label", pool or None, most, "instructions")
        if self._is_planned("pair"):
            asked = min(asked, knobs.train + knobs.heldout)
            answers = 2 if config.pair.rejected_from == "respond" else 1
            most = self._most(1 + answers, respond=answers, modify=1)
            yield self._asked("pair", "pair", asked, most, "instructions")
        yield from self._evaluated("evaluate 0", 0)
        for index in range(1, config.iterations + 1):
            yield from self._iteration(index)

    def _iteration(self, index: int) -> Iterator[Figures]:
        config, prompts = self.config, self._training_prompts()
        asks = [("annotate", config.annotate.samples)]
        for phase in phases_of(config):
            asks += phase.asks(config)
        for name, samples in asks:
            if self._is_planned(f"{name} {index}"):
                stage = name.replace(" ", "_")
                most = self._most(1, judge=samples)
                yield self._asked(f"{name} {index}", stage, prompts, most)
        for phase in phases_of(config):
            if self._is_planned(f"{phase.name} {index}"):
                yield self._trained(phase, index, prompts)
        for phase_name in config.finetune.stages[:-1]:
            yield from self._evaluated(f"evaluate {index} after {phase_name}", index)
        yield from self._evaluated(f"evaluate {index}", index)

    def _is_planned(self, title: str) -> bool:
        """Whether a step is to be done, by itself or with others whose steps are not known."""
        todo = {whole(step.title) for step in self.plan.todo}
        number = next((word for word in title.split() if word.isdigit()), "0")
        return bool(todo & {title, ALL, REST, f"iteration {number}"})

    def _evaluated(self, title: str, index: int) -> Iterator[Figures]:
        if not self._is_planned(title):
            return
        prompts = 2 * self.config.select.heldout
        if self.run.begun():
            there = [self.run.iteration(index), self.run.iteration(0)]
            known = [self._count(each.heldout.prompts) for each in there]
            prompts = next(filter(None, known), prompts)
        prompts += 2 * sum(map(self._pairs, self.config.evaluate.sets))
        most = self._most(1, judge=self.config.evaluate.votes)
        yield self._asked(title, "evaluate", prompts, most)

    def _pairs(self, knobs: LabelledSetKnobs) -> int:
        """How many pairs a labelled set has."""
        there = self._count(self.run.labelled(knobs.name)) if self.run.begun() else 0
        return there or len(read_labelled(knobs))

    def _training_prompts(self) -> int:
        """How many prompts there are in an iteration, or can be."""
        if self.run.begun():
            for place in self.run.iterations()[1:]:
                if number := self._count(place.prompts):
                    return number
        knobs = self.config.select
        pairs = knobs.train - round(knobs.train * knobs.validation_fraction)
        return pairs * (2 if self.config.annotate.orders == "both" else 1)

    def _asked(
        self, title: str, stage: str, rows: int | None, most: int, unit: str = "prompts"
    ) -> Figures:
        """A step in which a model is asked about so many rows, unless the plan knows how many are
        to be done; `most` are the tokens that one of them can take."""
        usual = 2 * self.config.select.heldout if stage == "evaluate" else rows
        parts = [step for step in self.plan.todo if whole(step.title) == title]
        known = [step.todo for step in parts if not step.title.startswith("prompt set")]
        if known and None not in known:
            rows = sum(number or 0 for number in known)
        rate = self._rate("work", stage)
        if rows is None or rate is None:
            guess = self.estimate.get(stage)
            if rows is None or guess is None:
                tokens = None if rows is None else rows * most
                return Figures(title, rows, tokens, None, bound=rows is not None, unit=unit)
            seconds = guess * rows / max(1, usual or rows)
            return Figures(title, rows, rows * most, seconds, bound=True, unit=unit, estimated=True)
        seconds = rows * rate.seconds / self.processes
        return Figures(title, rows, round(rows * rate.tokens), seconds, unit=unit)

    def _trained(self, phase: Phase, index: int, prompts: int) -> Figures:
        """A training, of as many optimizer steps as an earlier one of the phase, or as the knobs
        allow."""
        title, knobs = f"{phase.name} {index}", phase.training_knobs(self.config)
        here = self.run.iteration(index) if self.run.begun() else None
        rows = (self._count(phase.table(here)) if here else 0) or prompts
        batch = knobs.batch_rows * knobs.accumulate
        steps = math.ceil(rows * knobs.epochs / batch)
        steps = min(steps, knobs.max_steps) if knobs.max_steps else steps
        rate = self._rate("train_step", phase.name)
        if rate is None:
            most = steps * batch * knobs.sequence_length
            guess = self.estimate.get(phase.name)
            known = guess is not None
            return Figures(title, steps, most, guess, bound=True, unit="steps", estimated=known)
        seconds = steps * rate.seconds
        if judged := self._rate("work", "validate", by_event=True):
            seconds += math.ceil(steps / knobs.validate_every) * judged.seconds / self.processes
        return Figures(title, steps, round(steps * rate.tokens), seconds, bound=True, unit="steps")

    def _rate(self, kind: str, stage: str, *, by_event: bool = False) -> _Rate | None:
        """What a row of a stage took so far (of training, a step); None if none was done."""
        found = [e for e in self.events if e.get("event") == kind and e.get("stage") == stage]
        number = sum(1 if by_event else e.get("rows", 1) for e in found)
        if not number:
            return None
        names = ("prompt_tokens", "new_tokens", "tokens")
        tokens = sum(e.get(name, 0) for e in found for name in names)
        return _Rate(tokens / number, sum(e["seconds"] for e in found) / number)

    def _most(self, prompts: int, **answers: int) -> int:
        """The most tokens of so many prompts, and of so many answers in each role."""
        roles = self.config.roles
        new: list[int] = [
            n * getattr(roles, role).sampling.max_new_tokens for role, n in answers.items()
        ]
        return prompts * max(self.config.decoding.prompt_buckets, default=0) + sum(new)

    def _count(self, table: Table[Any]) -> int:
        """The rows of a table that is whole; 0 of another."""
        try:
            return table.count() if table.complete() else 0
        except WorkError:  # it is damaged, and is about to go
            return 0


def as_lines(found: Sequence[Figures]) -> list[str]:
    """The figures as a table for a terminal."""
    if not found:
        return []
    rows = [["step", "work", "tokens", "time"]]
    for each in found:
        most = "at most " if each.bound else ""
        number = "?" if each.number is None else f"{most}{counted(each.number, each.unit)}"
        tokens = "?" if each.tokens is None else f"{most}{each.tokens:,}"
        time = "not known yet" if each.seconds is None else duration(each.seconds)
        time = f"about {time}" if each.estimated else time
        rows.append([each.step, number, tokens, time])
    known = [each.seconds for each in found if each.seconds is not None]
    unknown = any(each.tokens is None for each in found)
    most = "" if unknown or not any(each.bound for each in found) else "at most "
    tokens = f"{most}{sum(each.tokens or 0 for each in found):,}{' and more' if unknown else ''}"
    more = " and more" if len(known) < len(found) else ""
    total = f"{duration(sum(known))}{more}" if known else "not known yet"
    guessed = any(each.estimated for each in found)
    rows.append(["all of it", "", tokens, f"about {total}" if guessed else total])
    lines = ["", *aligned(rows)]
    if guessed:
        lines.append("(about: estimated from the device's peak; it may take twice as long)")
    return lines
