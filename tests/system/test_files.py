"""A file is there whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from etils import epath

from ste_jax.run.metrics_log import MetricsLog
from ste_jax.system import files
from ste_jax.system.errors import RequestError, WorkError


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = epath.Path(tmp_path) / "a.txt"
    files.write_whole(path, b"old")

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WorkError, match=r"a\.txt.*No space left"):
        files.write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["a.txt"]


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(WorkError, match="could not write"):
        files.write_whole(epath.Path(tmp_path) / "file" / "inside", b"x")


def test_json_refuses_what_is_no_json(tmp_path):
    path = epath.Path(tmp_path) / "a.json"
    with pytest.raises(ValueError):
        files.write_json(path, {"a": float("nan")})
    path.write_text("{")
    with pytest.raises(WorkError, match=r"a\.json"):
        files.read_json(path)


@pytest.mark.parametrize("lost", [0, 1])
def test_what_is_written_twice_is_mended_from_the_other(tmp_path, lost):
    path, second = epath.Path(tmp_path) / "a.json", epath.Path(tmp_path) / "a.json.copy"
    assert files.read_twice(path) is None
    files.write_twice(path, {"a": 1})
    damages = [
        lambda place: place.unlink(),
        lambda place: place.write_text('{"a": 2, "check": ""}'),
    ]
    for damage in damages:
        damage((path, second)[lost])
        assert files.read_twice(path) == {"a": 1}
        assert path.read_text() == (second if lost == 0 else path).read_text()
    for place in (path, second):
        place.write_text("{")
    assert files.read_twice(path) is None
    files.forget(path)
    assert not list(tmp_path.iterdir())


def test_a_file_of_an_earlier_version_is_read(tmp_path):
    path = epath.Path(tmp_path) / "a.json"
    files.write_json(path, {"a": 1})
    assert files.read_twice(path) == {"a": 1}


def test_remove_and_sweep(tmp_path):
    root = epath.Path(tmp_path)
    (root / "tree" / "below").mkdir(parents=True)
    files.remove(root / "tree")
    files.remove(root / "never there")
    (root / "x.partial-123").write_text("left by a kill")
    (root / "sub").mkdir()
    (root / "sub" / "y.partial-9").mkdir()
    files.sweep_partials(root)
    assert [each.name for each in tmp_path.iterdir()] == ["sub"]
    assert not list((tmp_path / "sub").iterdir())


def test_another_thread_writes_while_one_only_reads(tmp_path: Path) -> None:
    place, failed = epath.Path(tmp_path / "here"), []

    def write() -> None:
        try:
            files.write_whole(place, b"new")
        except AssertionError as error:
            failed.append(error)

    with files.reading_only():
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
        assert files.is_reading_only()
    assert not failed and place.read_bytes() == b"new"


def test_only_reading_within_only_reading_ends_with_the_outer_one() -> None:
    with files.reading_only():
        with files.reading_only():
            pass
        assert files.is_reading_only()
    assert not files.is_reading_only()


def test_a_look_of_a_moment_keeps_no_command_from_its_start(tmp_path: Path) -> None:
    handle = os.open(tmp_path, os.O_RDONLY)  # as `is_held` does it
    fcntl.flock(handle, fcntl.LOCK_SH)
    threading.Timer(files._A_MOMENT / 2, os.close, (handle,)).start()
    with files.held(tmp_path):
        assert files.is_held(epath.Path(tmp_path))
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_SH)
    try:
        with pytest.raises(RequestError, match="is at work on"), files.held(tmp_path):
            pass
    finally:
        os.close(handle)


@pytest.mark.parametrize(
    "write",
    [
        lambda place: files.write_whole(place, b""),
        lambda place: files.write_json(place, {}),
        lambda place: files.write_twice(place, {}),
        lambda place: files.forget(place),
        lambda place: files.move(place, place.with_name("elsewhere")),
        lambda place: files.remove(place),
        lambda place: files.sweep_partials(place.parent),
        lambda place: files.held(Path(place) / "new").__enter__(),
        lambda place: files.held_at(place / "new").__enter__(),
        lambda place: MetricsLog(place),
        lambda place: MetricsLog(place)("event"),
    ],
)
def test_nothing_is_written_where_only_reading_is_allowed(
    tmp_path: Path, write: Callable[[epath.Path], object]
) -> None:
    place = epath.Path(tmp_path / "here")
    place.write_bytes(b'{"event": "torn')
    with files.reading_only():
        with files.reading_only():
            pass  # what comes after it is still in the outer one
        with pytest.raises(AssertionError, match="a dry run changes nothing"):
            write(place)
    assert [path.name for path in tmp_path.iterdir()] == ["here"]
    assert place.read_bytes() == b'{"event": "torn'
    files.write_whole(place, b"new")
    assert place.read_bytes() == b"new"
