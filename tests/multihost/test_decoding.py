"""Two processes that decode by themselves: are they handed what was trained, and draw the same?"""

from __future__ import annotations

import json
import math
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.finetuning.small import arrays_of, small_model
from tests.multihost import decoding_process
from tests.running import REPOSITORY, environment


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.multihost.decoding_process", *words],
        cwd=REPOSITORY,
        env=environment(devices=2),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes of two devices, and one alone, have written."""
    root = tmp_path_factory.mktemp("decoding")
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    running = [start(str(root), port, str(rank)) for rank in range(2)]
    running.append(start(str(root)))
    try:
        said = [process.communicate(timeout=240)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0, 0], "\n".join(said)
    return root


def test_rows_are_those_of_one_process_byte_for_byte(directory: Path) -> None:
    """But for the log-probabilities, which are measured: with jax 0.12 on CPU a row's may differ in
    the last bits with its slot."""
    alone = rows_of(directory / "rows-alone.jsonl")
    both = rows_of(*(directory / f"rows-{rank}.jsonl" for rank in range(2)))
    assert len(alone) == 2 * decoding_process.PROMPTS
    assert both.keys() == alone.keys()
    for key, (text, logprobs) in alone.items():
        assert both[key][0] == text
        np.testing.assert_allclose(both[key][1], logprobs, atol=1e-6)
    assert len({json.loads(text)["text"] for text, _ in alone.values()}) > decoding_process.PROMPTS


def rows_of(*paths: Path) -> dict[tuple[str, int], tuple[str, list[float]]]:
    """The lines without their log-probabilities, and these."""
    found: dict[tuple[str, int], tuple[str, list[float]]] = {}
    for line in "".join(path.read_text() for path in paths).splitlines():
        row = json.loads(line)
        key, logprobs = (row["request_id"], row["sample"]), row.pop("logprobs")
        assert key not in found
        found[key] = (json.dumps(row), logprobs)
    return found


def test_every_process_is_handed_the_weights_that_were_trained(directory: Path) -> None:
    held = [dict(np.load(directory / f"trained-{rank}.npz")) for rank in range(2)]
    shapes = {path: one.shape for path, one in decoding_process.CONFIG.parameters().items()}
    trained = {path: np.full(shape, np.nan, np.float32) for path, shape in shapes.items()}
    for pieces in held:
        for name, piece in pieces.items():
            path, place = name.split("|")
            trained[path][tuple(slice(*span) for span in json.loads(place))] = piece
    assert max(array.nbytes for array in trained.values()) > 4 * 2**20
    start = arrays_of(small_model(decoding_process.CONFIG))
    for path, array in trained.items():
        assert np.isfinite(array).all() and (array != start[path]).any(), path
    for dtype in ("float32", "bfloat16"):
        rounded = {
            path: array.astype(getattr(ml_dtypes, dtype, dtype)) for path, array in trained.items()
        }
        for rank, pieces in enumerate(held):
            handed = dict(np.load(directory / f"{dtype}-{rank}.npz"))
            received = int(handed.pop("received"))
            assert handed.keys() == trained.keys()
            for path, array in handed.items():
                np.testing.assert_array_equal(array, rounded[path].astype(np.float32), path)
            elements = sum(map(math.prod, shapes.values())) - _elements(pieces)
            assert received == elements * (4 if dtype == "float32" else 2)
            assert received > 0.4 * sum(array.nbytes for array in rounded.values())


def _elements(pieces: dict[str, Any]) -> int:
    """How many elements the pieces are; a place that two devices hold is one name."""
    return sum(piece.size for piece in pieces.values())
