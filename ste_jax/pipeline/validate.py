"""How good is a judge in training on the validation pairs, and how good was it at the beginning?

Judges are asked greedily, with all questions of the task, and verdicts are forced if the run forces
them. Each process judges its share of the questions with its own copy of the weights; questions
that are too long count nowhere. No judge is measured twice: a trained judge's checkpoint holds its
measures, and those of others are written beside them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from ste_jax.checkpoints.card import read_card
from ste_jax.checkpoints.checkpoint import save_checkpoint
from ste_jax.config.identity import fingerprint
from ste_jax.decoding.generator import LocalGenerator
from ste_jax.decoding.memory import bytes_per_device
from ste_jax.model_io.open_model import Opened, open_generator
from ste_jax.model_io.sources import resolve
from ste_jax.models.decoder import Decoder
from ste_jax.models.transfer import hand_over_model
from ste_jax.parallel.sharding import make_mesh
from ste_jax.pipeline.annotate import judge_fingerprint
from ste_jax.pipeline.context import Context
from ste_jax.pipeline.intake import model_of
from ste_jax.run.layout import IterationDir
from ste_jax.stages import judge
from ste_jax.system import files
from ste_jax.system.errors import WorkError
from ste_jax.tasks import Question

VERSION = 1
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
            known = self.measure(context, context.generator(parent.checkpoint), "start")
            measured = {"validated_as": self.identity(context, model_of(parent)), "measured": known}
            write = partial(files.write_twice, parent.validation, measured)
            context.processes.from_first("validation", write)
        return known

    def _known(self, context: Context, parent: IterationDir) -> dict[str, Any] | None:
        """The measures of a judge that was measured before in the same way; None if it was not."""
        card = read_card(parent.checkpoint)["provenance"]
        if card.get("validated_as") == self.identity(context):
            return {name: value for name, value in card["validation"].items() if name != "step"}
        found = files.read_twice(parent.validation) or {}
        if found.get("validated_as") != self.identity(context, model_of(parent)):
            return None
        measured: dict[str, Any] = found["measured"]
        return measured

    def identity(self, context: Context, model: str = "") -> str:
        """A fingerprint of what decides how a judge is measured and, if `model` is given, of which
        judge it is."""
        # At temperature 0 the random key decides nothing; only the key depends on the iteration.
        role = dataclasses.replace(self.judging.greedy().role, key=0)
        judging = judge_fingerprint(dataclasses.replace(self.judging, role=role))
        kinds = [context.config.decoding.dtype, context.config.decoding.weights]
        prompts = [prompt.id for each in self.questions for prompt in each.prompts]
        return fingerprint("validation", VERSION, [judging, kinds], model=model, inputs=prompts)

    def measure(self, context: Context, generator: LocalGenerator, name: str) -> dict[str, Any]:
        """The measures that a `Validate` of the training loop gives. `name` distinguishes the
        meetings of the processes."""
        processes, judging = context.processes, self.judging
        mine = self.questions[processes.index :: processes.count]
        counts = [0, 0, 0, 0]
        note = context.meter("validate", judging.iteration, generator)
        for question, judgments in judge.judge_all(mine, generator, judging.greedy(), 1):
            counts[0] += 1
            counts[1] += judging.task.is_right(question, judgments)
            counts[2] += all(each.failure is None for each in judgments)
            counts[3] += any(each.failure == "too_long" for each in judgments)
        note(len(mine))
        every = processes.gather(f"validate {name}", counts)
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
        found = {"n_prompts": total, "accuracy": right / asked, "parsed": parsed / asked}
        return {**found, "n_too_long": too_long} if too_long else found


class Validator:
    """Measures a judge in training: a `Validate` of the training loop."""

    def __init__(self, context: Context, opened: Opened, validation: Validation) -> None:
        self._context, self._opened, self._validation = context, opened, validation

    def __call__(self, model: Decoder, step: int, release: Callable[[], None]) -> dict[str, Any]:
        generator = self._generator(model, release)
        return self._validation.measure(self._context, generator, str(step))

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
