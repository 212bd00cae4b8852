"""What is set aside in a run, how large is it, and how is it removed?"""

from __future__ import annotations

from dataclasses import dataclass

from etils import epath

from ste_jax.run.changes import counted
from ste_jax.run.layout import RunDir
from ste_jax.run.marks import SET_ASIDE
from ste_jax.system import files
from ste_jax.system.errors import RequestError
from ste_jax.system.progress_lines import amount
from ste_jax.system.terminal import confirmed, say


@dataclass(frozen=True)
class Aside:
    """Finished work of other knobs."""

    place: epath.Path
    bytes: int


def clean(directory: str, *, yes: bool) -> str:
    """List what is set aside in a run, and remove it if that is agreed to: by `yes`, or by an
    answer at the terminal. Without a terminal they are only listed. Returns what was done.

    Raises:
      RequestError: it is no run, or a command is at work on it.
    """
    run = RunDir(epath.Path(directory))
    if not run.begun():
        raise RequestError(f"{directory} is not a run")
    with run.locked():
        found = set_aside(run.root)
        if not found:
            return f"nothing is set aside in {directory}"
        for each in found:
            say(f"{amount(each.bytes, 'bytes'):>8}  {each.place}")
        size = amount(sum(each.bytes for each in found), "bytes")
        total = f"{counted(len(found), 'results')} of other knobs, {size}"
        answer = yes or confirmed(f"Remove {total}? With their knobs they would be made again.")
        if answer is None:
            return f"{total}; nothing was removed: say --yes to remove them"
        if not answer:
            return "nothing was removed"
        for each in found:
            files.remove(each.place)
        for home in {each.place.parent for each in found}:
            # an object store has no empty directories
            if home.exists() and not any(home.iterdir()):
                files.remove(home)
    return f"removed {total}"


def set_aside(root: epath.Path) -> list[Aside]:
    """All that is set aside below a run, in the order of its paths."""
    found: list[Aside] = []
    for home in sorted(_homes(root)):
        found += [Aside(place, _bytes(place)) for place in sorted(home.iterdir())]
    return found


def _homes(directory: epath.Path) -> list[epath.Path]:
    """The directories below one that hold what is set aside; none within another."""
    found: list[epath.Path] = []
    for path in directory.iterdir():
        if path.is_dir():
            found += [path] if path.name == SET_ASIDE else _homes(path)
    return found


def _bytes(place: epath.Path) -> int:
    if not place.is_dir():
        return int(place.stat().length)
    return sum(_bytes(each) for each in place.iterdir())
