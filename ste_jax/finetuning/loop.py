"""How does a model learn from its examples, from the first step to the best checkpoint?

All steps are planned before the first. While a step runs, the next one's rows are filled and put on
the devices. After every `validate_every` of them, and after the last, the caller measures the
model, and the best so far is handed to the caller to keep. Everything is resumable at any
instruction:

- the training state is saved every `save_every` steps, before every validation, and when asked to
  stop; a killed run takes the newest good one, repeats the steps after it, and makes the same bits;
- what a validation measured is written down before it is acted upon, and never measured again;
- the best model is handed out after its validation is on record, and again if that was cut short;
- the result is written down before the states are removed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from ste_jax.checkpoints import checkpoint
from ste_jax.config.schema import FinetuneKnobs
from ste_jax.errors import Preempted, WorkError
from ste_jax.finetuning import packing
from ste_jax.finetuning.lora import is_trained, merged, with_small_matrices
from ste_jax.finetuning.objectives import Objective, Sft, units_of
from ste_jax.finetuning.packing import Plan, Rows, Unit
from ste_jax.finetuning.phase_knobs import told
from ste_jax.finetuning.train_step import (
    Batch,
    StepMetrics,
    abstract_state,
    initial_state,
    make_train_step,
    put_batch,
    step_flops,
    stop_flags,
)
from ste_jax.finetuning.training_state import LEDGER, RESULT, Event, InHand, Ledger, StateStore
from ste_jax.models.config import ModelConfig
from ste_jax.models.decoder import Decoder, abstract_decoder
from ste_jax.models.parameters import parameters_of, with_parameters
from ste_jax.system import files

SaveModel = Callable[[Decoder, int, dict[str, Any]], None]


class Validate(Protocol):
    """Measures a model after a step."""

    def __call__(self, model: Decoder, step: int, release: Callable[[], None], /) -> dict[str, Any]:
        """A mapping with `accuracy` (or None), JSON-able, the same on every process.

        It may call `release`: the training state, and with it the model, then leaves the devices,
        and is read back from disk afterwards (but for large matrices that stay as they are beside
        LoRA's small ones). It may raise `Preempted`. The model is gone after the
        next step.
        """


@dataclass(frozen=True, kw_only=True)
class FinetuneResult:
    """What a fine-tuning came to; the same bits after any kill and resume."""

    steps: list[Event]
    """Per optimizer step: `step` (from 1), `loss`, the objective's measures (of SFT
    `token_accuracy`), `grad_norm`, `lr`, `tokens`, `targets`, `flops`."""
    validations: list[Event]
    """Per validation: `step` (0: before the first one) and what `validate` gave."""
    best_step: int
    best_accuracy: float | None
    dropped: list[str]
    """Ids of the examples too long for a row."""
    truncated: list[str]
    """Ids of the examples whose end was cut off to fit."""
    unweighted: list[str]
    """Ids of the examples without a token to learn."""


def finetune(
    *,
    model: Decoder,
    examples: Sequence[Unit],
    knobs: FinetuneKnobs,
    seed: int,
    mesh: Mesh,
    state_dir: epath.Path,
    validate: Validate,
    save_model: SaveModel,
    log: Callable[[Event], None],
    stop_requested: Callable[[], bool],
    objective: Objective | None = None,
    start: Event | None = None,
) -> FinetuneResult:
    """Fine-tunes `model` on `examples`. Every process calls it alike.

    Args:
      model: where to start, on `mesh`. It is taken over: its arrays are gone afterwards. It
        computes in its own `dtype`, and its parameters keep their type.
      examples: all of them, on every process, in any order.
      state_dir: where training in hand is kept; nobody else's.
      save_model: keeps a model, in the place of the one that it kept before, whole or not at all;
        it is called with the step and what `validate` gave, each time that that is the best so far.
        Of equals the latest is the best; with `finetune.select: last` it always is.
      log: gets one event per step: those of `FinetuneResult.steps` and `seconds`. A resumed run
        gives the steps after its state again, with the same values.
      stop_requested: asked before every step, whose result it reaches: if any process says yes, all
        save their state after that step and stop.
      objective: what is minimized, and so what a unit of `examples` is; SFT on `Example`s where
        none is given.
      start: what `validate` gives of the model before the first step. With it that model may be the
        best, of step 0: then `save_model` is never called, and the caller, who has it, keeps it.

    Raises:
      RequestError: the knobs do not fit each other or the mesh.
      WorkError: there is nothing to train on, the loss is not finite, or a state cannot be saved.
      Preempted: asked to stop; the same call goes on.
    """
    objective = objective or Sft()
    units, truncated = packing.cut_to_fit(examples, knobs)
    plan = packing.plan(units, knobs, seed)
    if not plan.steps:
        raise WorkError(_nothing_to_train_on(units, plan, knobs, objective))
    total = len(plan.steps)
    place = _fingerprint(model, units, knobs, seed, objective)
    if knobs.lora.rank:
        model = with_small_matrices(model, knobs.lora, seed, mesh)
    params = parameters_of(model)
    fixed = {path: params.pop(path) for path in list(params) if not is_trained(model.config, path)}
    kinds: dict[str, Any] = {"dtype": model.dtype, "param_dtype": model.embed.get_value().dtype}
    blank = abstract_decoder(model.config, **kinds)
    train = make_train_step(
        model.config, knobs, total, mesh, **kinds, objective=objective, seed=seed
    )

    def batch_of(step: int) -> tuple[Rows, Batch]:
        """The rows of a step, and they on the devices."""
        members = plan.steps[step]
        rows = packing.fill(
            members,
            units,
            count=knobs.batch_rows,
            sequence_length=knobs.sequence_length,
            targets_per_row=plan.targets_per_row,
        )
        rows = objective.add_fields(rows, members, units, plan.units_per_row)
        return rows, put_batch(rows, knobs.accumulate, mesh)

    home = state_dir / place
    done = files.read_twice(home / RESULT)
    _begin(state_dir, home, done is not None)
    if done is not None:
        return FinetuneResult(**done)
    ledger = Ledger(home / LEDGER, latest_is_best=knobs.select == "last")
    if start is not None:
        ledger.validation(0, lambda: start)
    checkpoint.all_processes("finetune: ledger read")
    with StateStore(home, keep=knobs.keep_states) as store:
        hand = InHand(
            store,
            abstract_state(model.config, knobs, total, mesh, param_dtype=kinds["param_dtype"]),
            lambda state: merged(with_parameters(blank, state.params | fixed)),
        )
        if hand.take_back():
            for array in params.values():
                array.delete()  # else they lie beside the restored ones to the end
        else:
            hand.begin(initial_state(params, hand.abstract, knobs, total))
        ahead: tuple[int, Rows, Batch] | None = None
        while True:
            step = hand.step
            due = step == total or _every(step, knobs.validate_every)
            if due or _every(step, knobs.save_every):
                hand.save()
            if step == total:
                store.drop_reserve()  # nothing is saved after it, and a validation needs memory
            if due and not validate_step(ledger, hand, validate, save_model):
                continue  # an older state was read back: its steps are taken again
            if step == total:
                break

            begun = time.perf_counter()
            if ahead is None or ahead[0] != step:
                ahead = (step, *batch_of(step))
            _, rows, batch = ahead
            batch["stop"] = stop_flags(mesh, stop_requested())
            hand.state, measured = train(hand.state, batch, fixed)
            # While the devices are at it.
            ahead = (step + 1, *batch_of(step + 1)) if step + 1 < total else None
            metrics = jax.device_get(measured)
            event = _event(step + 1, metrics, rows, model.config)
            if not metrics.finite:
                store.wait()
                raise WorkError(_not_finite(event, plan.ids(step, units), store.newest()))
            hand.curve.append(event)
            log({**event, "seconds": time.perf_counter() - begun})
            if metrics.stop:
                hand.save()
                store.wait()
                raise Preempted(
                    f"fine-tuning stopped after step {step + 1} of {total} and is saved; run the "
                    "same command again"
                )
        store.wait()
        curve = hand.curve
    best = ledger.best(total)
    result = FinetuneResult(
        steps=curve,
        validations=ledger.validations(total),
        best_step=best["step"],
        best_accuracy=best["accuracy"],
        dropped=list(plan.too_long),
        truncated=list(truncated),
        unweighted=list(plan.unweighted),
    )
    if jax.process_index() == 0:
        files.write_twice(home / RESULT, dataclasses.asdict(result))
        _tidy(home)
    checkpoint.all_processes("finetune: done")
    return result


def validate_step(ledger: Ledger, hand: InHand, validate: Validate, save_model: SaveModel) -> bool:
    """Measures the model in hand, and hands it out if it is the best so far.

    False if it was let go of meanwhile and cannot be read back: an older one is in hand now.
    """
    step = hand.step
    metrics = ledger.validation(step, lambda: validate(hand.model(), step, hand.release))
    if not hand.take_back():
        raise WorkError(
            f"the training state after step {step} was let go of for its validation and cannot be "
            "read back; run again: training begins anew"
        )
    if hand.step != step:
        return False
    if ledger.best(step)["step"] == step:
        ledger.hand_out(step, lambda: save_model(hand.model(), step, metrics))
    return True


def _begin(state_dir: epath.Path, home: epath.Path, done: bool) -> None:
    """Makes `home` the only one in `state_dir`; where all is done, with nothing but the result."""
    checkpoint.all_processes("finetune: looked for the result")
    if jax.process_index() == 0:
        home.mkdir(parents=True, exist_ok=True)
        for other in state_dir.iterdir() if state_dir.exists() else ():
            if other.name != home.name:
                files.remove(other)  # of another model, other examples or other knobs
        if done:
            _tidy(home)
    checkpoint.all_processes("finetune: begun")


def _tidy(home: epath.Path) -> None:
    """Removes the training states, which the result has made useless."""
    for path in home.iterdir():
        if not path.name.startswith(RESULT):
            files.remove(path)


def _fingerprint(
    model: Decoder,
    units: Sequence[Unit],
    knobs: FinetuneKnobs,
    seed: int,
    objective: Objective,
) -> str:
    """A hash of all that the result depends on but the mesh: other training has another place."""
    digest = hashlib.blake2b(digest_size=16)
    for row in units_of(units):
        digest.update(json.dumps(row).encode())
    start = checkpoint.describe(parameters_of(model))
    aim = [objective.name, dataclasses.asdict(objective)]  # type: ignore[call-overload]
    model_told = [model.config.to_dict(), str(model.dtype)]
    digest.update(json.dumps([*model_told, told(knobs), aim, seed, start]).encode())
    return digest.hexdigest()


def _every(step: int, interval: int) -> bool:
    return step > 0 and interval > 0 and step % interval == 0


def _event(step: int, metrics: StepMetrics, rows: Rows, config: ModelConfig) -> Event:
    return {
        "step": step,
        "loss": float(metrics.loss),
        **{name: float(value) for name, value in metrics.measures.items()},
        "grad_norm": float(metrics.grad_norm),
        "lr": float(metrics.learning_rate),
        "tokens": int(np.count_nonzero(rows.segment_ids)),
        "targets": int(np.count_nonzero(rows.weights)),
        "flops": step_flops(config, rows),
    }


def _not_finite(event: Event, ids: Sequence[str], newest: epath.Path | None) -> str:
    return (
        f"the loss or its gradient is not finite at step {event['step']} (loss {event['loss']}, "
        f"gradient norm {event['grad_norm']}), whose batch holds the examples {', '.join(ids)}; "
        f"the last good training state is {newest or 'the start'}; lower the learning rate or "
        "leave out the example that is wrong"
    )


def _nothing_to_train_on(
    units: Sequence[Unit], plan: Plan, knobs: FinetuneKnobs, objective: Objective
) -> str:
    knob = "finetune.dpo.sequence_length" if objective.name == "dpo" else "finetune.sequence_length"
    if not units:
        return "there is nothing to fine-tune on: no example was given"
    longest = max(unit.length for unit in units)
    return (
        f"there is nothing to fine-tune on: of {len(units)} examples {len(plan.too_long)} are "
        f"longer than {knob}={knobs.sequence_length} (the longest has {longest} tokens) and "
        f"{len(plan.unweighted)} have no token to learn"
    )
