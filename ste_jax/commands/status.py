"""Where does a run stand, what did it do last, and what is next?

Everything is told by the files that are there: no model is loaded, nothing is written or held, and
what is damaged is passed over, so a run can be looked at while a command works on it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from ste_jax.checkpoints.card import read_card
from ste_jax.reporting.tables import aligned
from ste_jax.run import journal, marks
from ste_jax.run.changes import counted, knobs_in
from ste_jax.run.layout import IterationDir, JudgedDir, RunDir
from ste_jax.run.metrics_log import read_metrics
from ste_jax.run.tables import Table
from ste_jax.system import files
from ste_jax.system.errors import RequestError, WorkError
from ste_jax.system.progress_lines import duration


@dataclass(frozen=True)
class StepStatus:
    """How far a step is."""

    step: str
    done: bool
    """Whether its output is there, and nothing is seen for which it would be made again."""
    rows: int | None = None
    """How many of its rows (of training: optimizer steps) are done; None if it has none."""
    of: int | None = None
    """How many there are to be done; None if that is not known."""
    unit: str = "rows"
    made_before: bool = False
    """Whether its output is there and may be made again: a step before it is not done, or what it
    was made under is not what the run's config or the run's judge is now."""


def status(directory: str) -> dict[str, Any]:
    """Where a run stands, ready for JSON.

    Returns:
      run; at_work: whether a command works on it, null where that cannot be known; steps: a
      `StepStatus` each; next: the first that is not done, null if all are; accuracy: by iteration
      and set, with `made_before` where it may be measured again; last: the last event with its
      time in Unix seconds, null if there is none.

    Raises:
      RequestError: it is no run.
    """
    root = epath.Path(directory)
    with files.reading_only():
        if not RunDir(root).begun():
            raise RequestError(f"{directory} is not a run: begin one with `ste run`")
        return _status(_Opened(root), directory)


def _status(run: RunDir, directory: str) -> dict[str, Any]:
    config = run.plain_config()
    steps = list(_as_of_now(_steps(run, config), config))
    undone = {step.step for step in steps if not step.done}
    events = [event for event in read_metrics(run.root) if isinstance(event, dict)]
    last = max(events, key=lambda event: float(event.get("time", 0)), default=None)
    return {
        "run": directory,
        "at_work": files.is_held(run.root),
        "steps": [asdict(step) for step in steps],
        "next": next((step.step for step in steps if not step.done), None),
        "accuracy": [
            {**_accuracy(each), "made_before": f"evaluate {each.index}" in undone}
            for each in run.iterations()
            if each.evaluation.exists()
        ],
        "last": last,
    }


class _Opened(RunDir):
    """A run whose number of shards is found also where its manifest is damaged."""

    def read_manifest(self) -> dict[str, Any]:
        try:
            return super().read_manifest()
        except RequestError:
            names = [path.stem for path in self.root.glob("instructions/pool/*-of-*.parquet")]
            shards = int(names[0].rpartition("-")[2]) if names else 1
            return {"shards": shards, "iterations": _ANY}


_ANY = 10**6


@dataclass(frozen=True)
class _Origin:
    """Where it stands what a step was made of."""

    marks: Sequence[epath.Path] = ()
    asks: IterationDir | None = None
    """The directory of the judge that the step asks, unless it asks another model."""

    def has_changed(self, config: Mapping[str, Any]) -> bool:
        """Whether the step was made under other knobs than those of a config, or by another judge
        than is there, or was stopped while it was being written."""
        found = [marks.marked(path) for path in self.marks]
        return any(
            each in ("", marks.BEING_WRITTEN)
            or _differs(each.made_of.get("knobs", {}), config)
            or self._by_another(str(each.made_of.get("model", "")))
            for each in found
        )

    def _by_another(self, model: str) -> bool:
        if self.asks is None or not model or model.startswith("endpoint/"):
            return False
        try:
            judge = read_card(self.asks.checkpoint)["provenance"]["fingerprint"]
        except (OSError, KeyError, TypeError, RequestError):
            return False
        return not f"{model}/".startswith(f"{judge}/")


def _differs(knobs: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    return any(knobs[name] != value for name, value in knobs_in(config, knobs).items())


def _as_of_now(
    steps: Iterable[tuple[StepStatus, _Origin]], config: Mapping[str, Any]
) -> Iterator[StepStatus]:
    """The steps in order; of those that are there, the ones that may be made again are not done."""
    behind = False
    for step, origin in steps:
        again = behind or not step.done or origin.has_changed(config)
        yield replace(step, done=False, made_before=True) if step.done and again else step
        behind = behind or (again and not step.step.startswith("evaluate"))  # none is made of these


def _steps(run: RunDir, config: dict[str, Any]) -> Iterator[tuple[StepStatus, _Origin]]:
    """The steps of the recipe, in order, with what they were made of."""
    instructions, pairs, seed = run.root / "instructions", run.root / "pairs", run.iteration(0)
    pool, finetune = _rows(run.pool), config.get("finetune", {})
    yield (
        StepStatus("intake", run.pool.complete(), pool, pool),
        _Origin([instructions / "intake.mark.json"]),
    )
    yield StepStatus("seed model", seed.checkpoint.exists()), _Origin()
    labelled = {"id": run.labels}
    yield (
        _sharded("label", instructions / "label.journal", run.pool, labelled),
        _Origin([instructions / "label.mark.json"], seed),
    )
    selected = _rows(run.selected)
    yield (
        StepStatus("select", run.selected.complete(), selected, selected if selected else None),
        _Origin([instructions / "choose.mark.json"]),
    )
    paired: dict[str, Table[Any]] = {"id": run.dropped_pairs, "instruction_id": run.pairs}
    yield (
        _sharded("pair", pairs / "pair.journal", run.selected, paired),
        _Origin([pairs / "pair.mark.json"], seed),
    )
    phases = finetune.get("stages", ["sft"])
    sets = [each.get("name", "") for each in config.get("evaluate", {}).get("sets", ())]
    yield _evaluated("evaluate 0", seed, sets)
    there = int(config.get("iterations", len(run.iterations()) - 1))
    for index in range(1, there + 1):
        here = run.iteration(index)
        place = here.root / "annotate.journal"
        yield (
            _sharded(f"annotate {index}", place, here.prompts, {"prompt_id": here.judgments}),
            _Origin([here.root / "annotate.mark.json"], run.iteration(index - 1)),
        )
        for phase, out in here.places_of(phases):
            yield _phase(phase, here, out)
        for phase in phases[:-1]:
            yield _evaluated(f"evaluate {index} after {phase}", here.phase(phase), sets)
        yield _evaluated(f"evaluate {index}", here, sets)


def _sharded(
    step: str,
    lines: epath.Path,
    inputs: Table[Any],
    outputs: Mapping[str, Table[Any]],
    unit: str = "rows",
) -> StepStatus:
    """How far a step is that works shard by shard: it is done if it has a row of every input, whose
    id is in a column of the outputs."""
    done, rows = inputs.complete(), 0
    for shard in range(inputs.shards):
        there = all(table.done(shard) for table in outputs.values())
        wanted = _ids(inputs, shard, "id")
        made = [_ids(table, shard, column) for column, table in outputs.items()] if there else []
        missing = len(wanted.difference(*made))
        if not there or missing:
            done = False
            missing -= min(missing, journal.count(lines, shard))
        rows += len(wanted) - missing
    return StepStatus(step, done, rows, _rows(inputs) if inputs.complete() else None, unit)


def _evaluated(step: str, here: IterationDir, sets: list[str]) -> tuple[StepStatus, _Origin]:
    """How far the evaluation of a judge is, with all sets."""
    judged: list[JudgedDir] = [here.heldout, *(here.labelled(name) for name in sets)]
    parts = [
        _sharded(step, each.root / "evaluate.journal", each.prompts, {"prompt_id": each.judgments})
        for each in judged
    ]
    rows = sum(each.rows or 0 for each in parts)
    known = [each.of for each in parts if each.of is not None]
    of = sum(known) if len(known) == len(parts) else None
    done = here.evaluation.exists() and all(each.done for each in parts)
    made_under = [each.root / "evaluate.mark.json" for each in judged]
    return StepStatus(step, done, rows, of, "prompts"), _Origin(made_under, here)


def _phase(phase: str, here: IterationDir, out: IterationDir) -> tuple[StepStatus, _Origin]:
    """How far a phase of fine-tuning is."""
    steps = _trained(out)
    done = out.loss_curve.exists() and out.checkpoint.exists()
    # what chooses the rows of other phases is known to them alone
    made_under = [here.curate_mark] if phase == "sft" else []
    if marks.marked(out.finetune_mark):  # one that is lost is made again of its card
        made_under.append(out.finetune_mark)
    return StepStatus(
        f"{phase} {here.index}", done, steps, steps if done else None, "steps"
    ), _Origin(made_under)


def _trained(out: IterationDir) -> int:
    """How many optimizer steps a phase has taken, as far as is kept."""
    try:
        return len(files.read_json(out.loss_curve)["steps"])
    except (OSError, KeyError, TypeError, WorkError):
        states = out.train_state.iterdir() if out.train_state.exists() else ()
        names = [path.name for state in states if state.is_dir() for path in state.iterdir()]
        return max((int(name) for name in names if name.isdigit()), default=0)


def _rows(table: Table[Any]) -> int:
    return sum(_rows_of(table, shard) for shard in range(table.shards))


def _ids(table: Table[Any], shard: int, column: str) -> set[str]:
    """The ids in a column of a shard; none if they cannot be read."""
    try:
        with table.path(shard).open("rb") as file:
            return set(pq.read_table(file, columns=[column])[column].to_pylist())
    except (OSError, pa.ArrowException, KeyError):
        return set()


def _rows_of(table: Table[Any], shard: int) -> int:
    """The number of rows of a shard, by the end of its file alone; 0 if it cannot be read."""
    try:
        with table.path(shard).open("rb") as file:
            return int(pq.read_metadata(file).num_rows)
    except (OSError, pa.ArrowException):
        return 0


def _accuracy(here: IterationDir) -> dict[str, Any]:
    try:
        found = files.read_json(here.evaluation)
        sets = {name: each.get("accuracy") for name, each in found.get("sets", {}).items()}
        return {"iteration": here.index, "heldout": found.get("accuracy"), **sets}
    except (OSError, WorkError, AttributeError):  # it may be set aside at this moment
        return {"iteration": here.index}


def as_text(found: dict[str, Any], now: float | None = None) -> str:
    """What `status` gave, for a person."""
    steps, done = found["steps"], sum(step["done"] for step in found["steps"])
    works = {True: "a command is at work on it", False: "no command is at work on it"}
    working = works.get(found["at_work"], "whether a command works on it cannot be seen there")
    lines = [f"{found['run']}: {done} of {counted(len(steps), 'steps')} are done; {working}", ""]
    lines += aligned([_step_row(step) for step in steps if _is_begun(step)])
    if any(step["made_before"] for step in steps):
        lines.append(f"what is made again, and why: ste run {found['run']} --dry-run")
    if found["accuracy"]:
        names = list(dict.fromkeys(name for row in found["accuracy"] for name in row))
        names.remove("made_before")
        table = [[*names, ""], *(_accuracy_row(row, names) for row in found["accuracy"])]
        lines += ["", "accuracy", *aligned(table)]
    lines += ["", f"last: {_last(found['last'], time.time() if now is None else now)}"]
    lines.append(f"next: {found['next'] or 'nothing, all steps are done'}")
    return "\n".join(line.rstrip() for line in lines)


def _is_begun(step: dict[str, Any]) -> bool:
    return bool(step["done"] or step["made_before"] or step["rows"])


def _accuracy_row(row: dict[str, Any], names: list[str]) -> list[str]:
    return [_shown(row.get(name)) for name in names] + ["made before" if row["made_before"] else ""]


def _step_row(step: dict[str, Any]) -> list[str]:
    state = "made before; may be made again" if step["made_before"] else "partly done"
    state = "done" if step["done"] else state
    if step["rows"] is None:
        return [step["step"], state, ""]
    of = f" of {step['of']:,}" if step["of"] not in (None, step["rows"]) else ""
    return [step["step"], state, f"{step['rows']:,}{of} {step['unit']}"]


def _shown(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else "-" if value is None else str(value)


_KINDS = {"work": "", "made_again": "began again:", "train_step": "training step"}
"""What a person reads for the kind of an event that is not plain by its name."""


def _last(event: dict[str, Any] | None, now: float) -> str:
    if event is None:
        return "nothing yet"
    what = [_KINDS.get(str(event.get("event")), str(event.get("event")))]
    what += [str(event[key]) for key in ("stage", "iteration", "step") if key in event]
    when = float(event.get("time", 0))
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when))
    return f"{' '.join(filter(None, what))}, {stamp} ({duration(max(0.0, now - when))} ago)"
