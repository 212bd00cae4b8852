"""How good is a judge in training on the validation pairs, and how good was it at the beginning?

Judges are asked greedily, with all questions of the task, and verdicts are forced if the run forces
them. Each process judges its share of the questions with its own copy of the weights; questions
that are too long count nowhere. No judge is measured twice: a trained judge's checkpoint holds its
measures, and those of others are written beside them; judgments are kept until it is measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import jax
from etils import epath

from ste_jax.checkpoints.card import read_card
from ste_jax.checkpoints.checkpoint import save_checkpoint
from ste_jax.config.identity import fingerprint
from ste_jax.decoding.generator import LocalGenerator
from ste_jax.decoding.memory import bytes_per_device
from ste_jax.evaluation.judged import rows_of
from ste_jax.model_io.open_model import Opened, open_generator
from ste_jax.model_io.sources import resolve
from ste_jax.models.decoder import Decoder
from ste_jax.models.transfer import hand_over_model
from ste_jax.parallel.sharding import make_mesh
from ste_jax.pipeline.annotate import judge_fingerprint
from ste_jax.pipeline.context import Context, shown_as
from ste_jax.pipeline.intake import model_of
from ste_jax.records import Judgment
from ste_jax.run import journal, marks
from ste_jax.run.journal import Journal
from ste_jax.run.layout import IterationDir
from ste_jax.run.stopping import InHand
from ste_jax.stages import judge
from ste_jax.system import files, progress
from ste_jax.system.display import Work
from ste_jax.system.errors import WorkError
from ste_jax.tasks import Question, Task

VERSION = 1
FEW_PROMPTS = 50
"""Fewer validation prompts than this are said to be few: by 50, an accuracy is known to 0.14."""
ROOM = 1.2
"""How many times the memory that decoding keeps must be free, since its programs need some, too."""


@dataclasses.dataclass(frozen=True)
class Validation:
    """The questions that judges are measured by, and how they are asked."""

    judging: judge.Judge
    questions: list[Question]

    def of_start(self, context: Context, parent: IterationDir) -> dict[str, Any] | None:
        """The measures of the judge that a phase begins with; None if there are no validation
        pairs."""
        if not self.questions:
            return None
        known: dict[str, Any] | None
        known = context.processes.from_first("known", lambda: self._known(context, parent))
        if known is None:
            validated_as = self.identity(context, model_of(parent))
            generator = context.generator(parent.checkpoint)
            known = self.measure(context, generator, "start", validated_as)
            keep = partial(self._keep, parent, validated_as, known)
            context.processes.from_first("validation", keep)
        return known

    def _keep(self, parent: IterationDir, validated_as: str, known: dict[str, Any]) -> None:
        """Write the measures of a judge beside it; those by other questions are set aside."""
        there = files.read_twice(parent.validation) or {}
        marks.put_aside([parent.validation], _mark(parent), there.get("validated_as", ""))
        files.write_twice(parent.validation, {"validated_as": validated_as, "measured": known})

    def _known(self, context: Context, parent: IterationDir) -> dict[str, Any] | None:
        """The measures of a judge that was measured before in the same way; None if it was not."""
        card = read_card(parent.checkpoint)["provenance"]
        if card.get("validated_as") == self.identity(context):
            return {name: value for name, value in card["validation"].items() if name != "step"}
        wanted = self.identity(context, model_of(parent))
        aside = marks.aside(_mark(parent), wanted) / parent.validation.name
        for place in (parent.validation, aside):
            found = files.read_twice(place) or {}
            if found.get("validated_as") == wanted:
                measured: dict[str, Any] = found["measured"]
                return measured
        return None

    def identity(self, context: Context, model: str = "") -> str:
        """A fingerprint of what decides how a judge is measured and, if `model` is given, of which
        judge it is."""
        # At temperature 0 the random key decides nothing; only the key depends on the iteration.
        role = dataclasses.replace(self.judging.greedy().role, key=0)
        judging = judge_fingerprint(dataclasses.replace(self.judging, role=role))
        kinds = [context.config.decoding.dtype, context.config.decoding.weights]
        prompts = [prompt.id for each in self.questions for prompt in each.prompts]
        return fingerprint("validation", VERSION, [judging, kinds], model=model, inputs=prompts)

    def measure(
        self, context: Context, generator: LocalGenerator, name: str, made_under: str
    ) -> dict[str, Any]:
        """The measures that a `Validate` of the training loop gives. `name` distinguishes the
        meetings of the processes; `made_under` is the identity of the measured judge, under which
        its judgments are kept until all are made."""
        processes, judging = context.processes, self.judging
        place = context.run.iteration(judging.iteration).root / "validate.journal"
        mine = self.questions[processes.index :: processes.count]
        kept = journal.read(place, 0, made_under, [Judgment])
        judged = {id: found for id, (found,) in kept.items()}
        todo = [question for question in mine if question.id not in judged]
        note = context.meter("validate", judging.iteration, generator)
        with (
            self._shown(context, generator, name, len(todo)) as shown,
            Journal(place, made_under, context.config.run.keep_every) as keeping,
        ):
            usage, unit = generator.usage, rows_of(judging.task)
            in_hand = InHand(shown.title, unit, lambda: usage.tokens_in_hand)
            with in_hand.stoppable():
                asked = in_hand.giving(todo)
                for question, found in judge.judge_all(asked, generator, judging.greedy(), 1):
                    judged[question.id] = found
                    keeping.add(0, question.id, [found])
                    in_hand.finished += 1
                    shown.add()
        note(len(todo))
        counts = _counts(judging.task, [(question, judged[question.id]) for question in mine])
        every = processes.gather(f"validate {name}", counts)
        if processes.first and place.exists():
            files.remove(place)
        total, right, parsed, too_long = (sum(each) for each in zip(*every, strict=True))
        if not total:
            return {"n_prompts": 0, "accuracy": None}
        asked = total - too_long
        if not asked:
            raise WorkError(
                f"validate: not one of the {total} validation prompts fits decoding.prompt_buckets "
                "and the model's context, so no step can be chosen by them; enlarge the buckets "
                "(--new-shapes), or set select.validation_fraction to 0"
            )
        measured = {"n_prompts": total, "accuracy": right / asked, "parsed": parsed / asked}
        return {**measured, "n_too_long": too_long} if too_long else measured

    def _shown(
        self, context: Context, generator: LocalGenerator, name: str, total: int
    ) -> AbstractContextManager[Work]:
        when = "at the start" if name == "start" else f"after step {name}"
        title = shown_as(context, self.judging.iteration, f"validate {when}")
        before = dataclasses.replace(generator.usage)
        figures = lambda: generator.usage.since(before).figures()  # noqa: E731
        return progress.work(title, total, rows_of(self.judging.task), figures=figures)


def _mark(judge: IterationDir) -> epath.Path:
    """What its measures are called where they are set aside."""
    return judge.root / "validation.mark.json"


def _counts(task: Task, judged: list[tuple[Question, list[Judgment]]]) -> list[int]:
    """How many questions there are, were judged right, have all verdicts, and were too long."""
    return [
        len(judged),
        sum(task.is_right(question, found) for question, found in judged),
        sum(all(each.failure is None for each in found) for _, found in judged),
        sum(any(each.failure == "too_long" for each in found) for _, found in judged),
    ]


class Validator:
    """Measures a judge in training: a `Validate` of the training loop."""

    def __init__(
        self, context: Context, opened: Opened, validation: Validation, made_under: str
    ) -> None:
        self._context, self._opened, self._validation = context, opened, validation
        self._made_under = made_under

    def __call__(self, model: Decoder, step: int, release: Callable[[], None]) -> dict[str, Any]:
        generator = self._generator(model, release)
        judge_ = self._validation.identity(self._context, f"{self._made_under} {step}")
        return self._validation.measure(self._context, generator, str(step), judge_)

    def _generator(self, model: Decoder, release: Callable[[], None]) -> LocalGenerator:
        """The weights in training, on this process's own devices in the decoding type."""
        context, tokenizer = self._context, self._opened.tokenizer
        knobs = context.config.decoding
        mesh = make_mesh(knobs.mesh, jax.local_devices())
        if self._in_memory(model):
            local, received = hand_over_model(model, mesh, knobs.dtype)
            context.log("handed_over", bytes_received=received)
            return LocalGenerator(local, tokenizer, knobs, mesh)
        # The name is one that is removed later if a kill leaves it behind.
        place = context.run.root / "validated.partial-weights"
        save_checkpoint(place, model, tokenizer=tokenizer, provenance={})
        release()
        generator = open_generator(resolve(str(place)), knobs)
        context.processes.barrier("validated: read")
        context.processes.from_first("validated: removed", lambda: files.remove(place))
        context.log("handed_over", bytes_received=None)
        return generator

    def _in_memory(self, model: Decoder) -> bool:
        """Whether the weights are handed over beside the training state. All processes agree."""
        config = self._context.config
        if config.finetune.handover != "auto":
            return config.finetune.handover == "memory"
        if config.finetune.lora.rank:
            return True
        mesh = make_mesh(config.decoding.mesh, jax.local_devices())
        needed = ROOM * bytes_per_device(model.config, config.decoding, mesh)
        left = map(_free_bytes, jax.local_devices())
        fits = all(needed <= free for free in left if free is not None)
        return all(self._context.processes.gather("handover", fits))


def _free_bytes(device: jax.Device) -> int | None:
    """How many bytes a device has free; None if it does not report them."""
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats or "bytes_in_use" not in stats:
        return None
    return int(stats["bytes_limit"]) - int(stats["bytes_in_use"])
