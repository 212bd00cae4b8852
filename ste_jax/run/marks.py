"""Under which fingerprint was finished work made, and where does it go when that is another now?

A mark tells it, twice. Nothing finished is removed: what another fingerprint has made is moved
aside, below `set_aside`, and comes back with its fingerprint. Of what has lost its mark nobody
knows the fingerprint: it is moved as well, and comes back by hand.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence

from etils import epath

from ste_jax import __version__
from ste_jax.system import files


def mark(path: epath.Path, print_: str) -> None:
    """Remember the fingerprint of what is about to be made at `path`."""
    files.write_twice(path, {"fingerprint": print_, "ste_jax": __version__})


def marked(path: epath.Path) -> str:
    """The fingerprint remembered at `path`; empty if none is, or none that can be read."""
    found = files.read_twice(path)
    return "" if found is None else str(found.get("fingerprint", ""))


def aside(mark_: epath.Path, print_: str) -> epath.Path:
    """Where finished work lies that was made under another fingerprint than today's."""
    name = mark_.name.partition(".")[0]
    short = hashlib.blake2b(print_.encode(), digest_size=6).hexdigest() if print_ else "unknown"
    return mark_.parent / "set_aside" / f"{name}-{short}"


def change_over(mark_: epath.Path, places: Sequence[epath.Path], print_: str) -> None:
    """Make room for what is made under another fingerprint than what lies at `places`.

    What is there is moved aside, and what was once moved aside and was made under this one comes
    back. A kill anywhere leaves it where the next call finds it.
    """
    there = marked(mark_)
    if there != print_:
        put_aside(places, mark_, there)
        mark(mark_, print_)
    back = aside(mark_, print_)
    for place in places:
        if not place.exists() and (back / place.name).exists():
            files.move(back / place.name, place)


def put_aside(places: Sequence[epath.Path], mark_: epath.Path, print_: str) -> None:
    """Move finished work out of the way that was made under `print_` (empty: nobody knows), and
    say so. What lay there by that name is older."""
    moved = [place for place in places if place.exists()]
    if not moved:
        return
    where = aside(mark_, print_) if print_ else _unknown(mark_, moved)
    for place in moved:
        files.remove(where / place.name)
        files.move(place, where / place.name)
    if print_:
        told = (
            "since its knobs, its model or its version are others now; what was there lies in "
            f"{where}, and comes back with them"
        )
    else:
        told = (
            f"since {mark_} and its copy are lost, and with them what it was made under; what was "
            f"there lies in {where}: if that was under today's knobs, move it back in the place of "
            "what is made now"
        )
    warnings.warn(f"{moved[0]} is made anew, {told}", stacklevel=2)


def _unknown(mark_: epath.Path, moved: Sequence[epath.Path]) -> epath.Path:
    """A place below `set_aside` where none of what is moved lies yet."""
    first = aside(mark_, "")
    where, number = first, 1
    while any((where / place.name).exists() for place in moved):
        number += 1
        where = first.with_name(f"{first.name}-{number}")
    return where
