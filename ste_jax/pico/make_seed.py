"""How was pico's seed made? `python -m ste_jax.pico.make_seed` makes it again, from nothing.

The seed is trained by the project's own fine-tuning code, on generated chats in which it plays
every role, in two phases. First the skills: answering, calculating, comparing two results, checking
the answers of one person or of several, changing an instruction, sorting instructions; the kinds of
task that come hardest come more often. Then, with these among them, a few judgments, again and
again (`JUDGED_PAIRS`), and how a verdict is written (`dictated`, where the letter tells nothing of
the answers). So it has learnt to check two answers, and hardly to conclude from what it found: from
more judgments, or from these for longer, it would judge well before the recipe begins.

How fast it learns to conclude differs from one rounding to another: within a hundred steps its
greedy verdicts go from one letter to nine in ten right, and swing between the letters on the way.
So the models on the way are measured, and the one whose accuracy is nearest to `Phase.judge` is
taken.

It can be stopped and run again; its skills are printed as they grow, on tasks that are neither
trained on nor held out.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import jax
import tokenizers
from etils import epath
from flax import nnx

from ste_jax.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from ste_jax.config.schema import DecodingKnobs, FinetuneKnobs, MeshKnobs
from ste_jax.decoding.generator import LocalGenerator
from ste_jax.finetuning.batch_source import PlannedRows
from ste_jax.finetuning.knobs import TrainingKnobs
from ste_jax.finetuning.loop import Callbacks, Validate, finetune
from ste_jax.finetuning.packing import Example
from ste_jax.finetuning.step_progress import StepProgress
from ste_jax.model_io.hf import save_hf
from ste_jax.models.config import ModelConfig
from ste_jax.models.decoder import Decoder
from ste_jax.models.parameters import parameters_of, with_parameters
from ste_jax.models.transfer import on_mesh
from ste_jax.parallel.sharding import make_mesh
from ste_jax.pico import corpus
from ste_jax.pico.corpus import Chat
from ste_jax.pico.kinds import KINDS
from ste_jax.pico.skills import measure_judging, measure_skills
from ste_jax.pico.tokenizer import make_tokenizer, save_tokenizer
from ste_jax.pico.world import Tasks
from ste_jax.system import jax_settings, preemption, progress
from ste_jax.system.errors import SteError
from ste_jax.system.terminal import say
from ste_jax.tokenization.load import load_tokenizer
from ste_jax.tokenization.tokenizer import Tokenizer

_KNOBS = TrainingKnobs.of(
    FinetuneKnobs(
        sequence_length=192,
        batch_rows=10,
        final_learning_rate_fraction=0.05,
        weight_decay=0.05,
        beta2=0.98,
        clip_norm=1.0,
        remat="layer",
        dtype="float32",
        validate_every=1000,
        save_every=250,
    )
)
_MESH = MeshKnobs(data=-1, fsdp=1)


@dataclass(frozen=True)
class Phase:
    """A phase of the seed's training."""

    name: str
    chats: int
    mix: Mapping[str, float]
    """Shares of the roles among the chats."""
    knobs: TrainingKnobs
    more_often: Mapping[str, int] = field(default_factory=dict)
    """Kind of task -> how many times as often as other kinds it is drawn."""
    judge: float | None = None
    """If given, the model whose judge's accuracy is nearest to it is taken, of all models during
    this phase. After a change, remove the work directory, which keeps the earlier choice."""

    def __post_init__(self) -> None:
        unknown = set(self.more_often) - {kind.name for kind in KINDS}
        if unknown:
            raise ValueError(f"no kinds of task: {', '.join(sorted(unknown))}")


SKILLS = Phase(
    name="skills",
    chats=270_000,
    mix={
        "respond": 0.24,
        "calculate": 0.12,
        "compare": 0.17,
        "check": 0.07,
        "review": 0.24,
        "modify": 0.13,
        "classify": 0.03,
    },
    more_often={
        "later": 3,
        "difference": 3,
        "middle": 3,
        "sum": 2,
        "story": 2,
        "largest": 2,
        "smallest": 2,
    },
    knobs=dataclasses.replace(_KNOBS, learning_rate=2e-3, warmup_steps=100),
)
JUDGING = Phase(
    name="judging",
    chats=4000,
    judge=0.617,  # that of the seed that is shipped
    mix={
        "judge": 0.4,
        "dictated": 0.3,
        "respond": 0.07,
        "calculate": 0.04,
        "compare": 0.07,
        "check": 0.04,
        "modify": 0.07,
        "classify": 0.01,
    },
    knobs=dataclasses.replace(_KNOBS, learning_rate=5e-4, warmup_steps=20, validate_every=4),
)
PHASES = (SKILLS, JUDGING)
TEXTS, LEAST = 60_000, 10
"""Chats that the tokenizer is made from, and how often a piece has to stand in them."""
TASKS = 2000
"""How many tasks the seed's skills are measured on."""
FIRST_JUDGED = 96
"""The first optimizer step of the judging phase after which the judge is measured: in all trials,
no judge concluded earlier."""
LOOK = 300
"""How many pairs the judges during training are measured on."""
NEAR = 0.04
"""How near to the wanted accuracy a judge must be on these pairs to be measured on `TASKS` pairs:
on 300 pairs, the error is 0.015 to 0.03."""
LEAST_PARSED = 0.98
"""The share of judgments that must have a verdict."""
JUDGED_PAIRS = 3
"""Pairs of each kind of task that are judged, in both orders: the same few, again and again."""

DECODING = DecodingKnobs(
    prompt_buckets=(64, 96, 128, 192),
    new_buckets=(16, 40, 64),
    groups=64,
    group_size=1,
    prefill_chunk=32,
    cache_tokens=65536,
    dtype="float32",
)


def model_config(vocab_size: int) -> ModelConfig:
    """A Llama of under two million parameters. Two heads share keys and values, so that decoding
    has half as many to read."""
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=192,
        intermediate_size=512,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        head_dim=48,
        max_position=1024,
        tie_embeddings=True,
    )


def make_chats(phase: Phase, pairs: int = JUDGED_PAIRS) -> list[Chat]:
    """All chats of a phase, in no particular order."""
    draw = Random(phase.name)
    of_pairs = Random("judgments")
    few = [
        judgment
        for kind in KINDS
        for _ in range(pairs)
        for judgment in corpus.judge_both_orders(of_pairs, Tasks("known", [kind]))
    ]
    makers = {**corpus.MAKERS, "judge": lambda draw, tasks: draw.choice(few)}
    kinds = [kind for kind in KINDS for _ in range(phase.more_often.get(kind.name, 1))]
    return corpus.draw_chats(draw, phase.chats, phase.mix, Tasks("known", kinds), makers)


_MARKS = ("system", "user", "assistant", "end")


def make_examples(chats: Sequence[Chat], tokenizer: tokenizers.Tokenizer) -> list[Example]:
    """Chats as ids, learnt from where the assistant's turn is to be learnt.

    The ids are those of the chat template, without its cost.
    """
    names = {name: tokenizer.token_to_id(f"<|{name}|>") for name in _MARKS}
    mark = {name: id for name, id in names.items() if id is not None}
    contents = [turn["content"] for chat in chats for turn in chat.messages]
    encoded = iter(tokenizer.encode_batch_fast(contents, add_special_tokens=False))
    examples = []
    for number, chat in enumerate(chats):
        ids: list[int] = []
        weights: list[float] = []
        for index, turn in enumerate(chat.messages):
            content = [*next(encoded).ids, mark["end"]]
            ids += [mark[turn["role"]], *content]
            weights += [0.0, *[float(index in chat.learnt)] * len(content)]
        start = next(at for at, weight in enumerate(weights) if weight)
        examples.append(
            Example(
                id=f"{chat.role}-{number}",
                prompt_ids=ids[:start],
                completion_ids=ids[start:],
                weights=weights[start:],
            )
        )
    return examples


def first_model(config: ModelConfig) -> Decoder:
    """A model of random weights; matrices that write into the residual stream start small (GPT-2's
    scaling)."""
    model = Decoder(config, rngs=nnx.Rngs(0))
    parameters = dict(parameters_of(model))
    for path in parameters:
        if path.endswith((".o", ".down")):
            parameters[path] = parameters[path] * (2 * config.num_layers) ** -0.5
    return with_parameters(model, parameters)


def make_seed(out: Path, work: Path, phases: Sequence[Phase], tasks: int) -> None:
    """Make tokenizer and model in `out`, and measure them on so many tasks (on fewer in between).
    `work` keeps an unfinished training, which the same call resumes.

    Raises:
      Preempted: asked to stop.
    """
    out.mkdir(parents=True, exist_ok=True)
    made = make_tokenizer(corpus.all_texts(Random("tokenizer"), TEXTS), LEAST)
    save_tokenizer(made, out)
    tokenizer = load_tokenizer(str(out))
    here = make_mesh(DECODING.mesh, jax.local_devices()[:1])

    def measured(model: Decoder, count: int) -> dict[str, float]:
        local = on_mesh(model, here, DECODING.dtype)
        return measure_skills(LocalGenerator(local, tokenizer, DECODING, here), "dev", count)

    def validate(model: Decoder, step: int, *release: object) -> dict[str, Any]:
        found = measured(model, min(300, tasks))
        _show(step, found)
        return {"accuracy": None, **found}

    def measured_judge(model: Decoder, count: int) -> dict[str, float]:
        """Measures the judge of the model in the type in which it would be shipped."""
        local = on_mesh(on_mesh(model, here, "bfloat16"), here, DECODING.dtype)
        return measure_judging(LocalGenerator(local, tokenizer, DECODING, here), "dev", count)

    model = first_model(model_config(made.get_vocab_size()))
    for phase in phases:
        examples = make_examples(make_chats(phase), made)
        how: Validate = validate
        if phase.judge is not None:
            how = nearness(phase.judge, measured_judge, tasks, _show)
        model = _train(phase, model, examples, tokenizer, work, how)
    shipped = on_mesh(model, here, "bfloat16")
    save_hf(shipped, out)
    skills = {name: round(value, 4) for name, value in measured(shipped, tasks).items()}
    text = json.dumps(skills, indent=2)
    print(text)
    (out / "skills.json").write_text(text + "\n")


def _show(step: int, found: Mapping[str, float]) -> None:
    say(json.dumps({"step": step, **{k: round(v, 3) for k, v in found.items()}}))


def nearness(
    target: float,
    measure: Callable[[Decoder, int], dict[str, float]],
    count: int,
    show: Callable[[int, Mapping[str, float]], None],
) -> Validate:
    """A `Validate` that scores a model by how near its judge's accuracy is to `target`.

    `measure(model, n)` measures a judge on n pairs: on few first, and on `count` pairs if it is
    near there. A judge that was near scores higher than any that was not; one that lacks verdicts
    scores 0.
    """

    def validate(model: Decoder, step: int, *release: object) -> dict[str, Any]:
        if step < FIRST_JUDGED:
            return {"accuracy": 0.0}
        found = measure(model, min(LOOK, count))
        near = abs(found["judge"] - target) < NEAR
        if near and found["judge_parsed"] >= LEAST_PARSED:
            found = measure(model, count)
        show(step, found)
        score = 1 - abs(found["judge"] - target)
        if found["judge_parsed"] < LEAST_PARSED:
            score = 0.0
        elif not near:
            score /= 2
        return {"accuracy": score, **found}

    return validate


def _train(
    phase: Phase,
    model: Decoder,
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    work: Path,
    validate: Validate,
) -> Decoder:
    """The model after a phase."""
    mesh, kept = make_mesh(_MESH), work / f"{phase.name}-model"
    source = PlannedRows(examples, phase.knobs, seed=0)

    def save_model(trained: Decoder, step: int, found: dict[str, Any]) -> None:
        provenance = {"phase": phase.name, "step": step}
        save_checkpoint(kept, trained, tokenizer=tokenizer, provenance=provenance)

    with progress.work(phase.name, source.steps, "steps") as training:
        result = finetune(
            model=model,
            source=source,
            knobs=phase.knobs,
            seed=0,
            mesh=mesh,
            state_dir=epath.Path(work / phase.name),
            callbacks=Callbacks(
                validate=validate,
                save_model=save_model,
                log=StepProgress(training).show,
                stop_requested=preemption.requested,
            ),
        )
    if phase.judge is not None and (result.best_accuracy or 0) < 1 - NEAR:
        print(f"{phase.name}: no judge came near {phase.judge}; took step {result.best_step}")
    if result.dropped:
        print(f"{phase.name}: {len(result.dropped)} chats are longer than a row and were left out")
    return load_checkpoint(kept, mesh)


def main() -> int:
    """Make the seed."""
    parser = argparse.ArgumentParser(
        description="Make pico's seed model, from nothing: about 70 minutes on two cores. Stopped "
        "or killed, the same command goes on. Try what it made: `ste run pico model=DIR --dir RUN`."
    )
    parser.add_argument("--out", type=Path, metavar="DIR",
                        help="where the model, its tokenizer and its measured skills go (default: "
                        "seed in the work directory)")  # fmt: skip
    parser.add_argument("--work", type=Path, metavar="DIR",
                        help="where an unfinished training is kept; another one there is replaced "
                        "(default: runs/make-seed, with --part runs/make-seed-SHARE)")  # fmt: skip
    parser.add_argument("--part", type=float, default=1.0, metavar="SHARE",
                        help="train and measure on this share only: to try it")  # fmt: skip
    given = parser.parse_args()
    part = "" if given.part == 1 else f"-{given.part:g}"
    work = given.work or Path(f"runs/make-seed{part}")
    jax.config.update("jax_num_cpu_devices", 2)
    jax_settings.settle()
    preemption.install()
    phases = [dataclasses.replace(phase, chats=round(phase.chats * given.part)) for phase in PHASES]
    tasks = max(1, round(TASKS * given.part))
    try:
        with progress.shown("make the seed"):
            make_seed(given.out or work / "seed", work, phases, tasks)
    except SteError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
