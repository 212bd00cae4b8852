"""Under which fingerprint was finished work made, and where does it go when that is another now?

A mark holds the fingerprint, in two copies, and what that was made of. It is called
`NAME.mark.json`; marks of earlier versions, called `NAME.json`, are read as well. Nothing finished
is removed: work of another fingerprint is moved aside, below `set_aside`, and comes back when its
fingerprint does. Work that has lost its mark is moved, too, and can be put back by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from ste_jax.config.identity import Identity
from ste_jax.run.tables import Table
from ste_jax.system import files, hashing
from ste_jax.system.version import __version__

_SUFFIX = ".mark.json"
SET_ASIDE = "set_aside"
"""The name of the directories for finished work that does not fit the knobs of today."""
BEING_WRITTEN = "being written"
"""The mark of a table that is being written: after a kill its new and old shards are mixed."""


def mark(path: epath.Path, made_under: str) -> None:
    """Remember the fingerprint of what is about to be made at `path`."""
    made_of = made_under.made_of if isinstance(made_under, Identity) else {}
    origin = {"made_of": dict(made_of)} if made_of else {}
    files.write_twice(path, {"fingerprint": made_under, "ste_jax": __version__, **origin})
    if _is_mark(_earlier(path)):
        files.forget(_earlier(path))


def marked(path: epath.Path) -> Identity:
    """The fingerprint remembered at `path`; empty if none is, or none that can be read."""
    for place in (path, _earlier(path)):
        found = files.read_twice(place)
        if found is not None and "fingerprint" in found:
            return Identity(str(found["fingerprint"]), found.get("made_of"))
    return Identity("")


def forget(path: epath.Path) -> None:
    """Remove the mark at `path`, whichever name it has, or the file at `path` if it is no mark."""
    files.forget(path)
    if path.name.endswith(_SUFFIX) and _is_mark(_earlier(path)):
        files.forget(_earlier(path))


def is_done(
    path: epath.Path,
    made_under: str,
    tables: Sequence[Table[Any]] = (),
    outputs: Sequence[epath.Path] = (),
) -> bool:
    """Whether finished work is there, whole, and was made under a fingerprint."""
    whole = all(table.complete() for table in tables)
    return marked(path) == made_under and whole and all(output.exists() for output in outputs)


def _earlier(path: epath.Path) -> epath.Path:
    """The name that earlier versions gave to a mark."""
    assert path.name.endswith(_SUFFIX), f"{path} is no name of a mark"
    return path.with_name(f"{path.name.removesuffix(_SUFFIX)}.json")


def _is_mark(path: epath.Path) -> bool:
    """Whether the file is a mark, and not an output of that name."""
    found = files.read_twice(path)
    return found is not None and "fingerprint" in found


def aside(mark_: epath.Path, made_under: str) -> epath.Path:
    """The directory for finished work that was made under another fingerprint than today's."""
    name = mark_.name.partition(".")[0]
    short = hashing.hex_digest(made_under, 6) if made_under else "unknown"
    return mark_.parent / SET_ASIDE / f"{name}-{short}"


def change_over(
    mark_: epath.Path,
    places: Sequence[epath.Path],
    made_under: str,
    announce: Callable[[str], object] = lambda where: None,
) -> None:
    """Move work at `places` aside if it was made under another fingerprint, and bring back work of
    today's fingerprint that was once moved aside.

    See `put_aside`. After a kill at any point, the next call finds the work and goes on.
    """
    there = marked(mark_)
    if there != made_under:
        put_aside(places, mark_, there, announce)
        mark(mark_, made_under)
    back = aside(mark_, made_under)
    for place in places:
        if not place.exists() and (back / place.name).exists():
            files.move(back / place.name, place)


def put_aside(
    places: Sequence[epath.Path],
    mark_: epath.Path,
    made_under: str,
    announce: Callable[[str], object] = lambda where: None,
) -> None:
    """Move finished work out of the way that was made under `made_under` (empty: nobody knows).

    If there is any, `announce` gets a sentence first: where it will be. What was there by that
    name is older.
    """
    moved = [place for place in places if place.exists()]
    if not moved:
        return
    where = aside(mark_, made_under) if made_under else _unknown(mark_, moved)
    if made_under:
        announce(f"What was there lies in {where}, and is used again with the same knobs")
    else:
        announce(
            f"What was there lies in {where}; if it was made under today's knobs, move it back in "
            "the place of what is made now"
        )
    for place in moved:
        files.remove(where / place.name)
        files.move(place, where / place.name)


def _unknown(mark_: epath.Path, moved: Sequence[epath.Path]) -> epath.Path:
    """A place below `set_aside` that is free for all that is moved."""
    first = aside(mark_, "")
    where, number = first, 1
    while any((where / place.name).exists() for place in moved):
        number += 1
        where = first.with_name(f"{first.name}-{number}")
    return where
