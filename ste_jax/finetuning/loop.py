"""How does a model learn from its examples, from the first step to the best checkpoint?

All steps are planned before the first. After every `validate_every` of them, and after the last,
the caller measures the model, and the best so far is handed to the caller to keep. Everything is
resumable at any instruction:

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
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from ste_jax import checkpoints, files
from ste_jax.config import FinetuneKnobs
from ste_jax.errors import Preempted, WorkError
from ste_jax.finetuning import packing
from ste_jax.finetuning.lora import is_trained, merged, with_small_matrices
from ste_jax.finetuning.packing import Example, Plan, Rows
from ste_jax.finetuning.state import Event, Ledger, StateStore
from ste_jax.finetuning.train_step import (
    StepMetrics,
    abstract_state,
    initial_state,
    make_train_step,
    put_batch,
    step_flops,
)
from ste_jax.models.config import ModelConfig
from ste_jax.models.decoder import Decoder, abstract_decoder
from ste_jax.parameters import parameters_of, with_parameters

_RESULT = "result.json"

Validate = Callable[[Decoder, int], dict[str, Any]]
SaveModel = Callable[[Decoder, int, dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class FinetuneResult:
    """What a fine-tuning came to; the same bits after any kill and resume."""

    steps: list[Event]
    """Per optimizer step: `step` (from 1), `loss`, `token_accuracy`, `grad_norm`, `lr`, `tokens`,
    `targets`, `flops`."""
    validations: list[Event]
    """Per validation: `step` and what `validate` gave."""
    best_step: int
    best_accuracy: float | None
    dropped: list[str]
    """Ids of the examples too long for a row."""
    unweighted: list[str]
    """Ids of the examples without a token to learn."""


def finetune(
    *,
    model: Decoder,
    examples: Sequence[Example],
    knobs: FinetuneKnobs,
    seed: int,
    mesh: Mesh,
    state_dir: epath.Path,
    validate: Validate,
    save_model: SaveModel,
    log: Callable[[Event], None],
    stop_requested: Callable[[], bool],
) -> FinetuneResult:
    """Fine-tunes `model` on the completions of `examples`. Every process calls it alike.

    Args:
      model: where to start, on `mesh`. It is taken over: its arrays are gone afterwards. It
        computes in its own `dtype`, and its parameters keep their type.
      examples: all of them, on every process, in any order.
      state_dir: where training in hand is kept; nobody else's.
      validate: measures a model after a step: a mapping with `accuracy` (or None), JSON-able, the
        same on every process. It may raise `Preempted`. The model is gone after the next step.
      save_model: keeps a model, in the place of the one that it kept before, whole or not at all;
        it is called with the step and what `validate` gave, each time that that is the best so far.
        Of equals the latest is the best.
      log: gets one event per step: those of `FinetuneResult.steps` and `seconds`. A resumed run
        gives the steps after its state again, with the same values.
      stop_requested: asked before every step, whose result it reaches: if any process says yes, all
        save their state after that step and stop.

    Raises:
      RequestError: the knobs do not fit each other or the mesh.
      WorkError: there is nothing to train on, the loss is not finite, or a state cannot be saved.
      Preempted: asked to stop; the same call goes on.
    """
    plan = packing.plan(examples, knobs, seed)
    if not plan.steps:
        raise WorkError(_nothing_to_train_on(examples, plan, knobs))
    total = len(plan.steps)
    place = _fingerprint(model, examples, knobs, seed)
    if knobs.lora.rank:
        model = with_small_matrices(model, knobs.lora, seed, mesh)
    params = parameters_of(model)
    fixed = {path: params.pop(path) for path in list(params) if not is_trained(model.config, path)}
    kinds: dict[str, Any] = {"dtype": model.dtype, "param_dtype": model.embed.get_value().dtype}
    train = make_train_step(model.config, knobs, total, mesh, **kinds)

    home = state_dir / place
    if not _begin(state_dir, home):
        return FinetuneResult(**files.read_json(home / _RESULT))
    ledger = Ledger(home / "ledger.json")
    checkpoints.all_processes("finetune: ledger read")
    with StateStore(home) as store:
        abstract = abstract_state(
            model.config, knobs, total, mesh, param_dtype=kinds["param_dtype"]
        )
        state, curve = store.restore(abstract) or (None, [])
        if state is None:
            state = initial_state(params, abstract, knobs, total)
        else:
            for array in params.values():
                array.delete()  # else they lie beside the restored ones to the end
        blank = abstract_decoder(model.config, **kinds)
        saved = len(curve)
        while True:
            step = len(curve)
            due = step == total or _every(step, knobs.validate_every)
            if step != saved and (due or _every(step, knobs.save_every)):
                store.save(step, state, curve)
                saved = step
            if due:
                now = merged(with_parameters(blank, state.params | fixed))
                validate_step(ledger, now, step, validate, save_model)
            if step == total:
                break

            begun = time.perf_counter()
            rows = packing.fill(
                plan.steps[step],
                examples,
                count=knobs.batch_rows,
                sequence_length=knobs.sequence_length,
                targets_per_row=plan.targets_per_row,
            )
            batch = put_batch(rows, knobs.accumulate, mesh, stop=stop_requested())
            state, measured = train(state, batch, fixed)
            metrics = jax.device_get(measured)
            event = _event(step + 1, metrics, rows, model.config)
            if not metrics.finite:
                store.wait()
                raise WorkError(_not_finite(event, plan.ids(step, examples), store.newest()))
            curve.append(event)
            log({**event, "seconds": time.perf_counter() - begun})
            if metrics.stop:
                store.save(step + 1, state, curve)
                store.wait()
                raise Preempted(
                    f"fine-tuning stopped after step {step + 1} of {total} and is saved; run the "
                    "same command again"
                )
        store.wait()
    best = ledger.best(total)
    result = FinetuneResult(
        steps=curve,
        validations=ledger.validations(total),
        best_step=best["step"],
        best_accuracy=best["accuracy"],
        dropped=list(plan.too_long),
        unweighted=list(plan.unweighted),
    )
    if jax.process_index() == 0:
        files.write_json(home / _RESULT, dataclasses.asdict(result))
        _tidy(home)
    checkpoints.all_processes("finetune: done")
    return result


def validate_step(
    ledger: Ledger, model: Decoder, step: int, validate: Validate, save_model: SaveModel
) -> None:
    """Measures the model after `step`, and hands it out if it is the best so far."""
    metrics = ledger.validation(step, lambda: validate(model, step))
    if ledger.best(step)["step"] == step:
        ledger.hand_out(step, lambda: save_model(model, step, metrics))


def _begin(state_dir: epath.Path, home: epath.Path) -> bool:
    """Makes `home` the only one in `state_dir`; whether there is anything left to do."""
    done = (home / _RESULT).exists()
    checkpoints.all_processes("finetune: looked for the result")
    if jax.process_index() == 0:
        home.mkdir(parents=True, exist_ok=True)
        for other in state_dir.iterdir() if state_dir.exists() else ():
            if other.name != home.name:
                files.remove(other)  # of another model, other examples or other knobs
        if done:
            _tidy(home)
    checkpoints.all_processes("finetune: begun")
    return not done


def _tidy(home: epath.Path) -> None:
    """Removes the training states, which the result has made useless."""
    for path in home.iterdir():
        if path.name != _RESULT:
            files.remove(path)


def _fingerprint(
    model: Decoder, examples: Sequence[Example], knobs: FinetuneKnobs, seed: int
) -> str:
    """A hash of all that the result depends on but the mesh: other training has another place."""
    digest = hashlib.blake2b(digest_size=16)
    for example in sorted(examples, key=lambda example: example.id):
        row = [example.id, *map(_numbers, (example.prompt_ids, example.completion_ids))]
        weights = None if example.weights is None else [float(w) for w in example.weights]
        digest.update(json.dumps([*row, weights]).encode())
    told = dataclasses.asdict(knobs)
    del told["mesh"], told["save_every"]
    start = checkpoints.describe(parameters_of(model))
    digest.update(
        json.dumps([model.config.to_dict(), str(model.dtype), told, seed, start]).encode()
    )
    return digest.hexdigest()


def _numbers(ids: Sequence[int]) -> list[int]:
    return [int(token) for token in ids]


def _every(step: int, interval: int) -> bool:
    return step > 0 and interval > 0 and step % interval == 0


def _event(step: int, metrics: StepMetrics, rows: Rows, config: ModelConfig) -> Event:
    return {
        "step": step,
        "loss": float(metrics.loss),
        "token_accuracy": float(metrics.token_accuracy),
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
        f"the last good training state is {newest or 'the start'}; lower finetune.learning_rate or "
        "leave out the example that is wrong"
    )


def _nothing_to_train_on(examples: Sequence[Example], plan: Plan, knobs: FinetuneKnobs) -> str:
    if not examples:
        return "there is nothing to fine-tune on: no example was given"
    longest = max(example.length for example in examples)
    return (
        f"there is nothing to fine-tune on: of {len(examples)} examples {len(plan.too_long)} are "
        f"longer than finetune.sequence_length={knobs.sequence_length} (the longest has {longest} "
        f"tokens) and {len(plan.unweighted)} have no token to learn"
    )
