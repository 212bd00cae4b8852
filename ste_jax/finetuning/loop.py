"""How does a model learn, from the first step to the best checkpoint?

A `BatchSource` says what each step trains on. While a step runs, the next one's rows are made and
put on the devices, unless they are made from the weights that the step changes. After every
`validate_every` steps, and after the last, the caller measures the model, and the best so far is
given to the caller to keep. Everything is resumable at any instruction:

- the training state is saved every `save_every` steps, before every validation, and when asked to
  stop; a killed run takes the newest good one, repeats the steps after it, and makes the same bits;
- what a validation measured is written down before it is acted upon, and never measured again;
- the best model is published after its validation is on record, and again if that was cut short;
- the result is written down before the states are removed.
"""

from __future__ import annotations

import dataclasses
import json
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from ste_jax.checkpoints.arrays import describe
from ste_jax.config import identity
from ste_jax.finetuning.batch_source import BatchSource, StepRows
from ste_jax.finetuning.knobs import TrainingKnobs
from ste_jax.finetuning.lora import is_trained, merged, with_small_matrices
from ste_jax.finetuning.objectives import aim_of
from ste_jax.finetuning.packing import Rows
from ste_jax.finetuning.train_step import (
    Batch,
    StepMetrics,
    TrainState,
    TrainStep,
    abstract_state,
    initial_state,
    make_train_step,
    put_batch,
    step_flops,
    stop_flags,
)
from ste_jax.finetuning.training_state import (
    LEDGER,
    RESULT,
    Event,
    Ledger,
    LiveState,
    StateStore,
    steps_in_hand,
)
from ste_jax.models.config import ModelConfig
from ste_jax.models.decoder import Decoder, abstract_decoder
from ste_jax.models.parameters import Parameters, parameters_of, with_parameters
from ste_jax.parallel.processes import joined
from ste_jax.system import files, hashing, preemption
from ste_jax.system.errors import Preempted, WorkError

SaveModel = Callable[[Decoder, int, dict[str, Any]], None]


class Validate(Protocol):
    """Measures a model after a step."""

    def __call__(self, model: Decoder, step: int, release: Callable[[], None], /) -> dict[str, Any]:
        """A mapping with `accuracy` (or None), JSON-able, the same on every process.

        It may call `release`: the training state, and with it the model, then leaves the devices,
        and is read back from disk afterwards (except the large matrices that LoRA leaves as they
        are). It may raise `Preempted`. The model is gone after the next step.
        """


@dataclass(frozen=True, kw_only=True)
class Callbacks:
    """What the caller does while a model is trained."""

    validate: Validate
    save_model: SaveModel
    """Keeps a model in the place of the one before it, whole or not at all. It is called with the
    step and what `validate` gave, each time that this is the best so far. Among equals the latest
    is the best; with `select: last` the latest always is."""
    log: Callable[[Event], None]
    """Gets one event per step, with the fields of `FinetuneResult.steps` and `seconds`. A resumed
    run logs the steps after its state again, with the same values."""
    stop_requested: Callable[[], bool]
    """Asked before every step. If any process says yes, all of them save their state after that
    step and stop."""


@dataclass(frozen=True, kw_only=True)
class FinetuneResult:
    """The result of a fine-tuning; the same bits after any kill and resume."""

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
    source: BatchSource,
    knobs: TrainingKnobs,
    seed: int,
    mesh: Mesh,
    state_dir: epath.Path,
    callbacks: Callbacks,
    start: Event | None = None,
) -> FinetuneResult:
    """Fine-tunes `model` on what `source` gives. Every process calls it with the same arguments.

    Args:
      model: the model to start from, on `mesh`. Its arrays are used up: they are gone afterwards.
        It computes in its own `dtype`, and its parameters keep their type.
      seed: decides LoRA's first matrices and how parameters are rounded.
      state_dir: the directory that keeps an unfinished training; nothing else may use it.
      start: what `validate` gives for the model before the first step. If it is given, that model
        may be the best, as step 0: then `save_model` is not called for it, since the caller has it.

    Raises:
      RequestError: the knobs do not fit each other or the mesh.
      WorkError: the loss is not finite, or a state cannot be saved.
      Preempted: asked to stop; the same call goes on.
    """
    home = state_dir / _fingerprint(model, source, knobs, seed)
    program = _prepare(model, source, knobs, seed, mesh)
    done = files.read_twice(home / RESULT)
    _begin(state_dir, home, done is not None)
    if done is not None:
        return FinetuneResult(**done)
    ledger = Ledger(home / LEDGER, latest_is_best=knobs.select == "last")
    if start is not None:
        ledger.validation(0, lambda: start)
    joined().barrier("finetune: ledger read")
    with StateStore(home, keep=knobs.keep_states) as store:
        live = _state_of(program, knobs, source.steps, store)
        first = live.step
        with preemption.in_hand(lambda: live.step > first):
            _train(program, live, _Feed(source, knobs.accumulate, mesh), store, ledger, callbacks)
        store.wait()
    result = _result(live.curve, ledger, source)
    if jax.process_index() == 0:
        files.write_twice(home / RESULT, dataclasses.asdict(result))
        _tidy(home)
    joined().barrier("finetune: done")
    return result


def _train(
    program: _Program,
    live: LiveState,
    feed: _Feed,
    store: StateStore,
    ledger: Ledger,
    callbacks: Callbacks,
) -> None:
    """Takes all steps that are left, with the validations and saves between them."""
    last, knobs = feed.source.steps, program.knobs
    while True:
        step = live.step
        due = step == last or _every(step, knobs.validate_every)
        if due or _every(step, knobs.save_every):
            live.save()
        if step == last:
            store.drop_reserve()  # nothing is saved after it, and a validation needs memory
        if due and not validate_step(ledger, live, callbacks):
            continue  # an older state was read back: its steps are taken again
        if step == last:
            break
        _take_step(program, live, feed, store, callbacks)


@dataclass(frozen=True)
class _Program:
    """The compiled training step, and the parts of the model that it trains."""

    config: ModelConfig
    knobs: TrainingKnobs
    train: TrainStep
    abstract: TrainState
    """Shapes and shardings of its state."""
    params: Parameters
    """The parameters that are trained, before the first step."""
    fixed: Parameters
    """The parameters that are not trained (LoRA leaves the large matrices as they are)."""
    blank: Decoder

    def model_of(self, state: TrainState) -> Decoder:
        """The model of a state, with LoRA's small matrices merged into it."""
        return merged(with_parameters(self.blank, state.params | self.fixed))


def _prepare(
    model: Decoder, source: BatchSource, knobs: TrainingKnobs, seed: int, mesh: Mesh
) -> _Program:
    if knobs.lora.rank:
        model = with_small_matrices(model, knobs.lora, seed, mesh)
    params = parameters_of(model)
    fixed = {path: params.pop(path) for path in list(params) if not is_trained(model.config, path)}
    kinds: dict[str, Any] = {"dtype": model.dtype, "param_dtype": model.embed.get_value().dtype}
    blank = abstract_decoder(model.config, **kinds)
    train = make_train_step(
        model.config, knobs, source.steps, mesh, **kinds, objective=source.objective, seed=seed
    )
    abstract = abstract_state(
        model.config, knobs, source.steps, mesh, param_dtype=kinds["param_dtype"]
    )
    return _Program(model.config, knobs, train, abstract, params, fixed, blank)


def _state_of(program: _Program, knobs: TrainingKnobs, steps: int, store: StateStore) -> LiveState:
    """The newest good state of the store, or the one before the first step."""
    live = LiveState(store, program.abstract, program.model_of)
    if live.restore():
        for array in program.params.values():
            array.delete()  # or they would stay beside the restored ones to the end
    else:
        live.begin(initial_state(program.params, live.abstract, knobs, steps))
    return live


class _Feed:
    """Puts the rows of each step on the devices. The next step's rows are prepared while a step
    runs, unless they are made from the weights that it changes."""

    def __init__(self, source: BatchSource, accumulate: int, mesh: Mesh) -> None:
        self.source, self.mesh = source, mesh
        self._accumulate = accumulate
        self._ahead: tuple[int, StepRows, Batch] | None = None

    def take(self, live: LiveState) -> tuple[StepRows, Batch]:
        """The rows of the step that comes next."""
        if self._ahead is None or self._ahead[0] != live.step:
            self._ahead = None
            model = live.model() if self.source.needs_model else None
            self._put(live.step, model)
        assert self._ahead is not None
        _, given, batch = self._ahead
        return given, batch

    def prepare(self, step: int) -> None:
        """Prepare a step's rows before they are taken, if they do not need the model."""
        self._ahead = None
        if step < self.source.steps and not self.source.needs_model:
            self._put(step, None)

    def _put(self, step: int, model: Decoder | None) -> None:
        given = self.source.rows(step, model)
        self._ahead = step, given, put_batch(given.rows, self._accumulate, self.mesh)


def _take_step(
    program: _Program, live: LiveState, feed: _Feed, store: StateStore, callbacks: Callbacks
) -> None:
    """Takes one optimizer step; raises `Preempted` after it if a stop was asked for."""
    step, begun = live.step, time.perf_counter()
    given, batch = feed.take(live)
    batch["stop"] = stop_flags(feed.mesh, callbacks.stop_requested())
    live.state, measured = program.train(live.state, batch, program.fixed)
    feed.prepare(step + 1)  # while the devices are at it
    metrics = jax.device_get(measured)
    event = _event(step + 1, metrics, given.rows, program.config)
    if not metrics.finite:
        store.wait()
        raise WorkError(_not_finite(event, given.ids, store.newest()))
    live.curve.append(event)
    callbacks.log({**event, "seconds": time.perf_counter() - begun})
    if metrics.stop:
        live.save()
        store.wait()
        raise Preempted(
            f"fine-tuning stopped after step {step + 1} of {feed.source.steps} and is saved; run "
            "the same command again"
        )


def validate_step(ledger: Ledger, live: LiveState, callbacks: Callbacks) -> bool:
    """Measures the model in training, and publishes it if it is the best so far.

    Returns False if the state was released meanwhile and cannot be read back: then an older state
    is live now.
    """
    step = live.step
    metrics = ledger.validation(step, lambda: callbacks.validate(live.model(), step, live.release))
    if not live.restore():
        raise WorkError(
            f"the training state after step {step} was let go of for its validation and cannot be "
            "read back; run again: training begins anew"
        )
    if live.step != step:
        return False
    if ledger.best(step)["step"] == step:
        ledger.publish_best(step, lambda: callbacks.save_model(live.model(), step, metrics))
    return True


def _result(curve: list[Event], ledger: Ledger, source: BatchSource) -> FinetuneResult:
    best, left_out = ledger.best(source.steps), source.left_out
    return FinetuneResult(
        steps=curve,
        validations=ledger.validations(source.steps),
        best_step=best["step"],
        best_accuracy=best["accuracy"],
        dropped=list(left_out.too_long),
        truncated=list(left_out.truncated),
        unweighted=list(left_out.unweighted),
    )


def _begin(state_dir: epath.Path, home: epath.Path, done: bool) -> None:
    """Removes all trainings in `state_dir` but `home`; of a finished one, all but the result."""
    joined().barrier("finetune: looked for the result")
    if jax.process_index() == 0:
        home.mkdir(parents=True, exist_ok=True)
        for other in state_dir.iterdir() if state_dir.exists() else ():
            if other.name != home.name:
                if steps := steps_in_hand(other):
                    warnings.warn(
                        f"a training that had taken {steps:,} steps is let go of: it was of "
                        "another model, other rows, another objective or other knobs",
                        stacklevel=2,
                    )
                files.remove(other)  # of another model, other examples or other knobs
        if done:
            _tidy(home)
    joined().barrier("finetune: begun")


def _tidy(home: epath.Path) -> None:
    """Removes the training states, which the result has made useless."""
    for path in home.iterdir():
        if not path.name.startswith(RESULT):
            files.remove(path)


def _fingerprint(model: Decoder, source: BatchSource, knobs: TrainingKnobs, seed: int) -> str:
    """A hash of all that the result depends on but the mesh. It names the directory of a training,
    so that another training has another directory."""
    digest = hashing.hasher()
    for row in source.identity():
        digest.update(json.dumps(row).encode())
    start = describe(parameters_of(model))
    model_identity = [identity.of(model.config), str(model.dtype)]
    aim = aim_of(source.objective)
    held = [*model_identity, knobs.identity(), aim, seed, start]
    digest.update(json.dumps(held).encode())
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
