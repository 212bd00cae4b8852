"""How is a training kept on disk, so that a killed run goes on where it was?

The directory of one fine-tuning holds

    STEP/        the training state after that step (Orbax): parameters, moments, the loss curve
    ledger.json  what each validation measured, and which step's model was published as the best
    result.json  the result: written when nothing is left to do, after which the states are removed

A state is complete if it has its final name (Orbax renames), and good if its checksums agree. A
state that is damaged is passed over with a warning and removed, and the one before it is taken.
"""

from __future__ import annotations

import contextlib
import json
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

from ste_jax.checkpoints.arrays import describe, multiprocessing_options, restore_arrays
from ste_jax.checkpoints.publish import discard, write_failure
from ste_jax.finetuning.train_step import TrainState
from ste_jax.models.decoder import Decoder
from ste_jax.parallel.processes import joined
from ste_jax.system import files
from ste_jax.system.errors import WorkError

Event = dict[str, Any]
_ARRAYS, _CURVE = "arrays", "curve"
LEDGER, RESULT = "ledger.json", "result.json"
_TIMEOUT_S = 2 * 3600
"""How many seconds a state may take to be written."""


class StateStore:
    """The training states in one directory. All processes call its methods together."""

    def __init__(self, directory: epath.Path, *, keep: int = 2) -> None:
        """`keep`: how many of the newest states stay."""
        self._directory = files.absolute(directory)
        self._reserve: dict[str, jax.Array] | None = None
        here = multiprocessing_options()
        # Compression would take what the next step computes with.
        arrays = ocp.PyTreeCheckpointHandler(use_compression=False, multiprocessing_options=here)
        curve = ocp.JsonCheckpointHandler(multiprocessing_options=here)
        try:
            self._manager = ocp.CheckpointManager(
                self._directory,
                item_handlers={_ARRAYS: arrays, _CURVE: curve},
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=keep,
                    create=jax.process_count() == 1,
                    cleanup_tmp_directories=True,
                    async_options=ocp.AsyncOptions(timeout_secs=_TIMEOUT_S),
                    multiprocessing_options=here,
                ),
            )
        except OSError as error:
            raise self._failure(error) from error

    def newest(self) -> epath.Path | None:
        """The directory of the last complete state; None if there is none."""
        step = self._manager.latest_step()
        return None if step is None else self._directory / str(step)

    def reserve(self, state: TrainState) -> None:
        """Takes the memory that saves will need: before the first step, not hours later.

        From an accelerator Orbax copies to the host. On a CPU it writes the arrays where they are,
        and a step that would give its results their memory must then get more, anew for each save.
        """
        if jax.default_backend() == "cpu":
            arrays = _flat(state)
            # Unless the results' shardings are given, JAX leaves it to XLA whether `into` is
            # reused; and it would drop `into`, which nothing reads, before it can be donated.
            self._copied = jax.jit(
                _copied,
                out_shardings={name: array.sharding for name, array in arrays.items()},
                donate_argnums=1,
                keep_unused=True,
            )
            self._reserve = jax.block_until_ready(self._copied(arrays, None))

    def drop_reserve(self) -> None:
        """Frees the memory that `reserve` took, once the save that uses it is written. Raises as
        `save`."""
        if self._reserve is not None:
            self.wait()
            self._reserve = None

    def save(self, step: int, state: TrainState, curve: list[Event]) -> None:
        """Begins to save: copies the arrays, then returns while a thread writes them.

        Raises:
          WorkError: this save, or the one before it, cannot be written.
        """
        arrays = _flat(state)
        # A copy: it is written while training goes on and the curve grows.
        content = {"curve": list(curve), "arrays": describe(arrays)}
        if self._reserve is not None:
            self.wait()
            arrays = self._reserve = self._copied(arrays, self._reserve)
        try:
            begun = self._manager.save(
                step,
                args=ocp.args.Composite(
                    **{
                        _ARRAYS: ocp.args.PyTreeSave(arrays),
                        _CURVE: ocp.args.JsonSave(content),
                    }
                ),
                force=True,
            )
        except Exception as error:  # Orbax and TensorStore raise types of many kinds.
            raise self._failure(error) from error
        if not begun:
            raise WorkError(f"the training state {self._directory / str(step)} was not saved")

    def wait(self) -> None:
        """Waits until what was begun is written. Raises as `save`."""
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:
            raise self._failure(error) from error

    def restore(self, like: TrainState) -> tuple[TrainState, list[Event]] | None:
        """The newest good state and its loss curve; `like` holds shapes and shardings.

        Raises:
          WorkError: there is no memory for it: nothing is wrong with the state.
          Preempted: one of several processes was asked to stop while it waited for another to read.
        """
        for step in sorted(self._manager.all_steps(), reverse=True):
            found, failure = self._try_to_read(step, like)
            if not all(joined().gather("room for the state", "RESOURCE_EXHAUSTED" not in failure)):
                raise WorkError(
                    f"there is no memory for the training state {self._directory / str(step)} "
                    f"({failure}); give finetune.mesh more devices or make the batch smaller"
                )
            reason = f" ({failure})" if failure else ""
            # All processes sum or none does: no one waits in there for one that could not read.
            if all(joined().gather("state read", found is not None)) and found is not None:
                state, content = found
                if describe(_flat(state)) == content["arrays"]:
                    return state, content["curve"]
                reason = " (its checksums differ)"
            warnings.warn(
                f"the training state {self._directory / str(step)} is damaged and is passed over"
                f"{reason}",
                stacklevel=2,
            )
            self._manager.delete(step)
        return None

    def __enter__(self) -> StateStore:
        return self

    def __exit__(self, *error: object) -> None:
        """Ends the writing thread; what is being written is finished."""
        # Where a write has failed, `save` or `wait` has said so, and its error is on its way.
        with contextlib.suppress(Exception):
            self._manager.close()

    def _try_to_read(
        self, step: int, like: TrainState
    ) -> tuple[tuple[TrainState, dict[str, Any]] | None, str]:
        """What `_read` gives, or why it fails. Over a network it is tried again."""
        failure = ""
        for pause in (0.0, 2.0, 10.0) if files.is_remote(self._directory) else (0.0,):
            time.sleep(pause)
            try:
                return self._read(step, like), ""
            except Exception as error:  # whatever is wrong with it, it is not good
                failure = " ".join(str(error).split())[:200]
        return None, failure

    def _read(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        place = self._directory / str(step)
        content: dict[str, Any] = json.loads((place / _CURVE / "metadata").read_text())
        if len(content["curve"]) != step:
            raise ValueError(f"its curve has {len(content['curve'])} steps")
        wanted = _flat(like)
        arrays = restore_arrays(place / _ARRAYS, wanted)
        leaves = [arrays[name] for name in wanted]
        state: TrainState = jax.tree.unflatten(jax.tree.structure(like), leaves)
        return state, content

    def _failure(self, error: BaseException) -> WorkError:
        if jax.process_index() == 0:
            for partial in self._directory.glob("*.orbax-checkpoint-tmp*"):
                discard(partial)
        return WorkError(
            f"could not save the training state in {self._directory}: "
            f"{write_failure(error)}; make room and run again"
        )


class LiveState:
    """The training state on the devices, with its loss curve, and how it is kept. All processes
    call its methods together."""

    state: TrainState
    curve: list[Event]

    def __init__(
        self, store: StateStore, abstract: TrainState, model_of: Callable[[TrainState], Decoder]
    ) -> None:
        """`abstract`: shapes and shardings; `model_of`: the model of a state."""
        self.abstract = abstract
        self._store, self._model_of = store, model_of
        self._held = False
        self._saved = 0

    @property
    def step(self) -> int:
        """Steps taken."""
        return len(self.curve)

    def begin(self, state: TrainState) -> None:
        """Take the state before the first step."""
        self.state, self.curve, self._held, self._saved = state, [], True, 0
        self._store.reserve(state)

    def model(self) -> Decoder:
        """The model in training; gone after the next step, or when the state is released."""
        return self._model_of(self.state)

    def save(self) -> None:
        """Begin to save, if that is not done. Raises as `StateStore.save`."""
        if self.step != self._saved:
            self._store.save(self.step, self.state, self.curve)
            self._saved = self.step

    def release(self) -> None:
        """Free the devices of the state; what is on disk stays."""
        self.save()
        self._store.wait()
        self._store.drop_reserve()
        for leaf in jax.tree.leaves(self.state):
            leaf.delete()
        self._held = False

    def restore(self) -> bool:
        """Read the newest good state from disk, unless there is one on the devices. Returns whether
        there is one now."""
        if not self._held:
            found = self._store.restore(self.abstract)
            if found is not None:
                self.state, self.curve = found
                self._held, self._saved = True, self.step
                self._store.reserve(self.state)
        return self._held


def steps_in_hand(home: epath.Path) -> int:
    """How many steps the newest state in a training's directory has; 0 if there is none, or if the
    training has ended."""
    if not home.is_dir() or files.read_twice(home / RESULT) is not None:
        return 0
    return max((int(each.name) for each in home.iterdir() if each.name.isdigit()), default=0)


def has_published(state_dir: epath.Path) -> bool:
    """Whether a training with its states in this directory has had a model saved as the best."""
    places = state_dir.iterdir() if state_dir.exists() else ()
    for place in (each for each in places if each.is_dir()):
        ledger = files.read_twice(place / LEDGER) or {"saved": 0}
        result = files.read_twice(place / RESULT) or {"best_step": 0}
        if ledger["saved"] or result["best_step"]:
            return True
    return False


class Ledger:
    """The record of what validations measured, so that each is run once, and of what was published.

    Process 0 writes; every process reads it once, before the first meeting, and makes the same
    changes to it.
    """

    def __init__(self, path: epath.Path, *, latest_is_best: bool = False) -> None:
        self._path, self._latest_is_best = path, latest_is_best
        stored: Event = {"validations": [], "saved": 0}
        stored = files.read_twice(path) or stored
        self._validations: dict[int, Event] = {v["step"]: v for v in stored["validations"]}
        self._saved: int = stored["saved"]

    def validations(self, until: int) -> list[Event]:
        """The validations of steps up to `until`, in order; each has `step` and its metrics."""
        return [self._validations[s] for s in sorted(self._validations) if s <= until]

    def validation(self, step: int, measure: Callable[[], Event]) -> Event:
        """What the validation after `step` gave; it is measured only if it never was."""
        if step not in self._validations:
            # As it will be read back from JSON, so that a resumed run sees the same values.
            self._validations[step] = json.loads(json.dumps({"step": step, **measure()}))
            self._write()
        return self._validations[step]

    def best(self, until: int) -> Event:
        """The validation with the highest accuracy up to `until` (if the latest is not the best by
        decree); of equals, the latest.

        A weak judge that always prefers the same place has exactly 0.5 at every step: then the one
        that learnt longest is the better. An accuracy of None (nothing to measure on) is lowest.
        """

        def rank(validation: Event) -> tuple[float, int]:
            accuracy = None if self._latest_is_best else validation["accuracy"]
            return (-1.0 if accuracy is None else float(accuracy)), int(validation["step"])

        return max(self.validations(until), key=rank)

    def publish_best(self, step: int, save: Callable[[], None]) -> None:
        """Has the model of `step` saved, unless that or a later one already was.

        A later one is saved only if training went on from an earlier state after a kill: then the
        same steps are taken again, up to that one.
        """
        if step > self._saved:
            save()
            self._saved = step
            self._write()

    def _write(self) -> None:
        if jax.process_index() == 0:
            files.write_twice(
                self._path,
                {"validations": self.validations(until=2**62), "saved": self._saved},
            )


def _flat(state: TrainState) -> dict[str, Any]:
    """The leaves by their path in the state, as `.params['layers.0.q']`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _copied(
    arrays: dict[str, jax.Array], into: dict[str, jax.Array] | None
) -> dict[str, jax.Array]:
    """A copy, in the memory of an older one if there is one and it is donated."""
    return {name: jnp.copy(array) for name, array in arrays.items()}
