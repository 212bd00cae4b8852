"""How is a file written so that it is there whole or not at all?

Local files are written beside their place, synced, and renamed; on `gs://` an object appears whole
by itself. Every write of the package goes through here.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from etils import epath

from ste_jax.system import hashing
from ste_jax.system.errors import RequestError, WorkError

# Without this, paths would reach object stores through TensorFlow, which takes seconds to load, a
# gigabyte of memory, and the devices.
os.environ.setdefault("EPATH_USE_TF", "false")

_PARTIAL = ".partial"
_A_MOMENT = 0.1
"""How many seconds pass until a lock is tried a second time."""
_only_reading = ContextVar("only_reading", default=False)
"""Of one thread: another may work on a run meanwhile."""


@contextlib.contextmanager
def reading_only() -> Iterator[None]:
    """Forbid to write, move, remove or mend anything in the `with` block: `about_to_change` raises.

    A directory may still be held for reading.
    """
    before = _only_reading.set(True)
    try:
        yield
    finally:
        _only_reading.reset(before)


def is_reading_only() -> bool:
    """Whether nothing may be written now (see `reading_only`), so that nothing can be mended."""
    return _only_reading.get()


def about_to_change(path: epath.PathLike) -> None:
    """Must be called before `path` is written, moved or removed.

    Raises:
      AssertionError: nothing may be written (see `reading_only`), so the caller is wrong.
    """
    if _only_reading.get():
        raise AssertionError(f"a dry run changes nothing, and {path} was about to be changed")


def is_remote(path: epath.Path) -> bool:
    """Whether the path is in an object store."""
    return "://" in os.fspath(path)


def absolute(path: epath.PathLike) -> epath.Path:
    """The path as an absolute one: Orbax takes no relative path."""
    place = epath.Path(path)
    return place if is_remote(place) else place.absolute()


def write_whole(path: epath.Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all.

    Raises:
      WorkError: the place cannot be written (full disk, no permission); nothing is left behind.
    """
    about_to_change(path)
    if is_remote(path):
        try:
            path.write_bytes(data)
        except Exception as error:  # the clients of object stores raise types of many kinds
            reason = " ".join(str(error).split())[:200]
            raise WorkError(f"could not write {path}: {reason}; run again") from error
        return
    local = Path(os.fspath(path))
    partial = local.with_name(f"{local.name}{_PARTIAL}-{os.getpid()}")
    try:
        local.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(local)
        sync_directory(local.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise WorkError(
            f"could not write {path}: {error.strerror or error}; make room or choose another place"
        ) from error


def sync_directory(directory: Path) -> None:
    """Make a rename in `directory` survive a power cut."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(root: Path) -> None:
    """Make everything below `root`, which another library wrote, survive a power cut."""
    for directory, _, names in os.walk(root):
        for name in names:
            with open(os.path.join(directory, name), "rb") as file:
                os.fsync(file.fileno())
        sync_directory(Path(directory))


@contextlib.contextmanager
def held(directory: Path) -> Iterator[None]:
    """Make a directory and lock it: two commands must not work on one. A kill releases the lock.

    Raises:
      RequestError: another process holds it.
      WorkError: the directory cannot be made.
    """
    about_to_change(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        handle = os.open(directory, os.O_RDONLY)
    except OSError as error:
        raise WorkError(
            f"could not write {directory}: {error.strerror}; choose another place"
        ) from error
    try:
        hold(handle, directory)
        yield
    finally:
        os.close(handle)


def held_at(directory: epath.Path) -> contextlib.AbstractContextManager[None]:
    """Lock a directory as `held` does, if it is local; an object store has no locks."""
    if is_remote(directory):
        return contextlib.nullcontext()
    return held(Path(os.fspath(directory)))


@contextlib.contextmanager
def held_for_reading(directory: epath.Path) -> Iterator[None]:
    """Lock a directory for reading, if it is there: others can read it, and none can change it.

    Raises:
      RequestError: another process is changing it.
    """
    if is_remote(directory) or not directory.is_dir():
        yield
        return
    handle = os.open(os.fspath(directory), os.O_RDONLY)
    try:
        hold(handle, Path(os.fspath(directory)), alone=False)
        yield
    finally:
        os.close(handle)


def is_held(directory: epath.Path) -> bool | None:
    """Whether a command is changing a directory; None if that cannot be known, as in an object
    store."""
    if is_remote(directory):
        return None
    handle = os.open(os.fspath(directory), os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except OSError:  # some network file systems lock no directories
        return None
    finally:
        os.close(handle)


def hold(handle: int, place: Path, *, alone: bool = True) -> None:
    """Lock the open file or directory at `place` until it is closed: `alone`, or together with
    others who read it.

    Raises:
      RequestError: another process holds it, or has just removed it.
    """
    with contextlib.suppress(OSError):  # some network file systems lock no directories
        kind = (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB
        try:
            try:
                fcntl.flock(handle, kind)
            except BlockingIOError:  # it may be `ste status`, which looks only for a moment
                time.sleep(_A_MOMENT)
                fcntl.flock(handle, kind)
        except BlockingIOError as error:
            raise RequestError(
                f"another `ste` command is at work on {place}; wait for it or stop it"
            ) from error
    if not place.exists() or place.stat().st_ino != os.fstat(handle).st_ino:
        raise RequestError(f"{place} was just given up by another command; run again")


def write_json(path: epath.Path, value: Any) -> None:
    """Write `value` as readable JSON, whole or not at all. Non-finite numbers are refused."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_whole(path, (text + "\n").encode())


def read_json(path: epath.Path) -> Any:
    """Read a JSON file of ours.

    Raises:
      WorkError: it is not JSON (our own writes are whole, so something else changed it).
    """
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise WorkError(
            f"{path} is damaged: it is not JSON ({error}); put a copy of it back, or move this one "
            "file away and run again: it is made anew of what lies beside it, which is kept"
        ) from error


def write_twice(path: epath.Path, value: dict[str, Any]) -> None:
    """Write a JSON object that finished work depends on: with its hash, and in two copies."""
    sealed = {**value, _CHECK: _check(value)}
    for place in (_second(path), path):  # a kill between them leaves the old one or both
        write_json(place, sealed)


def read_twice(path: epath.Path) -> dict[str, Any] | None:
    """Read what `write_twice` wrote, from a copy whose hash agrees; the other copy is mended.

    Returns None if nothing is there, or if neither copy is as it was written.
    """
    second = _second(path)
    found = _sealed(path)
    if found is None:
        found = _sealed(second)
        if found is not None and not _only_reading.get():
            write_twice(path, found)
    return found


def forget(path: epath.Path) -> None:
    """Remove a file, or what `write_twice` wrote, if it is there."""
    for place in (_second(path), path):
        remove(place)


def _second(path: epath.Path) -> epath.Path:
    return path.with_name(f"{path.name}.copy")


def _sealed(path: epath.Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    if not isinstance(value, dict):
        return None
    check = value.pop(_CHECK, None)  # earlier versions wrote none
    return value if check in (None, _check(value)) else None


def _check(value: dict[str, Any]) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashing.hex_digest(text, 8)


_CHECK = "check"


def move(source: epath.Path, target: epath.Path) -> None:
    """Move a file or a directory tree within one file system or bucket; `target` must not exist."""
    about_to_change(source)
    if not is_remote(source):
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)
    elif source.is_dir():
        for inner in source.iterdir():
            move(inner, target / inner.name)
    else:
        source.copy(target)
        source.unlink()


def read_object(path: Path, name: str = "") -> dict[str, Any]:
    """Read a JSON object from a user's file, which messages call `name`.

    Raises:
      RequestError: the file is missing, or holds something else.
    """
    name = name or str(path)
    if not path.exists():
        raise RequestError(f"{name} is missing")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(f"{name}: not readable as JSON ({error})") from error
    if not isinstance(values, dict):
        raise RequestError(f"{name}: a JSON object is expected")
    return values


def remove(place: epath.PathLike) -> None:
    """Remove a file or a directory tree, if it is there.

    A directory is renamed first, so that a kill while it is being emptied leaves no half of it
    under its name."""
    about_to_change(place)
    path = epath.Path(place)
    if is_remote(path):
        if path.is_dir():
            path.rmtree()
        else:
            path.unlink(missing_ok=True)
        return
    local = Path(os.fspath(path))
    if local.is_dir():
        doomed = local.with_name(f"{local.name}{_PARTIAL}-{os.getpid()}")
        shutil.rmtree(doomed, ignore_errors=True)  # what could not be removed the last time
        local.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
    elif os.path.lexists(local):
        local.unlink(missing_ok=True)


def sweep_partials(directory: epath.Path) -> None:
    """Remove what killed writers left below `directory`, in which nothing may be writing now."""
    about_to_change(directory)
    if is_remote(directory) or not directory.exists():
        return
    for leftover in sorted(Path(os.fspath(directory)).rglob(f"*{_PARTIAL}-*")):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)
