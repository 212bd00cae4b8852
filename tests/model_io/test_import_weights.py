"""An import is resumable at any moment, and what comes of it is what a whole save gives."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from ste_jax.checkpoints.card import read_card
from ste_jax.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from ste_jax.commands.import_model import import_model
from ste_jax.config.schema import MeshKnobs
from ste_jax.model_io import import_weights
from ste_jax.model_io.load_weights import load_weights
from ste_jax.models.parameters import parameters_of
from ste_jax.parallel.sharding import make_mesh
from ste_jax.system import files, preemption
from ste_jax.system.errors import Preempted, RequestError, WorkError
from ste_jax.tokenization.load import load_tokenizer
from tests import running, tiny
from tests.full_disk import files_no_larger_than

ONE = make_mesh(MeshKnobs(), jax.devices()[:1])
SMALL = 9000
"""Bytes of a part: the tiny model has several."""

# `ste import SOURCE CHECKPOINT` in small parts, killed in the Nth write of a file so named.
SCRIPT = f"""
import sys
from tests import killing
from ste_jax.model_io import import_weights
from ste_jax.cli import main
import_weights.PART_BYTES = {SMALL}
name, number, *words = sys.argv[1:]
killing.in_write(name, int(number))
sys.exit(main(["import", *words, "--dtype", "float32"]))
"""


def imported(source: Path, place: Path, name: str = "none", number: int = 1) -> int:
    """The exit status of an import that is killed in a write."""
    command = [sys.executable, "-c", SCRIPT, name, str(number), str(source), str(place)]
    done = subprocess.run(
        command,
        cwd=running.REPOSITORY,
        env=running.environment(2),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_model(tmp_path_factory.mktemp("source") / "model", layers=3)


def same_as_whole(source: Path, place: Path, tmp_path: Path) -> None:
    """Compares with a checkpoint that was saved in one go."""
    card, whole = read_card(place), tmp_path / "whole"
    model = load_weights(source, ONE)
    tokenizer = load_tokenizer(source)
    save_checkpoint(whole, model, tokenizer=tokenizer, provenance=card["provenance"])
    assert read_card(whole) == card
    ours, theirs = (parameters_of(load_checkpoint(each, ONE)) for each in (place, whole))
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[path], theirs[path]) for path in ours)
    names = [sorted(p.name for p in (each / "tokenizer").iterdir()) for each in (place, whole)]
    assert names[0] == names[1]
    assert sorted(each.name for each in place.iterdir()) == sorted(
        each.name for each in whole.iterdir()
    )
    left = {each.name for each in place.parent.iterdir()} - {"whole"}
    assert left == {place.name}, "something is left beside it"


def test_killed_again_and_again(source: Path, tmp_path: Path) -> None:
    place = tmp_path / "checkpoint"
    # After a part is written and before it is noted; then at the card.
    for name, number in [("in-parts.json", 1), ("in-parts.json", 3), ("ste_checkpoint.json", 1)]:
        assert imported(source, place, name, number) == -signal.SIGKILL
        assert not place.exists()
        noted = tmp_path / "checkpoint.in-parts.json"
        assert noted.exists() == (number == 3 or name == "ste_checkpoint.json")
    assert imported(source, place) == 0
    same_as_whole(source, place, tmp_path)


def in_parts(source: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Imports in small parts; the sizes that were read this time."""
    read = import_weights.load_parameter
    sizes: list[int] = []

    def spy(*args, **kwargs):
        array = read(*args, **kwargs)
        sizes.append(array.nbytes)
        return array

    monkeypatch.setattr(import_weights, "PART_BYTES", SMALL)
    monkeypatch.setattr(import_weights, "load_parameter", spy)
    try:
        import_model(str(source), str(place), "float32")
    finally:
        monkeypatch.setattr(import_weights, "load_parameter", read)
    return sizes


def test_what_is_there_is_not_read_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = in_parts(source, tmp_path / "first", monkeypatch)
    polls = iter([False] * 7 + [True])
    monkeypatch.setattr(preemption, "requested", lambda: next(polls, False))
    with pytest.raises(Preempted):
        in_parts(source, tmp_path / "checkpoint", monkeypatch)
    again = in_parts(source, tmp_path / "checkpoint", monkeypatch)
    assert 0 < len(again) < len(whole) and again == whole[-len(again) :]
    (tmp_path / "first").rename(tmp_path.parent / f"{tmp_path.name}-first")
    same_as_whole(source, tmp_path / "checkpoint", tmp_path)


def test_one_source_then_another_then_the_first(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, place = tiny.write_model(tmp_path / "other", layers=3, seed=1), tmp_path / "checkpoint"
    for which, stop_at in ((source, 7), (other, 0)):
        polls = iter([False] * stop_at + [True])
        monkeypatch.setattr(preemption, "requested", lambda: next(polls, False))  # noqa: B023
        with pytest.raises(Preempted):
            in_parts(which, place, monkeypatch)
    in_parts(source, place, monkeypatch)
    shutil.rmtree(tmp_path / "other")
    same_as_whole(source, place, tmp_path)


def test_parts_that_somebody_removed_are_written_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, polls = tmp_path / "checkpoint", iter([False] * 7 + [True])
    monkeypatch.setattr(preemption, "requested", lambda: next(polls, False))
    with pytest.raises(Preempted):
        in_parts(source, place, monkeypatch)
    shutil.rmtree(tmp_path / "checkpoint.in-parts")
    in_parts(source, place, monkeypatch)
    same_as_whole(source, place, tmp_path)


def test_two_imports_to_one_place_are_refused(source: Path, tmp_path: Path) -> None:
    place = tmp_path / "checkpoint"
    told = r"another `ste` command is at work on .*in-parts"
    with files.held(tmp_path / "checkpoint.in-parts"), pytest.raises(RequestError, match=told):
        import_model(str(source), str(place), "float32")
    import_model(str(source), str(place), "float32")
    same_as_whole(source, place, tmp_path)


def test_two_imports_of_a_checkpoint_to_one_place_are_refused(source: Path, tmp_path: Path) -> None:
    first, place = tmp_path / "first", tmp_path / "second" / "checkpoint"
    import_model(str(source), str(first), "float32")
    told = r"another `ste` command is at work on .*in-parts"
    with files.held(place.with_name("checkpoint.in-parts")):
        with pytest.raises(RequestError, match=told):
            import_model(str(first), str(place), "float32")
        assert [each.name for each in place.parent.iterdir()] == ["checkpoint.in-parts"]
    import_model(str(first), str(place), "float32")
    same_as_whole(source, place, tmp_path / "second")


def test_another_source_begins_anew(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tiny.write_model(tmp_path / "other", seed=1, layers=3)
    polls = iter([False] * 7 + [True])
    monkeypatch.setattr(preemption, "requested", lambda: next(polls, False))
    place = tmp_path / "made" / "checkpoint"
    with pytest.raises(Preempted):
        in_parts(source, place, monkeypatch)
    in_parts(other, place, monkeypatch)
    same_as_whole(other, place, tmp_path / "made")


def test_a_full_disk_says_so_and_keeps_what_is_written(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],  # keeps the bar out of a file, which would be full as well
) -> None:
    place = tmp_path / "checkpoint"
    with (
        files_no_larger_than(4000),
        pytest.raises(WorkError, match=r"File too large; make room .* is kept") as told,
    ):
        in_parts(source, place, monkeypatch)
    assert "\n" not in str(told.value) and not place.exists()
    in_parts(source, place, monkeypatch)
    same_as_whole(source, place, tmp_path)


def test_nothing_is_written_for_a_source_that_is_refused(source: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in source.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    values = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(values | {"num_hidden_layers": 4}))
    with pytest.raises(RequestError, match=r"model\.layers\.3\..* is missing"):
        import_model(str(broken), str(tmp_path / "checkpoint"), "bfloat16")
    assert [each.name for each in tmp_path.iterdir()] == ["broken"]
