"""Where does a run keep its tables and files?

A run is one directory of tables (`run.tables`) and files. A mark beside what a step has made
(`run.marks`) holds the fingerprint under which it was made: if that is another than today's, the
work is moved aside and made anew.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from etils import epath

from ste_jax import records
from ste_jax.config.load import is_shipped
from ste_jax.records import Row
from ste_jax.run.metrics_log import read_metrics
from ste_jax.run.tables import Table
from ste_jax.system import files
from ste_jax.system.errors import RequestError
from ste_jax.system.yaml_notation import from_yaml


@dataclass(frozen=True)
class JudgedDir:
    """The prompts that a judge is measured by, and its judgments."""

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

    def table(self, row_type: type[Row], *names: str) -> Table[Row]:
        """A table of the iteration; phases of fine-tuning may have tables of their own."""
        return Table(self.root.joinpath(*names), row_type, self.shards)

    @property
    def prompts(self) -> Table[records.Prompt]:
        return self.table(records.Prompt, "prompts")

    @property
    def judgments(self) -> Table[records.Judgment]:
        return self.table(records.Judgment, "judgments")

    @property
    def training(self) -> Table[records.TrainingExample]:
        return self.table(records.TrainingExample, "training")

    def phase(self, name: str) -> IterationDir:
        """The directory of a phase of fine-tuning that is not the last, with a checkpoint, a loss
        curve and an evaluation of its own."""
        return IterationDir(self.phases / name, self.index, self.shards)

    def places_of(self, phases: Sequence[str]) -> list[tuple[str, IterationDir]]:
        """Phases of fine-tuning in order, each with the directory of its judge: the last one's is
        the iteration's own."""
        return [*((name, self.phase(name)) for name in phases[:-1]), (phases[-1], self)]

    @property
    def phases(self) -> epath.Path:
        """The directory of the phases of fine-tuning before the last."""
        return self.root / "stages"

    @property
    def finetuned(self) -> list[epath.Path]:
        """The files of a phase of fine-tuning and of its evaluation; its mark is the last."""
        places = (self.train_state, self.checkpoint, self.loss_curve, self.evaluation)
        return [*places, self.validation, self.heldout.root, self.finetune_mark]

    @property
    def finetune_mark(self) -> epath.Path:
        """The mark that says what the judge was made of."""
        return self.root / "finetune.mark.json"

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
        """The mark that says what the training set was made of."""
        return self.root / "curate.mark.json"

    @property
    def loss_curve(self) -> epath.Path:
        """One entry per optimizer step, and the validations (JSON), without times."""
        return self.root / "finetune.json"

    @property
    def validation(self) -> epath.Path:
        """The judge's measures on the validation pairs, if its checkpoint does not hold them."""
        return self.root / "validation.json"

    @property
    def evaluation(self) -> epath.Path:
        return self.root / "evaluation.json"


def run_named(word: str) -> RunDir | None:
    """The run whose directory a word names; None if it names no directory, or a shipped config.

    Raises:
      RequestError: it names a directory that is no run.
    """
    run = RunDir(epath.Path(word))
    if is_shipped(word) or not run.root.is_dir():
        return None
    if not run.config.exists():
        raise RequestError(f"{word} is a directory and no run: it has no config.yaml")
    return run


NO_SHAPES = ("mesh", "dtype", "weights")
"""Knobs of decoding that are not part of the shapes: where it runs, and what fingerprints hold."""


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
    def agreed(self) -> epath.Path:
        """What a person agreed to have set aside, until what it is for is done."""
        return self.root / "agreed.json"

    @property
    def rejected(self) -> epath.Path:
        return self.root / "rejected.jsonl"

    @property
    def report(self) -> epath.Path:
        return self.root / "report" / "index.html"

    def plain_config(self) -> dict[str, Any]:
        """The config as plain values; empty if it cannot be read."""
        try:
            found = from_yaml(self.config.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def begun(self) -> bool:
        """Whether there is a run here, even if its manifest is damaged or lost."""
        if self.manifest.exists() or files.read_twice(self.manifest) is not None:
            return True
        return bool(self.config.exists() and (self.root / "instructions").exists())

    def read_manifest(self) -> dict[str, Any]:
        """The manifest: what was fixed when the run began, and the counts of intake. A damaged one
        is rebuilt.

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
        """The manifest, rebuilt from what is in the run."""
        try:
            config = from_yaml(self.config.read_text(encoding="utf-8"))
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
        taken = [event for event in read_metrics(self.root) if event["event"] == "intake"]
        if taken:
            keys = ("read", "filtered", "rejected", "duplicates", "not_sampled", "kept")
            found["intake"] = {key: taken[-1][key] for key in keys if key in taken[-1]}
        if not files.is_reading_only():
            warnings.warn(
                f"{self.manifest} was damaged, and is rebuilt of what is there", stacklevel=2
            )
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

        Directories beyond the run's number of iterations are from an earlier, longer config.
        """
        directory = self.root / "iterations"
        if not directory.exists():
            return []
        last = int(self.read_manifest()["iterations"])
        numbers = sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())
        return [self.iteration(number) for number in numbers if number <= last]

    @contextmanager
    def locked(self, *, reading: bool = False) -> Iterator[None]:
        """Lock the run: two commands must not work on it at once, nor one work on it while others
        are `reading` it. A kill releases the lock.

        Raises:
          RequestError: another command holds it.
        """
        remote = files.is_remote(self.root)
        if not remote and self.root.exists() and not self.root.is_dir():
            raise RequestError(f"{self.root} is a file; a run is a directory")
        hold = files.held_for_reading if reading else files.held_at
        with hold(self.root):
            yield
