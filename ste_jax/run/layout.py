"""Where does everything of a run lie, and what of it is done?

A run is one directory. Its tables are Parquet shards: a row belongs to the shard of its
instruction's id, rows in a shard are ordered by id, a shard's file appears whole or not at all, and
a shard that is there is done. What a stage has made is remembered beside it as the stage's
fingerprint; where the fingerprint differs from today's, what it made is moved aside and made anew.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic

from etils import epath

from ste_jax import records
from ste_jax.errors import RequestError, WorkError
from ste_jax.records import Row
from ste_jax.system import files, notation


@dataclass(frozen=True)
class Table(Generic[Row]):
    """A table of a run: `shards` Parquet files of rows of one type in one directory."""

    directory: epath.Path
    row_type: type[Row]
    shards: int

    def path(self, shard: int) -> epath.Path:
        """The file of one shard."""
        return self.directory / f"{shard:05d}-of-{self.shards:05d}.parquet"

    def done(self, shard: int) -> bool:
        """Whether the shard is there; then it is whole."""
        return bool(self.path(shard).exists())

    def complete(self) -> bool:
        """Whether every shard is there."""
        return all(self.done(shard) for shard in range(self.shards))

    def read(self, shard: int) -> list[Row]:
        """The rows of one shard; none if it is not there."""
        path = self.path(shard)
        if not path.exists():
            return []
        return records.from_parquet(path.read_bytes(), self.row_type, str(path))

    def rows(self) -> Iterator[Row]:
        """All rows, shard by shard: no more than one shard is in memory."""
        for shard in range(self.shards):
            yield from self.read(shard)

    def write(self, shard: int, rows: Iterable[Row]) -> int:
        """Write one shard, ordered by id; returns how many rows it then holds.

        Raises:
          WorkError: it cannot be written, or holds other rows than were to be written.
        """
        ordered = sorted(rows, key=lambda row: row.id)  # type: ignore[attr-defined]
        path = self.path(shard)
        files.write_whole(path, records.to_parquet(ordered, self.row_type))
        found = records.open_parquet(path.read_bytes(), str(path)).metadata.num_rows
        self.expect(found, len(ordered), str(path))
        return len(ordered)

    def expect(self, found: int, wanted: int, where: str = "") -> None:
        """Hold the rows that were written against those that were to be.

        Raises:
          WorkError: some are missing, or there are too many.
        """
        if found != wanted:
            raise WorkError(
                f"{where or self.directory} holds {found} rows, and {wanted} were to be written; "
                "see whether something else writes there, and run again"
            )

    def check(self) -> None:
        """Read all that is there, of which nothing else is wanted. Raises as `read`."""
        for shard in range(self.shards):
            path = self.path(shard)
            if path.exists():
                records.open_parquet(path.read_bytes(), str(path))

    def remove(self) -> None:
        """Forget the table."""
        files.remove(self.directory)


@dataclass(frozen=True)
class JudgedDir:
    """What a judge was asked to be measured, and what it said."""

    root: epath.Path
    shards: int

    @property
    def prompts(self) -> Table[records.Prompt]:
        return Table(self.root / "prompts", records.Prompt, self.shards)

    @property
    def judgments(self) -> Table[records.Judgment]:
        return Table(self.root / "judgments", records.Judgment, self.shards)


@dataclass(frozen=True)
class IterationDir:
    """The tables and files of iteration K. Iteration 0 is the seed: it only has a checkpoint and
    its evaluation."""

    root: epath.Path
    index: int
    shards: int

    def _table(self, row_type: type[Row], *names: str) -> Table[Row]:
        return Table(self.root.joinpath(*names), row_type, self.shards)

    @property
    def prompts(self) -> Table[records.Prompt]:
        return self._table(records.Prompt, "prompts")

    @property
    def judgments(self) -> Table[records.Judgment]:
        return self._table(records.Judgment, "judgments")

    @property
    def dpo_judgments(self) -> Table[records.Judgment]:
        """What the judge that SFT gave says of the same prompts, for DPO."""
        return self._table(records.Judgment, "dpo_judgments")

    @property
    def more_judgments(self) -> Table[records.Judgment]:
        """What was drawn besides for DPO, where no judgment of a prompt had failed."""
        return self._table(records.Judgment, "more_judgments")

    @property
    def training(self) -> Table[records.TrainingExample]:
        return self._table(records.TrainingExample, "training")

    @property
    def preferences(self) -> Table[records.TrainingExample]:
        """What DPO learns from; empty where the run has no such stage."""
        return self._table(records.TrainingExample, "preferences")

    @property
    def reference(self) -> Table[records.ReferenceScore]:
        """What the preferences' judgments were worth to the model that DPO began with."""
        return self._table(records.ReferenceScore, "reference")

    def stage(self, name: str) -> IterationDir:
        """Where a stage of fine-tuning leaves its judge that is not the last: with a checkpoint,
        a loss curve and an evaluation of its own."""
        return IterationDir(self.stages / name, self.index, self.shards)

    def places_of(self, stages: Sequence[str]) -> list[tuple[str, IterationDir]]:
        """Stages of fine-tuning, in order, and where each leaves its judge: the last here."""
        return [*((name, self.stage(name)) for name in stages[:-1]), (stages[-1], self)]

    @property
    def stages(self) -> epath.Path:
        """The stages of fine-tuning before the last."""
        return self.root / "stages"

    @property
    def finetuned(self) -> list[epath.Path]:
        """All that a stage of fine-tuning makes, and what is measured of it; its mark at the
        end."""
        places = (self.train_state, self.checkpoint, self.loss_curve, self.evaluation)
        return [*places, self.heldout.root, self.finetune_mark]

    @property
    def finetune_mark(self) -> epath.Path:
        """What the judge was made of."""
        return self.root / "finetune.mark.json"

    @property
    def reference_mark(self) -> epath.Path:
        """What the reference was made of."""
        return self.root / "reference.json"

    @property
    def heldout(self) -> JudgedDir:
        """The judge on the held-out pairs, whose labels are constructed."""
        return JudgedDir(self.root / "evaluation", self.shards)

    def labelled(self, name: str) -> JudgedDir:
        """The judge on a set of labelled pairs."""
        return JudgedDir(self.root / "evaluation" / "sets" / name, self.shards)

    @property
    def checkpoint(self) -> epath.Path:
        return self.root / "checkpoint"

    @property
    def train_state(self) -> epath.Path:
        return self.root / "train_state"

    @property
    def curation(self) -> epath.Path:
        """Counts of what was kept and what was not, and why (JSON)."""
        return self.root / "curation.json"

    @property
    def curate_mark(self) -> epath.Path:
        """What the training set was made of."""
        return self.root / "curate.json"

    @property
    def preferring(self) -> epath.Path:
        """Likewise of the preferences."""
        return self.root / "preferences.json"

    @property
    def prefer_mark(self) -> epath.Path:
        """What the preferences were made of."""
        return self.root / "prefer.json"

    @property
    def loss_curve(self) -> epath.Path:
        """One entry per optimizer step, and the validations (JSON), without times."""
        return self.root / "finetune.json"

    @property
    def validation(self) -> epath.Path:
        """What the judge came to on the validation pairs, if its checkpoint does not say so."""
        return self.root / "validation.json"

    @property
    def evaluation(self) -> epath.Path:
        return self.root / "evaluation.json"


NO_SHAPES = ("mesh", "dtype", "weights")
"""Knobs of decoding that are where it ran, and what fingerprints tell."""


@dataclass(frozen=True)
class RunDir:
    """A run's directory."""

    root: epath.Path

    @property
    def config(self) -> epath.Path:
        return self.root / "config.yaml"

    @property
    def manifest(self) -> epath.Path:
        return self.root / "manifest.json"

    @property
    def metrics(self) -> epath.Path:
        return self.root / "metrics.jsonl"

    @property
    def rejected(self) -> epath.Path:
        return self.root / "rejected.jsonl"

    @property
    def report(self) -> epath.Path:
        return self.root / "report" / "index.html"

    def begun(self) -> bool:
        """Whether a run lies here, be its manifest damaged or lost."""
        if self.manifest.exists() or files.read_twice(self.manifest) is not None:
            return True
        return bool(self.config.exists() and (self.root / "instructions").exists())

    def read_manifest(self) -> dict[str, Any]:
        """What was fixed when the run began, and what was taken in; one that is damaged is rebuilt.

        Raises:
          RequestError: this is not a run's directory.
        """
        found = files.read_twice(self.manifest)
        if found is not None:
            return found
        if not self.begun():
            raise RequestError(f"{self.root} is not a run: it has no manifest.json")
        return self._rebuilt()

    def _rebuilt(self) -> dict[str, Any]:
        """The manifest again, of what lies in the run."""
        try:
            config = notation.from_yaml(self.config.read_text(encoding="utf-8"))
            shards, iterations = int(config["pool"]["shards"]), int(config["iterations"])
            shapes = {k: v for k, v in config["decoding"].items() if k not in NO_SHAPES}
            roles = {name: config["roles"][name]["sampling"] for name in ("respond", "judge")}
            caps = {name: int(sampling["max_new_tokens"]) for name, sampling in roles.items()}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RequestError(
                f"{self.manifest} and {self.config} cannot be read; put a copy of one of them back"
            ) from error
        found: dict[str, Any] = {"iterations": iterations, "shards": shards, "shapes": shapes}
        found["caps"] = caps
        taken = [event for event in read_metrics(self) if event["event"] == "intake"]
        if taken:
            keys = ("read", "filtered", "rejected", "duplicates", "not_sampled", "kept")
            found["intake"] = {key: taken[-1][key] for key in keys if key in taken[-1]}
        warnings.warn(f"{self.manifest} was damaged, and is rebuilt of what is there", stacklevel=2)
        files.write_twice(self.manifest, found)
        return found

    @cached_property
    def shards(self) -> int:
        """S, fixed when the pool was taken in.

        Raises:
          RequestError: this is not a run's directory.
        """
        return int(self.read_manifest()["shards"])

    def _table(self, row_type: type[Row], *names: str) -> Table[Row]:
        return Table(self.root.joinpath(*names), row_type, self.shards)

    @property
    def pool(self) -> Table[records.Instruction]:
        return self._table(records.Instruction, "instructions", "pool")

    @property
    def labels(self) -> Table[records.Label]:
        return self._table(records.Label, "instructions", "labels")

    @property
    def label_scores(self) -> Table[records.LabelScore]:
        return self._table(records.LabelScore, "instructions", "label_scores")

    @property
    def selection(self) -> Table[records.Selection]:
        return self._table(records.Selection, "instructions", "selection")

    @property
    def selected(self) -> Table[records.Instruction]:
        return self._table(records.Instruction, "instructions", "selected")

    @property
    def pairs(self) -> Table[records.Pair]:
        return self._table(records.Pair, "pairs", "kept")

    @property
    def dropped_pairs(self) -> Table[records.DroppedPair]:
        return self._table(records.DroppedPair, "pairs", "dropped")

    def labelled(self, name: str) -> Table[records.Pair]:
        """A set of labelled pairs, as it was read."""
        return self._table(records.Pair, "labelled", name)

    def iteration(self, index: int) -> IterationDir:
        return IterationDir(self.root / "iterations" / str(index), index, self.shards)

    def iterations(self) -> list[IterationDir]:
        """The iterations that have begun, in order.

        What lies there beyond the run's number of iterations is of an earlier, longer config.
        """
        directory = self.root / "iterations"
        if not directory.exists():
            return []
        last = int(self.read_manifest()["iterations"])
        numbers = sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())
        return [self.iteration(number) for number in numbers if number <= last]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run: two commands must not work on one at once. A kill lets go of it.

        Raises:
          RequestError: somebody else holds it.
        """
        remote = files.is_remote(self.root)
        if not remote and self.root.exists() and not self.root.is_dir():
            raise RequestError(f"{self.root} is a file; a run is a directory")
        with files.held_at(self.root):
            yield


def fingerprint(stage: str, version: int, knobs: Any, model: str = "", inputs: Any = None) -> str:
    """What makes a stage's output what it is: the knobs it reads, the model it asks, its version.

    The package's version is not part of it: a new release must not throw finished work away.
    """
    text = json.dumps([stage, version, knobs, model, inputs], sort_keys=True, default=list)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def row_ids(tables: Iterable[Table[Any]]) -> str:
    """A hash over the ids of all rows of some tables: what a global step's inputs were."""
    digest = hashlib.blake2b(digest_size=16)
    for table in tables:
        for row in table.rows():
            digest.update(row.id.encode() + b"\n")
        digest.update(b"\0")
    return digest.hexdigest()


class MetricsLog:
    """A process's log of events: one JSON line each. Process 0's is `metrics.jsonl`.

    An object store takes whole files, and of one not many a second: there the events of training
    steps are written some seconds later, together.
    """

    def __init__(self, path: epath.Path) -> None:
        self._path = path
        self._remote = files.is_remote(path)
        self._text = path.read_text() if self._remote and path.exists() else ""
        self._pending, self._written = False, 0.0
        if self._remote:
            atexit.register(self._put)
        elif path.exists():
            self._end_torn_line()

    def _end_torn_line(self) -> None:
        """A kill may have cut the last line off; what comes next starts a line of its own."""
        data = self._path.read_bytes()
        if data and not data.endswith(b"\n"):
            with self._path.open("a") as file:
                file.write("\n")

    def __call__(self, event: str, **values: Any) -> None:
        """Append one event; `time` is Unix seconds.

        Raises:
          WorkError: the file cannot be written.
        """
        line = json.dumps({"event": event, "time": round(time.time(), 3), **values})
        try:
            if self._remote:
                self._text += line + "\n"
                self._pending = True
                if event != "train_step" or time.monotonic() > self._written + _TOGETHER_S:
                    self._put()
                return
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as file:
                file.write(line + "\n")
        except OSError as error:
            raise WorkError(f"could not append to {self._path}: {error.strerror}") from error

    def _put(self) -> None:
        if self._pending:
            self._path.write_text(self._text)
            self._pending, self._written = False, time.monotonic()


_TOGETHER_S = 15.0


def read_metrics(run: RunDir) -> list[dict[str, Any]]:
    """The events of all processes of a run; a line cut off by a kill is passed over."""
    events = []
    for path in sorted(run.root.glob("metrics*.jsonl")):
        for line in path.read_text().splitlines():
            try:
                events.append(json.loads(line))
            except ValueError:
                continue
    return events
