"""Which parts of a run are made again, and why?

No finished work is set aside without a line that says so. `ste run --dry-run` prints the same lines
beforehand: the steps then call this module instead of working.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ste_jax.config.identity import Identity
from ste_jax.run import marks
from ste_jax.system.terminal import show

_NAMED = 3
"""How many changed knobs are named, at the most."""
_SHOWN = 60
"""How many characters of a value are shown, at the most."""
DESCRIBED = "the "
"""The beginning of names, among knobs, of hashes of other things that decide a result."""
TEXT_OF = f"{DESCRIBED}text of "
"""The beginning of names of hashes of texts that a knob names."""


@dataclass(frozen=True, kw_only=True)
class RecipeStep:
    """What messages call a step of the pipeline, and what its output is made of."""

    title: str
    takes: Sequence[str] = ()
    """The titles of the steps whose rows it works on, the nearest last."""
    asks: str = ""
    """The title of the step that made the model that this step asks."""
    model: str = "the model"
    """What messages call that model."""
    inputs: str = "what it is made of"


def counted(number: int, rows: str, more: str = "") -> str:
    """A number of rows in words: `1 pair`, `2 pairs`, `1 more pair`."""
    return f"{number:,} {more}{rows.removesuffix('s') if number == 1 else rows}"


def _nowhere(event: str, **values: Any) -> None:
    pass


@dataclass
class Changes:
    """What has changed in a run since it was last worked on."""

    before: Mapping[str, Any] = field(default_factory=dict)
    """The run's config before this start, as plain values, since marks of earlier versions do not
    hold what they were made of."""
    dry: bool = False
    """Whether this is a dry run: nothing is done, and every step says what it would do."""
    silent: bool = False
    log: Callable[..., None] = _nowhere
    """Called with an event for each thing that is made again."""
    lines: int = 0
    """How many lines were said."""
    redone: set[str] = field(default_factory=set)
    """The titles of the steps that make something again at this start."""

    def why(self, step: RecipeStep, there: Identity, now: Identity) -> str:
        """Why what was made under `there` is made again."""
        if there == marks.BEING_WRITTEN:
            return "it was stopped while it was being written"
        if not there:
            return "its mark is lost, and with it what it was made under"
        old, new = there.made_of, now.made_of
        before = old["knobs"] if old else self._before(new)
        reasons = _knobs(before, new.get("knobs", {})) if there != now else []
        follows = self.follows(step)
        if follows:
            reasons.append(f"{follows} is made again")
        if old and old.get("version") != new.get("version"):
            reasons.append("this version makes it otherwise")
        if old and step.asks not in self.redone and not _names_generator(reasons):
            reasons += _asked(step, str(old.get("model", "")), str(new.get("model", "")))
        if old and not self.redone & set(step.takes) and old.get("inputs") != new.get("inputs"):
            reasons.append(f"{step.inputs} has changed")
        found = ", and ".join(dict.fromkeys(reasons))
        return found or "its knobs, its inputs, its model or its version are others now"

    def follows(self, step: RecipeStep) -> str:
        """The title of a step that is made again at this start and that `step` depends on; empty if
        there is none."""
        found = [title for title in (*step.takes, step.asks) if title in self.redone]
        return found[-1] if found else ""

    def again(
        self, step: RecipeStep, what: str, there: Identity, now: Identity, where: str = ""
    ) -> None:
        """Say that something of a step is made again, and why: `what` is all before the reason.
        `where` is a sentence about what was there."""
        why = self.why(step, there, now)
        self.redone.add(step.title)
        self.say(step.title, f"{what}, since {why}", where)

    def foretell(
        self, step: RecipeStep, what: str, there: Identity, now: Identity, had: bool
    ) -> None:
        """Say what a start would do with a step that is made as a whole, of which all is there that
        it makes if it `had` been made."""
        if not had:
            self.redone.add(step.title)
            self.say(step.title, f"{what}, for the first time")
        elif there != now or self.follows(step):
            self.again(step, f"{what} again", there, now)

    def say(self, title: str, what: str, where: str = "") -> None:
        """Say in one line what is done with the step of this title: in a dry run on standard
        output, else on standard error and as an event of the run."""
        line = f"{title}: {what}" + (f". {where}" if where else "")
        self.lines += 1
        if self.silent:
            return
        show(line, sys.stdout if self.dry else sys.stderr)
        if not self.dry:
            self.log("made_again", step=title, line=line)

    def _before(self, new: Mapping[str, Any]) -> dict[str, Any]:
        """The values that today's knobs had in the config before this start. What has a name by
        iteration is empty where it named nothing."""
        found: dict[str, Any] = {}
        for name in new.get("knobs", {}):
            value: Any = self.before
            for word in name.split("."):
                usual = "" if word.isdigit() else _MISSING
                value = value.get(word, usual) if isinstance(value, Mapping) else _MISSING
            if value is not _MISSING:
                found[name] = value
        return found


_MISSING = object()


def _knobs(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    both = {name: (old[name], value) for name, value in new.items() if name in old}
    others = {name: each for name, each in both.items() if each[0] != each[1]}
    changed = [
        _change(name, *each)
        for name, each in others.items()
        if name.removeprefix(TEXT_OF) == name or name.removeprefix(TEXT_OF) not in others
    ]
    if len(changed) > _NAMED:
        return [f"{', '.join(changed[:_NAMED])} and {len(changed) - _NAMED} more"]
    return [", ".join(changed)] if changed else []


def _change(name: str, old: Any, new: Any) -> str:
    if name.startswith(DESCRIBED):
        return f"{name} has changed"
    return f"{name} was {_shown(old)} and is {_shown(new)}"


def _shown(value: Any) -> str:
    """A value in one short line."""
    if value is None:
        return "none"
    if value in ("", [], {}):
        return "empty"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


_ENDPOINT = "endpoint/"


def _names_generator(reasons: Sequence[str]) -> bool:
    """Whether a reason says already that another model is asked."""
    return any(".generator" in each for each in reasons)


def _asked(step: RecipeStep, old: str, new: str) -> list[str]:
    """The reason that another model is asked now, if one is. The types in which a checkpoint is
    asked are knobs, and so not named here."""
    if old.startswith(_ENDPOINT) or new.startswith(_ENDPOINT):
        names = [
            f"{each.removeprefix(_ENDPOINT)} behind an endpoint"
            if each.startswith(_ENDPOINT)
            else step.model
            for each in (new, old)
        ]
        return [f"{names[0]} is asked, and not {names[1]}"] if old != new else []
    same = old.partition("/")[0] == new.partition("/")[0]
    return [] if same else [f"{step.model} is another now"]
