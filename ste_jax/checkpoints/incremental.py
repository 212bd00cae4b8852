"""How does a model become a checkpoint part by part, and go on where it was killed?

This is for one process that reads a user's files. A part is some parameters, which leave the memory
once they are written (Orbax's partial saves), so a model needs no more memory than its largest
parameter. What is written is noted in a journal beside it; the finished checkpoint is like one that
`ste_jax.checkpoints.checkpoint` writes.

    NAME.in-parts.json            the journal: what is being made, and which parts are there
    NAME.in-parts/
      whole.partial_save/         Orbax's, a directory for each part
      parameters/, tokenizer/, ste_checkpoint.json    at the end; then the directory is renamed
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orbax.checkpoint.experimental.v1 as orbax
from etils import epath

from ste_jax.checkpoints.arrays import describe
from ste_jax.checkpoints.card import CARD, PARAMETERS, TOKENIZER, card_of
from ste_jax.checkpoints.checkpoint import SavesItself
from ste_jax.checkpoints.publish import publish, write_failure
from ste_jax.models.config import ModelConfig
from ste_jax.models.parameters import Parameters
from ste_jax.system import files
from ste_jax.system.errors import SteError, WorkError


@contextlib.contextmanager
def checkpoint_in_parts(
    path: epath.PathLike, config: ModelConfig, provenance: Mapping[str, Any]
) -> Iterator[CheckpointInParts]:
    """Opens the checkpoint that is being written at a local `path`, and locks out other processes.

    Goes on with what is there of the same model and provenance; if there is none, begins anew.

    Raises:
      RequestError: another process writes there.
    """
    with building_at(path) as home:
        yield CheckpointInParts(Path(os.fspath(files.absolute(path))), home, config, provenance)


@contextlib.contextmanager
def building_at(path: epath.PathLike) -> Iterator[Path]:
    """Hold the directory in which a checkpoint for a local `path` is built.

    Raises:
      RequestError: another process holds it.
    """
    final = Path(os.fspath(files.absolute(path)))
    home = final.with_name(f"{final.name}.in-parts")
    with files.held(home):
        try:
            yield home
        finally:
            with contextlib.suppress(OSError):
                home.rmdir()  # if it is empty


class CheckpointInParts:
    """A checkpoint that is being written. Made by `checkpoint_in_parts`."""

    def __init__(
        self, final: Path, home: Path, config: ModelConfig, provenance: Mapping[str, Any]
    ) -> None:
        self._final, self._home = final, home
        self._journal = epath.Path(self._final.with_name(f"{self._final.name}.in-parts.json"))
        self._whole = self._home / "whole"
        self._saved = self._whole.with_name(f"{self._whole.name}.partial_save")
        made = {"model": config.to_dict(), "provenance": dict(provenance)}
        self._made: dict[str, Any] = json.loads(json.dumps(made))
        self._config = config
        self._parts: dict[str, dict[str, Any]] = {}
        self._joined = self._home / PARAMETERS
        for torn_note in self._final.parent.glob(f"{self._journal.name}*.partial-*"):
            torn_note.unlink()
        files.sweep_partials(epath.Path(self._home))
        there = files.read_twice(self._journal) or {}
        same = {key: there.get(key) for key in made} == self._made
        # Orbax joins the parts in place: a kill in the midst leaves neither them nor the whole.
        torn = there.get("joining") and not (self._whole.exists() or self._joined.exists())
        if same and not torn:
            self._parts = there["parts"]
            if not there["joining"]:
                self._agree_with_what_is_there()
        else:
            # The journal first: it must not outlive the parts that it names.
            files.forget(self._journal)
            files.sync_directory(self._final.parent)
            for left in self._home.iterdir():  # the directory itself is held
                files.remove(left)

    @property
    def missing(self) -> list[str]:
        """The parameters that are not written yet, in the order of their declaration."""
        return [path for path in self._config.parameters() if path not in self._parts]

    def add(self, arrays: Parameters) -> None:
        """Write some of the missing parameters.

        Raises:
          WorkError: it cannot be written; the parts before are kept.
        """
        try:
            before = set(self._saved.iterdir()) if self._saved.exists() else set()
            orbax.partial.save(self._whole, arrays)
            for part in set(self._saved.iterdir()) - before:
                files.sync_tree(part)
            files.sync_directory(self._saved)
            self._parts |= describe(arrays)
            self._note(joining=False)
        except Exception as error:  # Orbax and TensorStore raise types of many kinds.
            raise self._failed(error) from error

    def finish(self, tokenizer: SavesItself) -> None:
        """Make the checkpoint of the parts, all of which must be there.

        Raises:
          WorkError: it cannot be written; the parts are kept.
        """
        try:
            if not self._joined.exists():
                if not self._whole.exists():
                    self._note(joining=True)
                    orbax.partial.finalize(self._whole)
                (self._whole / "state").rename(self._joined)
            files.remove(self._whole)
            home = epath.Path(self._home)
            tokenizer.save(home / TOKENIZER)
            provenance = self._made["provenance"]
            files.write_json(home / CARD, card_of(self._config, self._parts, provenance))
            publish(self._home, self._final)
            files.forget(self._journal)
        except Exception as error:
            raise self._failed(error) from error

    def _note(self, *, joining: bool) -> None:
        files.write_twice(self._journal, {**self._made, "parts": self._parts, "joining": joining})

    def _agree_with_what_is_there(self) -> None:
        """Makes journal and parts agree: a kill between the two leaves a part that is not noted,
        and a part that somebody removed is still noted."""
        there: set[str] = set()
        for part in self._saved.iterdir() if self._saved.exists() else ():
            metadata = part / "state" / "_METADATA"
            names = _names(metadata) if metadata.exists() else set()
            if not names or names - self._parts.keys():
                files.remove(part)
            else:
                there |= names
        self._parts = {path: one for path, one in self._parts.items() if path in there}

    def _failed(self, error: Exception) -> SteError:
        if isinstance(error, SteError):
            return error
        return WorkError(
            f"could not write the checkpoint {self._final}: {write_failure(error)}; make room or "
            "choose another place, and run again: what is written is kept"
        )


def _names(metadata: Path) -> set[str]:
    """The keys of the tree in an Orbax checkpoint."""
    tree = json.loads(metadata.read_text(encoding="utf-8"))["tree_metadata"]
    return {".".join(map(str, ast.literal_eval(key))) for key in tree}
