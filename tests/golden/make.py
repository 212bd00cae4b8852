"""How is the finished work made that later versions must take up?

    python -m tests.golden.make [VARIANT ...]

makes the archives anew, with the lists of what they were made under. An archive stands for work
that somebody has finished with an earlier version: to make it anew is to say that theirs may be
lost. So that is for a new variant alone; of those that are there, the lists show what changed."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from tests import conftest  # noqa: F401 - before JAX: archives are made as tests run
from tests.golden import archive
from tests.golden.variants import VARIANTS, evaluating, reachable, running


def make(variant: str) -> None:
    """Make a variant's run and pack it."""
    home = Path.cwd()
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        try:
            root = Path(variant)
            root.mkdir()
            values, config = VARIANTS[variant](root), root / "config.yaml"
            with reachable(values) as answered:
                config.write_text(yaml.safe_dump(answered))
                _ste(running(variant))
            # The address of an endpoint decides nothing: it is not kept.
            config.write_text(yaml.safe_dump(values))
            _ste(running(variant))
            _ste(evaluating(variant))
            archive.pack(Path(), variant)
            _list(variant, root)
        finally:
            os.chdir(home)


def _ste(words: list[str]) -> None:
    from ste_jax.cli import main

    if main(words):
        raise SystemExit(f"ste {' '.join(words)} did not come to its end")


def _list(variant: str, root: Path) -> None:
    _put(archive.FINGERPRINTS, variant, archive.fingerprints(root))
    for name, form in formats().items():
        _put(archive.FORMATS, name, form)


def formats() -> dict[str, dict[str, Any]]:
    """By class of row: the metadata and the columns of its Parquet files, as they are written."""
    from ste_jax import records

    rows = [
        each
        for each in vars(records).values()
        if dataclasses.is_dataclass(each) and each.__module__ == records.__name__
    ]
    return {
        each.__name__: form_of(pq.read_schema(io.BytesIO(records.to_parquet([], each))))
        for each in rows
    }


def form_of(schema: Any) -> dict[str, Any]:
    """A Parquet schema as plain values."""
    return {
        "metadata": {key.decode(): value.decode() for key, value in schema.metadata.items()},
        "columns": [[each.name, str(each.type), each.nullable] for each in schema],
    }


def _put(path: Path, key: str, value: Any) -> None:
    values = json.loads(path.read_text()) if path.exists() else {}
    text = json.dumps({**values, key: value}, indent=1, sort_keys=True)
    path.write_text(text + "\n")


if __name__ == "__main__":
    for name in sys.argv[1:] or VARIANTS:
        make(name)
