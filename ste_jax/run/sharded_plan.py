"""What is there of a stage's rows, what is still to be done, and what would a start do with it?"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ste_jax.run import marks
from ste_jax.run.changes import Changes, counted
from ste_jax.run.sharded_work import ShardedWork, finished, in_tables, of_one, with_journal
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


def _survey(stage: ShardedWork, changed: bool, lenient: bool = False) -> _Survey:
    """Count what is there. `changed` says that it was made under another fingerprint. What cannot
    be read and is replaced then, or may be (`lenient`), is counted as such, and stops nothing."""
    found, home = _Survey(), marks.aside(stage.mark, stage.made_under)
    made_under = marks.marked(stage.mark) if changed else None
    moved = [dataclasses.replace(t, directory=home / t.directory.name) for t in stage.outputs]
    for number in range(stage.outputs[0].shards):
        try:
            wanted = {row.id for row in stage.inputs(number)}
        except WorkError:
            if not lenient:
                raise
            wanted, found.unreadable = set(), True
        try:
            done = stage.done(finished(stage, number, made_under))
        except WorkError:
            if not (changed or lenient):
                raise
            done, found.unreadable = set(), True
        aside = stage.done(in_tables(stage, number, stage.unwanted))
        if changed:
            back = in_tables(stage, number, moved)
            aside |= stage.done(with_journal(stage, number, back, home / stage.journal.name))
        returns = wanted & (aside if changed else aside - done)
        found.wanted, found.had = found.wanted + len(wanted), found.had + len(done)
        found.back, found.lost = found.back + len(returns), found.lost + len(done - wanted)
        found.again += len((wanted & done) - returns) if changed else 0
        found.missing += len(wanted - done - returns)
    return found


def _is_changed(stage: ShardedWork) -> bool:
    """Whether what is there was made under another fingerprint."""
    there = any(place.exists() for place in stage.places)
    return there and marks.marked(stage.mark) != stage.made_under


def foretell(stage: ShardedWork, changes: Changes) -> None:
    """Say what a start would do with the stage, in a dry pass."""
    changed, step, words = _is_changed(stage), stage.step, stage.words
    another = changes.follows_another(step)
    adding = next((title for title in reversed(step.takes) if title in changes.redone), "")
    found = _survey(stage, changed, lenient=bool(another))
    if adding and adding not in changes.others:
        found.lost = 0  # what they were made of may only be missing at the moment
    if found.made and (changed or another):
        if changed:
            what = _again(stage, found)
        elif step.asks in changes.others:
            what = f"{words.done(found.had)} again"
        else:  # of the rows some may come out as they are
            what = f"{words.rows} that change, of {found.had:,}, and new ones {words.verb}"
        back = ", or come back from what is set aside" if another and _has_set_aside(stage) else ""
        todo = None if another else found.again + found.missing
        there = marks.marked(stage.mark)
        changes.again(
            step, f"{what}{back}", there, stage.identity, by_model=stage.by_model, todo=todo
        )
    elif found.missing or found.lost:
        _foretell_few(stage, changes, found)
    elif not found.wanted and not all(table.complete() for table in stage.outputs):
        changes.first(step.title, f"{words.done()}, for the first time")
    elif adding:
        changes.redone.add(step.title)
        what = f"{words.rows} that {adding} adds {words.verb}"
        changes.plan(step.title, "goes on", what)
    else:
        changes.plan(step.title, "done")


def _foretell_few(stage: ShardedWork, changes: Changes, found: _Survey) -> None:
    """Say how many rows are added or set aside in a stage whose fingerprint has not changed."""
    title, words, todo = stage.step.title, stage.words, found.missing
    if not found.had:
        changes.first(title, f"{words.done(todo)}, for the first time", todo)
        return
    changes.redone.add(title)
    if todo:
        there = f"; {found.had - found.lost:,} of {found.wanted:,} are there"
        what = f"{words.done(todo, 'more ')}{there}{_goes(stage)}"
        changes.plan(title, "goes on", what, todo=todo)
    if found.lost:
        changes.others.add(title)
        what, where = _loses(stage, found.lost)
        changes.plan(title, "aside", f"{what}. {where}", why=what, asks=stage.by_model)


def _again(stage: ShardedWork, found: _Survey) -> str:
    """A sentence on what is done with the rows that were made under another fingerprint."""
    if found.again or found.unreadable:
        some = f"some {stage.words.done()}" if found.unreadable else stage.words.done(found.again)
        return f"{some} again{_goes(stage)}"
    return "what was set aside comes back" if found.back else "what was made is set aside"


def _say_few(stage: ShardedWork, changes: Changes, todo: int, lost: int) -> None:
    """Say what goes with rows that are added in a stage whose fingerprint has not changed, and
    which of its rows are set aside."""
    title, goes = stage.step.title, _goes(stage)
    if todo and goes:
        changes.say(title, f"{stage.words.done(todo, 'more ')}{goes}")
    if lost:
        changes.say(title, *_loses(stage, lost))


def _loses(stage: ShardedWork, lost: int) -> tuple[str, str]:
    """A sentence on rows that are no longer wanted, and one on where they will be."""
    words = stage.words
    they, them = ("it", "it") if lost == 1 else ("they", "them")
    where = marks.aside(stage.mark, stage.made_under) / "unwanted"
    what = (
        f"what was made of {counted(lost, words.rows)} is set aside, since {they} "
        f"{of_one(words.gone, lost)}{_goes(stage)}"
    )
    return what, f"It lies in {where}, and comes back with {them}"


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

    def announce(where: str) -> None:
        if found.made:
            changes.again(stage.step, _again(stage, found), there, stage.identity, where)

    marks.change_over(stage.mark, stage.places, stage.made_under, announce)
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
            _say_few(stage, changes, todo if had else 0, lost)
        for path in stage.derived:
            marks.forget(path)
    return todo_of


def kept(
    stage: ShardedWork, number: int, wanted: set[str]
) -> tuple[set[str], list[list[Any]], list[list[Any]]]:
    """The wanted inputs that have all their rows, there or set aside; these rows; and those rows
    that are there and are no longer wanted."""
    there = finished(stage, number)
    had = stage.done(there)
    done, lost = wanted & had, stage.of(had - wanted, there)
    rows = stage.of(done, there)
    if done != wanted:
        aside = in_tables(stage, number, stage.unwanted)
        back = (wanted - done) & stage.done(aside)
        rows = [one + other for one, other in zip(rows, stage.of(back, aside), strict=True)]
        done |= back
    return done, rows, lost
