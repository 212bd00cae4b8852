"""Which parts of a run are made again, and why?

No finished work is set aside without a line that says so. A dry pass says beforehand what a start
would do: the steps then call this module, which keeps what each would do, instead of working. What
is made of that is in `ste_jax.run.plan`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ste_jax.config.identity import Identity
from ste_jax.run import marks
from ste_jax.system import progress

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


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What a start would do with a step."""

    title: str
    fate: Literal["done", "goes on", "first", "again", "aside"]
    """Whether its output is there, is completed, is made for the first time, is made again, or is
    only set aside."""
    what: str = ""
    """A sentence about it; empty of what is done."""
    why: str = ""
    """Why it is made again, where that lies in the step itself and not in one before it."""
    asks: bool = False
    """Whether what a model has made is, or may be, set aside for it."""
    todo: int | None = None
    """How many rows are to be made; None if that is not known."""

    @property
    def line(self) -> str:
        """The step and the sentence about it."""
        return f"{self.title}: {self.what}"


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
    """Whether this is a dry pass: nothing is done, and every step says what it would do."""
    log: Callable[..., None] = _nowhere
    """Called with an event for each thing that is made again."""
    redone: set[str] = field(default_factory=set)
    """The titles of the steps that make something at this start."""
    others: set[str] = field(default_factory=set)
    """Those of them whose output may be another than it was, since more has changed than that rows
    are missing."""
    planned: list[Planned] = field(default_factory=list)
    """In a dry pass: what a start would do with each step."""

    def why(self, step: RecipeStep, there: Identity, now: Identity) -> str:
        """Why what was made under `there` is made again."""
        if there == marks.BEING_WRITTEN:
            return "it was stopped while it was being written"
        if not there:
            return "its mark is lost, and with it what it was made under"
        old, new = there.made_of, now.made_of
        reasons = self._changed(there, now)
        follows = self.follows_another(step) if self.dry else self.follows(step)
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

    def _changed(self, there: Identity, now: Identity) -> list[str]:
        """The knobs that are others now, in one sentence, if any are."""
        old, new = there.made_of, now.made_of
        before = old["knobs"] if old else knobs_in(self.before, new.get("knobs", {}))
        return _knobs(before, new.get("knobs", {})) if there != now else []

    def follows(self, step: RecipeStep, among: Collection[str] | None = None) -> str:
        """The title of a step that makes something at this start (or is `among` these) and that
        `step` depends on; empty if there is none."""
        titles = self.redone if among is None else among
        found = [title for title in (*step.takes, step.asks) if title in titles]
        return found[-1] if found else ""

    def follows_another(self, step: RecipeStep) -> str:
        """The title of a step whose output may be another than it was and that `step` depends on;
        empty if there is none."""
        return self.follows(step, self.others)

    def again(
        self,
        step: RecipeStep,
        what: str,
        there: Identity,
        now: Identity,
        where: str = "",
        *,
        by_model: bool = True,
        todo: int | None = None,
    ) -> None:
        """Say that something of a step is made again, and why: `what` is all before the reason.
        `where` is a sentence about what was there, which was made `by_model` or costs little."""
        why = self.why(step, there, now)
        self.redone.add(step.title)
        self.others.add(step.title)
        if self.dry:
            own = ", ".join(self._changed(there, now)) if self.follows_another(step) else why
            line = f"{what}, since {why}"
            self.plan(step.title, "again", line, why=own, asks=by_model, todo=todo)
        else:
            self.say(step.title, f"{what}, since {why}", where)

    def foretell(
        self,
        step: RecipeStep,
        what: str,
        there: Identity,
        now: Identity,
        had: bool,
        *,
        by_model: bool = True,
    ) -> None:
        """Say what a start would do with a step that is made as a whole, of which all is there that
        it makes if it `had` been made."""
        follows, differs = self.follows(step), self._differs(step, there, now)
        if not had:
            if there and differs:
                self.others.add(step.title)
            self.first(step.title, f"{what}, for the first time")
        elif differs or self.follows_another(step):
            self.again(step, f"{what} again", there, now, by_model=by_model)
        elif follows:
            self.redone.add(step.title)
            self.plan(step.title, "goes on", f"{what} again if {follows} changes it")
        else:
            self.plan(step.title, "done")

    def _differs(self, step: RecipeStep, there: Identity, now: Identity) -> bool:
        """Whether something was made otherwise than it would be now, beyond that rows that it was
        made of are missing at the moment, and are only completed."""
        if there == now or not there or there == marks.BEING_WRITTEN:
            return there != now
        if self.follows_another(step) or not self.follows(step):
            return True
        old, new = there.made_of, now.made_of
        if self._changed(there, now):
            return True
        return any(old.get(name) != new.get(name) for name in ("version", "model") if old)

    def first(self, title: str, what: str, todo: int | None = None) -> None:
        """Say, in a dry pass, that a step is made for the first time."""
        self.redone.add(title)
        self.plan(title, "first", what, todo=todo)

    def plan(
        self,
        title: str,
        fate: Literal["done", "goes on", "first", "again", "aside"],
        what: str = "",
        *,
        why: str = "",
        asks: bool = False,
        todo: int | None = None,
    ) -> None:
        """Keep what a start would do with a step (see `Planned`)."""
        made = Planned(title=title, fate=fate, what=what, why=why, asks=asks, todo=todo)
        self.planned.append(made)

    def say(self, title: str, what: str, where: str = "") -> None:
        """Say in one line what is done with the step of this title: on standard error, and as an
        event of the run."""
        line = f"{title}: {what}" + (f". {where}" if where else "")
        progress.note(line)
        self.log("made_again", step=title, line=line)


def knobs_in(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The values of knobs, by their names in marks, in a config as plain values; none of what it
    does not hold. What has a name by iteration is empty where the config names nothing."""
    found: dict[str, Any] = {}
    for name in names:
        value: Any = config
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
    return f"{name} was {shown(old)} and is {shown(new)}"


def shown(value: Any) -> str:
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
