"""How does work say what it is doing?

`work` and `doing` are contexts for work that goes on, `steps` for the steps of a recipe; `found`,
`note`, `warn` and `error` are lines. `shown` is a whole command in which all of this is shown
(`display.py`).
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ste_jax.system import terminal
from ste_jax.system.display import WORTH_NAMING_S, Display, Form, Work, no_figures
from ste_jax.system.progress_lines import Figure

_display = Display(lambda: sys.stderr, time.monotonic)
terminal.aside = _display.aside


@contextlib.contextmanager
def work(
    title: str,
    total: int | None,
    unit: str = "rows",
    *,
    done: int = 0,
    figures: Callable[[], Sequence[Figure]] = no_figures,
) -> Iterator[Work]:
    """Show some work of which `total` parts are to be done, `done` of them already, while it goes
    on. The body counts. Work with nothing left to do is not shown.

    Args:
      unit: what the parts are, as `pairs`; `bytes` are shown as such.
      figures: gives more that is shown of it, asked from another thread.
    """
    made = Work(title, total, unit, done=done, figures=figures, now=_display.clock())
    if total is not None and done >= total:
        yield made
        return
    with _going_on(made):
        yield made


@contextlib.contextmanager
def doing(what: str) -> Iterator[None]:
    """Show that something goes on which has no parts to count, as `reading weights`."""
    with _going_on(Work(what, now=_display.clock())):
        yield


@contextlib.contextmanager
def steps(title: str, total: int) -> Iterator[Callable[[str], None]]:
    """Show which of `total` steps the work in the body is in; it calls what it is given with the
    name of each step before it."""
    number = itertools.count(1)

    def step(name: str) -> None:
        _display.step = next(number), total, name

    before, whole = _display.step, Work(title, now=_display.clock(), base=True)
    try:
        with _going_on(whole):
            yield step
            _display.done(whole)
    finally:
        _display.step = before


@contextlib.contextmanager
def _going_on(made: Work) -> Iterator[None]:
    failed = True
    _display.begin(made)
    try:
        yield
        failed = False
    finally:
        _display.end(made, failed=failed)


def compiling(program: str) -> None:
    """The program of this name is being compiled."""
    _display.compiling = program, _display.clock()


def compiled(seconds: float) -> None:
    """That program is compiled, after so many seconds."""
    _display.compiling = None
    if seconds > WORTH_NAMING_S:
        _display.compiled += 1
        _display.compile_seconds += seconds


def note(text: str) -> None:
    """Print a line that a person should see who watches."""
    if not _display.quiet:
        _display.say("note", text)


def found(title: str, figures: Sequence[Figure]) -> None:
    """Print what some work has found, as an accuracy. A figure without a text is for programs."""
    _display.found(title, figures)


def warn(text: str) -> None:
    """Print a line that a person should see in any case."""
    _display.say("warning", text)


def error(text: str, **fields: Any) -> None:
    """Print why a command ended. `fields` are for programs that read it."""
    _display.say("error", text, fields)


def banner(title: str, facts: Mapping[str, str]) -> None:
    """Print what begins, with a line for each fact about it."""
    if _display.quiet:
        return
    width = max(map(len, facts))
    lines = [title, *(f"  {name:{width}}  {fact}" for name, fact in facts.items())]
    if _display.form == "json":
        _display.say("run", title, facts)
    else:
        _display.say("run", "\n".join(lines))


@contextlib.contextmanager
def shown(title: str, *, quiet: bool = False, form: Form = "text") -> Iterator[None]:
    """Show what goes on in the body, which is a whole command, in this form; `quiet`: only warnings
    and errors. Warnings become lines of one sentence."""
    if _display.live:
        yield
        return
    _display.quiet, _display.form = quiet, form
    base, format_before = Work(title, now=_display.clock(), base=True), warnings.formatwarning
    warnings.formatwarning = _format_warning
    logged = _logged() if form == "json" else contextlib.nullcontext()
    try:
        with logged, _going_on(base), _display.watching():
            yield
    finally:
        warnings.formatwarning = format_before
        _display.quiet, _display.form = False, "text"


@contextlib.contextmanager
def _logged() -> Iterator[None]:
    """Print what libraries log in the body, a line each."""
    import logging  # which takes a while

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            _display.say("warning", record.getMessage(), {"logger": record.name})

    handler = Lines(logging.WARNING)
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)


def _format_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    where = "" if issubclass(category, UserWarning) else f" ({filename}:{lineno})"
    with _display.aside():  # Python prints what this returns
        return _display.fitted(_display.as_line("warning", f"warning: {message}{where}")) + "\n"
