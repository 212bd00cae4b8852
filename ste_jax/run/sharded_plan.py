"""What is there of a stage's rows, what is still to be done, and what would a start do with it?"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ste_jax.run import marks
from ste_jax.run.changes import Changes, counted
from ste_jax.run.sharded_work import ShardedWork, finished, of_one
from ste_jax.system.errors import WorkError


@dataclass
class _Survey:
    """How many inputs of a stage have their rows in its tables, and how many do not."""

    wanted: int = 0
    had: int = 0
    """Inputs that have all their rows."""
    back: int = 0
    """Wanted inputs whose rows were set aside under today's fingerprint: they come back."""
    again: int = 0
    """Wanted inputs whose rows were made under another fingerprint: they are made again."""
    missing: int = 0
    """Wanted inputs without rows, neither there nor set aside."""
    lost: int = 0
    """Inputs that have rows and are no longer wanted."""
    unreadable: bool = False
    """Whether rows of another fingerprint cannot be read; they are set aside as they are."""

    @property
    def made(self) -> bool:
        """Whether there is anything that was made."""
        return self.had > 0 or self.unreadable


def _survey(stage: ShardedWork, changed: bool) -> _Survey:
    """Count what is there. `changed` says that it was made under another fingerprint."""
    found, home = _Survey(), marks.aside(stage.mark, stage.made_under)
    moved = [dataclasses.replace(t, directory=home / t.directory.name) for t in stage.outputs]
    for number in range(stage.outputs[0].shards):
        wanted = {row.id for row in stage.inputs(number)}
        try:
            done = stage.done(finished(stage, number))
        except WorkError:
            if not changed:
                raise
            done, found.unreadable = set(), True
        aside = stage.done(finished(stage, number, stage.unwanted))
        if changed:
            aside |= stage.done(finished(stage, number, moved))
        back = wanted & (aside if changed else aside - done)
        found.wanted, found.had = found.wanted + len(wanted), found.had + len(done)
        found.back, found.lost = found.back + len(back), found.lost + len(done - wanted)
        found.again += len((wanted & done) - back) if changed else 0
        found.missing += len(wanted - done - back)
    return found


def _is_changed(stage: ShardedWork) -> bool:
    """Whether what is there was made under another fingerprint."""
    there = any(table.directory.exists() for table in stage.outputs)
    return there and marks.marked(stage.mark) != stage.made_under


def foretell(stage: ShardedWork, changes: Changes) -> None:
    """Say what a start would do with the stage, for a dry run."""
    changed, step, words = _is_changed(stage), stage.step, stage.words
    there, found = marks.marked(stage.mark), _survey(stage, changed)
    if found.made and (changed or changes.follows(step)):
        if changed:
            what = _again(stage, found)
        elif step.asks in changes.redone:
            what = f"{words.done(found.had)} again"
        else:  # of the rows some may come out as they are
            what = f"{words.rows} that change, of {found.had:,}, and new ones {words.verb}"
        unknown = changes.follows(step) and _has_set_aside(stage)
        back = ", or come back from what is set aside" if unknown else ""
        changes.again(step, f"{what}{back}", there, stage.identity)
    else:
        whole = all(table.complete() for table in stage.outputs)
        if not found.wanted and not whole:
            changes.redone.add(step.title)
            changes.say(step.title, f"{words.done()}, for the first time")
        _say_few(stage, changes, found.missing, found.lost, first=not found.made)


def _again(stage: ShardedWork, found: _Survey) -> str:
    """A sentence on what is done with the rows that were made under another fingerprint."""
    if found.again or found.unreadable:
        some = f"some {stage.words.done()}" if found.unreadable else stage.words.done(found.again)
        return f"{some} again{_goes(stage)}"
    return "what was set aside comes back" if found.back else "what was made is set aside"


def _say_few(stage: ShardedWork, changes: Changes, todo: int, lost: int, first: bool) -> None:
    """Say how many rows are added or set aside in a stage whose fingerprint has not changed."""
    title, words = stage.step.title, stage.words
    if todo or lost:
        changes.redone.add(title)
    goes = _goes(stage)
    if todo and first and changes.dry:
        changes.say(title, f"{words.done(todo)}, for the first time")
    elif todo and not first and (changes.dry or goes):
        changes.say(title, f"{words.done(todo, 'more ')}{goes}")
    if lost:
        they, them = ("it", "it") if lost == 1 else ("they", "them")
        where = marks.aside(stage.mark, stage.made_under)
        changes.say(
            title,
            f"what was made of {counted(lost, words.rows)} is set aside, since {they} "
            f"{of_one(words.gone, lost)}{goes}",
            f"It lies in {where / 'unwanted'}, and comes back with {them}",
        )


def _goes(stage: ShardedWork) -> str:
    """The end of a sentence, that what was made of the stage's rows goes; empty if there is none of
    it."""
    there = [path for path in stage.derived if path.exists()]
    if not there:
        return ""
    names = [f"the {path.name} set" for path in there if not path.suffix]
    names = names or [f"the {path.stem}" for path in there if path.name.count(".") == 1]
    what = " and ".join(names) or "what was made of them"
    of = f" of {stage.words.home}" if names and stage.words.home else ""
    return f", and {what}{of} {'go' if len(names) > 1 else 'goes'}"


def _has_set_aside(stage: ShardedWork) -> bool:
    home = marks.aside(stage.mark, "").parent
    return home.exists() and any(p.name.startswith(f"{stage.name}-") for p in home.iterdir())


def plan(stage: ShardedWork, changes: Changes) -> list[tuple[int, int]]:
    """List every shard that must be written, with how many rows are to be done. Process 0 only."""
    changed, there = _is_changed(stage), marks.marked(stage.mark)
    found = _survey(stage, True) if changed else _Survey()
    if found.wanted:
        stage.ready()
    places = [table.directory for table in stage.outputs]

    def announce(where: str) -> None:
        if found.made:
            changes.again(stage.step, _again(stage, found), there, stage.identity, where)

    marks.change_over(stage.mark, places, stage.made_under, announce)
    todo_of, had, lost = list[tuple[int, int]](), 0, 0
    for number in range(stage.outputs[0].shards):
        wanted = {row.id for row in stage.inputs(number)}
        done = stage.done(finished(stage, number))
        whole = all(table.done(number) for table in stage.outputs)
        had, lost = had + len(done), lost + len(done - wanted)
        if done != wanted or not whole:
            todo_of.append((number, len(wanted - kept(stage, number, wanted)[0])))
    if todo_of:
        changes.redone.add(stage.step.title)
        if not found.made:
            todo = sum(each for _, each in todo_of)
            _say_few(stage, changes, todo, lost, first=not had)
        for path in stage.derived:
            marks.forget(path)
    return todo_of


def kept(stage: ShardedWork, number: int, wanted: set[str]) -> tuple[set[str], list[list[Any]]]:
    """The wanted inputs that have all their rows, there or set aside, and these rows."""
    there = finished(stage, number)
    done = wanted & stage.done(there)
    rows = stage.of(done, there)
    if done != wanted:
        aside = finished(stage, number, stage.unwanted)
        back = (wanted - done) & stage.done(aside)
        rows = [one + other for one, other in zip(rows, stage.of(back, aside), strict=True)]
        done |= back
    return done, rows
