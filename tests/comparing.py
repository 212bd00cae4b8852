"""Are two runs identical, in the sense of DESIGN section 4?

Tables byte for byte, restored arrays bit for bit (by the checksums that a checkpoint's card holds,
and that loading verifies), provenance, metrics and loss curves. Not compared: logs, which hold
times, Orbax's own files, and what was set aside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from ste_jax.checkpoints.card import read_card
from ste_jax.checkpoints.checkpoint import load_checkpoint
from ste_jax.config.schema import MeshKnobs
from ste_jax.models.parameters import parameters_of
from ste_jax.parallel.sharding import make_mesh

RESULTS = ("evaluation.json", "finetune.json", "curation.json")


def assert_identical(first: Path, second: Path) -> None:
    """Raises `AssertionError` naming the first file or array that differs."""
    assert_same_files(first, second, "**/*.parquet")
    for name in RESULTS:
        assert_same_files(first, second, f"iterations/**/{name}")
    if list(first.glob("iterations/*/preferences")):
        assert_same_files(first, second, "iterations/*/preferences.json")
    checkpoints = sorted(
        path for path in first.glob("iterations/**/checkpoint") if "set_aside" not in path.parts
    )
    assert checkpoints
    for path in checkpoints:
        other = second / path.relative_to(first)
        cards = [read_card(place) for place in (path, other)]
        for card in cards:
            card.pop("directory", None)  # where the parameters lie in an object store
        assert cards[0] == cards[1], path
        assert_same_files(path, other, "tokenizer/*")
        assert_same_arrays(path, other)


def assert_same_files(first: Path, second: Path, pattern: str) -> None:
    """The files of a pattern are the same, and have the same bytes."""
    names, others = (
        {
            path.relative_to(root)
            for path in root.glob(pattern)
            if path.is_file() and "set_aside" not in path.parts
        }
        for root in (first, second)
    )
    assert names == others
    assert names, pattern
    for name in sorted(names):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def assert_same_arrays(first: Path, second: Path) -> None:
    """Two checkpoints restore to the same bits."""
    mesh = make_mesh(MeshKnobs(), jax.devices()[:1])
    one = parameters_of(load_checkpoint(epath.Path(first), mesh))
    two = parameters_of(load_checkpoint(epath.Path(second), mesh))
    for name, array in one.items():
        assert np.array_equal(np.asarray(array), np.asarray(two[name])), (first, name)


def tree(root: Any) -> dict[Path, tuple[int, bytes]]:
    """Every file below a directory: when it was written, and what."""
    found = [path for path in Path(root).rglob("*") if path.is_file()]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in found}
