"""How does a judge learn to prefer a correct judgment to a failed one? By DPO (arXiv 2305.18290).

Its pairs are of the judgments of `annotate`, or of those that the judge which SFT gave makes of the
same prompts. Where no judgment of a prompt had failed, more can be drawn at a higher temperature.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from etils import epath

from ste_jax.config import identity
from ste_jax.config.identity import fingerprint
from ste_jax.config.schema import Config, DpoKnobs
from ste_jax.finetuning.batch_source import BatchSource, PlannedRows
from ste_jax.finetuning.knobs import TrainingKnobs
from ste_jax.finetuning.objectives import Dpo
from ste_jax.model_io.open_model import Opened
from ste_jax.pipeline.annotate import (
    Asked,
    annotated_identity,
    asked_to_annotate,
    judge_questions,
    judging_work,
    judgments_fingerprint,
    make_judge,
)
from ste_jax.pipeline.context import Context, shown_as
from ste_jax.pipeline.curate import SAID, counted, cut_of
from ste_jax.pipeline.phases.dpo_dir import DpoDir
from ste_jax.pipeline.phases.phase import Phase, PhaseDirs
from ste_jax.pipeline.reference import reference_fingerprint, with_reference
from ste_jax.pipeline.units import check_verdicts, make_preferences
from ste_jax.records import Judgment, Prompt, TrainingExample
from ste_jax.reporting.columns import read_columns
from ste_jax.reporting.funnel import count
from ste_jax.reporting.phases import Equation, PhaseReport, Step
from ste_jax.run import marks
from ste_jax.run.changes import Changes, RecipeStep
from ste_jax.run.layout import IterationDir
from ste_jax.run.tables import Table
from ste_jax.stages import annotate as annotation
from ste_jax.stages import preferences
from ste_jax.stages.curate import can_train
from ste_jax.system import files, progress
from ste_jax.system.errors import RequestError, WorkError
from ste_jax.system.progress_lines import Figure
from ste_jax.tasks import task_named

_MORE = ("more_samples", "negatives")
"""The knobs of what is drawn besides; `more_temperature` is held with how the judge is asked."""
_PREFER = ("pairs_per_prompt", "negatives")
"""The knobs by which pairs are chosen."""
_TRAINING = {field.name for field in dataclasses.fields(DpoKnobs)} & {
    field.name for field in dataclasses.fields(TrainingKnobs)
}
_ELSEWHERE = ("judgments", "more_temperature", *_MORE, *_PREFER, *sorted(_TRAINING))
"""The knobs that decide the rows, whose ids the judge's fingerprint holds, and those that are in
`TrainingKnobs`. Any other knob is held as one of the objective."""


class DpoReport(PhaseReport):
    """What tables and report show of DPO."""

    learnt = (
        "the judge learnt to prefer what came to the right verdict to what failed on the same "
        "pair, by DPO with a likelihood term ([arXiv 2305.18290]"
        "(https://arxiv.org/abs/2305.18290)): {examples:,} pairs of judgments, {step:,} steps."
    )
    note = (
        "Of DPO, examples are pairs of a correct judgment and a failed one: its verdict was "
        "incorrect, or none could be parsed."
    )
    example_columns = ("incorrect", "unparsed", "drawn_hotter")
    step_columns = ("preference_accuracy",)

    def counts(self, iteration: IterationDir, knobs: Mapping[str, Any]) -> dict[str, Any]:
        """What DPO has to learn from:

        judgments: drawn for it alone, in none of the iteration's other counts; `sft` of them by the
          judge that SFT gave;
        paired, pairs: prompts of which there are pairs of judgments, and these, as the table has
          them;
        counts: what the choice itself wrote, {kept: {letter: pairs}, prompts,
          prompts_dropped: {reason: n}, ..}; dropped: its `prompts_dropped`, empty before;
        complete: whether the table and the counts are there.
        """
        there, own = DpoDir(iteration), knobs.get("dpo", {}).get("judgments") == "sft"
        sft = count(there.judgments) if own else 0
        paired = [prompt_id for (prompt_id,) in read_columns(there.preferences, "prompt_id")]
        counts = there.preference_counts
        chosen = files.read_json(counts) if counts.exists() else None
        return {
            "judgments": sft + count(there.more_judgments),
            "sft": sft,
            "paired": len(set(paired)),
            "pairs": len(paired),
            "counts": chosen,
            "dropped": (chosen or {}).get("prompts_dropped", {}),
            "complete": there.preferences.complete() and chosen is not None,
        }

    def steps(self, counts: dict[str, Any]) -> list[Step]:
        """The prompts with pairs."""
        if not counts["complete"]:
            return []
        return [("with pairs for DPO", counts["paired"], counts["dropped"])]

    def equations(self, counts: dict[str, Any], prompts: int) -> list[Equation]:
        """Prompts with and without pairs are all prompts, and the pairs those that were kept."""
        if not counts["complete"]:
            return []
        parts = counts["paired"] + sum(counts["dropped"].values())
        kept = sum(counts["counts"]["kept"].values())
        both = ("prompts = with pairs for DPO + without", prompts, parts)
        return [both, ("pairs kept = rows of preferences", kept, counts["pairs"])]

    def drawn(self, counts: dict[str, Any]) -> str:
        """How many the judge that SFT gave has made."""
        return f"For DPO, {counts['sft']:,} by the judge that SFT gave." if counts["sft"] else ""

    def of_examples(self, iteration: IterationDir) -> dict[str, Any]:
        """How the worse judgments of the pairs failed, and how many were drawn for this alone."""
        counts = DpoDir(iteration).preference_counts
        chosen = files.read_json(counts) if counts.exists() else {}
        negatives = chosen.get("negatives", {})
        return {
            "incorrect": negatives.get("incorrect"),
            "unparsed": negatives.get("unparsed"),
            "drawn_hotter": chosen.get("drawn_hotter"),
        }


class DpoPhase(Phase):
    """Direct preference optimization, with a likelihood term."""

    name = "dpo"
    step = "finetune dpo"
    chosen_by = "prefer"
    report: PhaseReport = DpoReport()

    def training_knobs(self, config: Config) -> TrainingKnobs:
        """Those of `finetune.dpo`, and for what it does not have those of `finetune`."""
        knobs, own = config.finetune, config.finetune.dpo
        return dataclasses.replace(
            TrainingKnobs.of(knobs),
            group="finetune.dpo",
            epochs=own.epochs,
            max_steps=own.max_steps,
            sequence_length=own.sequence_length or knobs.sequence_length,
            batch_rows=own.batch_rows,
            accumulate=own.accumulate,
            learning_rate=own.learning_rate,
            final_learning_rate_fraction=own.final_learning_rate_fraction,
            schedule_steps=own.schedule_steps,
            warmup_steps=own.warmup_steps,
            clip_norm=own.clip_norm,
            validate_every=own.validate_every,
        )

    def identity(self, config: Config) -> list[Any]:
        """The knobs of its training and of its objective."""
        knobs = config.finetune.dpo
        objective = identity.of(knobs, without=_ELSEWHERE)
        return [*super().identity(config), *identity.in_a_row(objective, "beta", "nll_scale")]

    def named(self, config: Config) -> dict[str, Any]:
        """The knobs of its training and of its objective, by the names they have in a config."""
        knobs, group = config.finetune.dpo, "finetune.dpo"
        found = {
            f"{group}.{word}" if (word := name.partition(".")[2]) in _TRAINING else name: value
            for name, value in super().named(config).items()
        }
        return found | identity.named(group, knobs, without=_ELSEWHERE)

    def check(self, config: Config) -> None:
        """Refuse knobs that contradict each other, and what leaves the phase without correct and
        failed judgments of the same prompt."""
        knobs, stages = config.finetune.dpo, config.finetune.stages
        knobs.check_used("finetune.dpo")
        usual = config.roles.judge.sampling.temperature
        if task_named(config.judge.task).together:
            raise RequestError(
                "finetune.stages has dpo, which pairs two judgments of one prompt; with "
                f"judge.task={config.judge.task} a judgment is right only together with that of "
                "the pair's other answer: leave dpo out"
            )
        if knobs.more_samples and knobs.more_temperature <= usual:
            raise RequestError(
                f"finetune.dpo.more_temperature={knobs.more_temperature} is not above the usual "
                f"roles.judge.sampling.temperature={usual}; raise it"
            )
        if knobs.judgments == "sft" and "sft" not in stages[: stages.index(self.name)]:
            raise RequestError(
                "finetune.dpo.judgments=sft asks the judge that SFT gave; put sft before dpo in "
                "finetune.stages, or set finetune.dpo.judgments=annotate"
            )
        if knobs.judgments == "annotate" and config.annotate.policy != "all":
            raise RequestError(
                "finetune.dpo.judgments=annotate pairs correct and failed judgments of the same "
                "prompt; set annotate.policy=all, or finetune.dpo.judgments=sft"
            )
        if config.annotate.samples < 2:
            raise RequestError(
                "finetune.stages has dpo, which needs two judgments of a prompt; raise "
                "annotate.samples"
            )

    def made_of_judgments(self, config: Config, here: IterationDir) -> Sequence[epath.Path]:
        """The pairs, unless they are of the judge that SFT gave."""
        return () if self._asks_sft(config) else DpoDir(here).made_of_judgments()

    def asks(self, config: Config) -> Sequence[tuple[str, int]]:
        """The judgments of the SFT judge, and what is drawn more."""
        drawn = [("dpo judgments", config.annotate.samples)] * self._asks_sft(config)
        more = [("annotate more", config.finetune.dpo.more_samples)] * self._wants_more(config)
        return drawn + more

    def annotate(self, context: Context, iteration: int) -> None:
        """Draw more of the judge that `annotate` asked, if pairs are of its judgments."""
        here = context.run.iteration(iteration)
        if not self._wants_more(context.config):
            forget = partial(_forget_more, DpoDir(here), context.changes)
            context.processes.from_first("annotate_more", forget)
        elif not self._asks_sft(context.config):
            _annotate_more(context, here, asked_to_annotate(context, iteration), here.judgments)

    def needed(self, config: Config, here: IterationDir) -> Sequence[Table[Any]]:
        """What was drawn more, if pairs are of the judgments of `annotate`."""
        more = self._wants_more(config) and not self._asks_sft(config)
        return [DpoDir(here).more_judgments] if more else []

    def curate(self, context: Context, iteration: int) -> None:
        """Choose pairs, if they are of the judgments of `annotate`."""
        if not self._asks_sft(context.config):
            here = context.run.iteration(iteration)
            self._prefer(context, here, here.judgments)

    def prepare(self, context: Context, dirs: PhaseDirs) -> None:
        """Have the judge that SFT gave judge every training prompt, and choose pairs, if they are
        of its judgments."""
        if self._asks_sft(context.config):
            _judge_again(context, dirs, more=self._wants_more(context.config))
            self._prefer(context, dirs.here, DpoDir(dirs.here).judgments)

    def table(self, here: IterationDir) -> Table[TrainingExample]:
        """The pairs."""
        return DpoDir(here).preferences

    def source(
        self,
        context: Context,
        dirs: PhaseDirs,
        data: str,
        opened: Opened,
        arguments: Mapping[str, Any],
    ) -> BatchSource:
        """All pairs with what the first model says of them, planned before the first step."""
        config, there = context.config, DpoDir(dirs.here)
        knobs, own = self.training_knobs(config), config.finetune.dpo
        rows = list(there.preferences.rows())
        pairs = make_preferences(rows, opened.tokenizer, arguments)
        if task_named(config.judge.task).classes:
            check_verdicts(self.name, dirs.out.index, rows, pairs, knobs)
        made_of = reference_fingerprint(dirs.parent, knobs, data)
        reference = there.reference(made_of, context.changes)
        pairs = with_reference(context, pairs, reference, opened, knobs)
        objective = Dpo(beta=own.beta, nll_scale=own.nll_scale)
        return PlannedRows(pairs, knobs, config.seed, objective)

    def check_done(self, context: Context, dirs: PhaseDirs, data: str) -> None:
        """Look at what the judge was held to."""
        made_of = reference_fingerprint(dirs.parent, self.training_knobs(context.config), data)
        DpoDir(dirs.here).reference(made_of, context.changes).check()

    def _asks_sft(self, config: Config) -> bool:
        """Whether it learns from judgments of the judge that SFT gave."""
        return self.name in config.finetune.stages and config.finetune.dpo.judgments == "sft"

    def _wants_more(self, config: Config) -> bool:
        """Whether more judgments are drawn, at a higher temperature, for it alone."""
        return self.name in config.finetune.stages and config.finetune.dpo.more_samples > 0

    def _prefer(self, context: Context, here: IterationDir, judgments: Table[Judgment]) -> None:
        """Choose pairs of `judgments`. Process 0 alone; the others wait."""
        more = DpoDir(here).more_judgments if self._wants_more(context.config) else None
        context.processes.from_first("prefer", lambda: _prefer(context, here, judgments, more))


def _judge_again(context: Context, dirs: PhaseDirs, *, more: bool) -> None:
    """Have the judge that DPO begins with judge every training prompt, all samples of each; and
    then more of those that have a correct judgment and none that failed."""
    here, there = dirs.here, DpoDir(dirs.here)
    asked = Asked(dirs.parent, make_judge(context, dirs.parent, "dpo_judgments", here.index))
    knobs = dataclasses.replace(context.config.annotate, policy="all")
    name, derived = "dpo_judgments", there.made_of_judgments()
    made_under = judgments_fingerprint(
        context, name, annotation.VERSION, annotated_identity(knobs), asked
    )
    work = judging_work(name, made_under, here, asked, there.judgments, derived)
    draw = partial(annotation.annotate, judge=asked.judging, knobs=knobs)
    judge_questions(context, here.index, work, draw, asked)
    if more:
        _annotate_more(context, here, asked, there.judgments)


def _annotate_more(
    context: Context, here: IterationDir, asked: Asked, drawn: Table[Judgment]
) -> None:
    """Draw more samples, at a higher temperature, of the prompts of which `drawn` holds correct
    judgments and none that failed."""
    there, knobs, own = DpoDir(here), context.config.annotate, context.config.finetune.dpo
    asked = dataclasses.replace(asked, judging=asked.judging.at(own.more_temperature))

    def wanting(shard: int) -> list[Prompt]:
        return annotation.wanting(here.prompts.read(shard), drawn.read(shard), own.negatives)

    drawn_as = identity.in_a_row(identity.of(own, only=_MORE), *_MORE)
    choice = [knobs.samples, list(knobs.waves), *drawn_as]
    also = identity.named("finetune.dpo", own, only=(*_MORE, "more_temperature"))
    name, derived = "annotate_more", there.made_of_judgments()
    made_under = judgments_fingerprint(context, name, annotation.MORE_VERSION, choice, asked, also)
    work = judging_work(name, made_under, here, asked, there.more_judgments, derived, wanting)
    draw = partial(annotation.annotate_more, judge=asked.judging, knobs=knobs, more=own)
    takes = [f"{name} {here.index}" for name in ("annotate", "dpo judgments")]
    judge_questions(context, here.index, work, draw, asked, takes)


def _forget_more(there: DpoDir, changes: Changes) -> None:
    """Set aside what was drawn more and is no longer wanted; a dry pass only says so."""
    mark, places = there.more_mark, there.more_places
    title = f"annotate more {there.here.index}"
    what = "what was drawn is set aside, since no phase of finetune.stages wants more judgments"
    if not changes.dry:
        marks.put_aside(places, mark, marks.marked(mark), partial(changes.say, title, what))
        marks.forget(mark)
    elif any(place.exists() for place in places):
        changes.plan(title, "aside", what, why=what, asks=True)


def _prefer(
    context: Context,
    here: IterationDir,
    judgments: Table[Judgment],
    more: Table[Judgment] | None,
) -> None:
    there, config = DpoDir(here), context.config
    knobs, mark = config.finetune.dpo, there.preferences_mark
    hotter: list[Table[Any]] = [] if more is None else [more]
    held = identity.of(knobs, only=_PREFER) | identity.of(config.curate, only=("balance",))
    named = identity.named("finetune.dpo", knobs, only=_PREFER)
    named |= identity.named("curate", config.curate, only=("balance",))
    named |= identity.named("finetune.dpo", knobs, only=("more_samples",))
    takes = [f"{name} {here.index}" for name in ("annotate", "dpo judgments", "annotate more")]
    step = RecipeStep(title=f"prefer {here.index}", takes=takes, inputs=SAID)
    inputs = context.input_ids([here.prompts, judgments, *hotter], step)
    made_under = fingerprint("prefer", preferences.VERSION, held, inputs=inputs, named=named)
    what = partial(counted, "the set of preferences", there.preferences)
    tables, outputs = (there.preferences,), (there.preference_counts,)
    if not context.wants(step, what, mark, made_under, tables, outputs):
        return
    cut, task = cut_of(context), task_named(config.judge.task)
    chosen = preferences.prefer(
        task,
        here.prompts.rows(),
        judgments.rows(),
        knobs,
        balance=config.curate.balance,
        more=() if more is None else more.rows(),
        cut=cut,
    )
    if not can_train(task, chosen.kept_by_class):
        raise WorkError(_no_pairs(here, chosen))
    marks.forget(mark)
    drawn_hotter, written = 0, 0
    for shard in range(there.preferences.shards):
        extra = [] if more is None else more.read(shard)
        prompts, drawn = here.prompts.read(shard), judgments.read(shard) + extra
        rows = preferences.preference_examples(task, prompts, drawn, chosen.kept, cut)
        written += there.preferences.write(shard, rows)
        ids = {judgment.id for judgment in extra}
        drawn_hotter += sum(row.rejected_judgment_id in ids for row in rows)
    there.preferences.expect(written, sum(chosen.kept_by_class.values()))
    counts = {
        "kept": chosen.kept_by_class,
        "negatives": chosen.negatives,
        "prompts": len(chosen.kept),
        "prompts_dropped": chosen.prompts_dropped,
        "pairs_dropped": chosen.pairs_dropped,
        **({} if more is None else {"drawn_hotter": drawn_hotter}),
    }
    files.write_json(there.preference_counts, counts)
    marks.mark(mark, made_under)
    progress.found(shown_as(context, here.index, "prefer"), [_found(chosen)])
    context.log("preferred", iteration=here.index, **counts)


def _found(chosen: preferences.Preferences) -> Figure:
    """How many pairs of judgments there are to train on, to be shown."""
    pairs, asked = len(chosen.kept), len(chosen.kept) + sum(chosen.prompts_dropped.values())
    number = sum(chosen.kept_by_class.values())
    text = f"{number:,} pairs of judgments to train on, of {pairs:,} of {asked:,} prompts"
    return Figure("pairs", number, text)


def _no_pairs(here: IterationDir, chosen: preferences.Preferences) -> str:
    return (
        f"prefer: iteration {here.index} has no pairs of judgments for DPO: kept "
        f"{chosen.kept_by_class}, prompts without a pair {chosen.prompts_dropped}, dropped "
        f"{chosen.pairs_dropped}; draw more samples (annotate.samples, or "
        "finetune.dpo.more_samples where none failed), see finetune.dpo.negatives, or leave "
        "dpo out of finetune.stages"
    )
