"""Does a generator that is asked for long hold no more than one that is asked for a while?"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ste_jax.decoding import generator as local
from tests import tiny
from tests.decoding import growth
from tests.running import REPOSITORY, environment


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_model(tmp_path_factory.mktemp("tiny") / "hf")


def test_nothing_that_is_kept_grows(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "KNOWN_TOKENS", growth.KNOWN_TOKENS)
    generator = growth.open_generator(directory)
    kept = [growth.lengths(generator) for _ in growth.ask(generator, [150, 300])]
    for part in ("_known", "_engine._schedules[]._waiting", "_engine._prefiller._store._owned[]"):
        assert f".{part}" in kept[0]
    assert kept[0]["._known"] < 150
    assert kept[1] == kept[0]


@pytest.mark.slow
def test_memory_after_two_thousand_requests_is_that_after_five_hundred(directory: Path) -> None:
    command = [sys.executable, "-m", "tests.decoding.growth", str(directory)]
    done = subprocess.run(
        [*command, "500", "1000", "1500", "2000"],
        cwd=REPOSITORY,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    said = [json.loads(line) for line in done.stdout.splitlines()]
    print([(each["asked"], each["resident"]) for each in said])
    first, last = said[0], said[-1]
    assert (first["asked"], last["asked"]) == (500, 2000)
    # Less than a kilobyte for each request; a prompt of a hundred tokens as a list has more.
    assert last["resident"] - first["resident"] < 1e6
