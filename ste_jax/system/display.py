"""What is going on in a command, and in which lines is it shown?

On a terminal, lines with bars are drawn below what was printed, and drawn again as the work goes
on; what has ended leaves a line. Elsewhere (a log file) there is a plain line when some work
begins, at least every 30 seconds while it goes on, and when it ends. What takes a second is not
worth a line. All of it goes to standard error, and only within
`progress.shown`: a program that calls a function of the package sees nothing of this.

A thread prints, so that work which is silent for long (a compilation) is seen to go on, and so that
what works need only count.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TextIO

from ste_jax.system import progress_lines, terminal
from ste_jax.system.progress_lines import Figure, State

HEARTBEAT_S = 30.0
"""After so many seconds without a line there is one."""
WORTH_A_LINE_S = 2.0
"""What goes on for so long is said to have begun; for the end of what is counted, half of it
suffices."""
WORTH_NAMING_S = 0.5
"""Programs that were compiled sooner, or read from the cache, are not counted."""
_TICK_S = 0.25
_WINDOW_S = 180.0
"""A rate is that of the last so many seconds."""

Form = Literal["text", "json"]


def no_figures() -> Sequence[Figure]:
    """The figures of work that has none."""
    return ()


class Work:
    """Some work that goes on: how far it is, and what is said of it."""

    def __init__(
        self,
        title: str,
        total: int | None = None,
        unit: str = "rows",
        *,
        done: int = 0,
        figures: Callable[[], Sequence[Figure]] = no_figures,
        now: float = 0.0,
        base: bool = False,
    ) -> None:
        self.title, self.total, self.unit, self.figures = title, total, unit, figures
        self.done = self.began_with = done
        self.begun, self.base = now, base
        self.said = False
        self.compiled_before = 0, 0.0
        self._seen = deque([(now, done)])

    def add(self, parts: int = 1) -> None:
        """So many more parts are done."""
        self.done += parts

    def at(self, done: int) -> None:
        """Part number `done` is done. The first such call says where the work goes on from, so that
        its rate is that of the new parts alone."""
        if self.done == self.began_with:
            self.began_with = done - 1
            self._seen = deque([(self._seen[-1][0], done - 1)])
        self.done = done

    def look(self, now: float) -> None:
        """Take note of how far it is."""
        if now - self._seen[-1][0] >= 1.0:
            self._seen.append((now, self.done))
            while len(self._seen) > 2 and now - self._seen[0][0] > _WINDOW_S:
                self._seen.popleft()

    def state(self, now: float, within: str = "") -> State:
        """How far it is."""
        since, had = self._seen[0]
        made, seconds = self.done - had, now - since
        return State(
            title=self.title,
            seconds=now - self.begun,
            done=self.done,
            total=self.total,
            unit=self.unit,
            rate=made / seconds if made > 0 and seconds > 0.5 else None,
            figures=tuple(self.figures()),
            within=within,
        )


class Display:
    """What is going on, and the lines that say so."""

    def __init__(self, stream: Callable[[], TextIO | None], clock: Callable[[], float]) -> None:
        self._stream, self.clock = stream, clock
        self.live = False
        """Whether what goes on is shown."""
        self.quiet = False
        """Whether only warnings and errors are shown."""
        self.form: Form = "text"
        self.compiling: tuple[str, float] | None = None
        """The program that is being compiled, and since when."""
        self.compiled, self.compile_seconds = 0, 0.0
        """How many programs took a while to compile, and how long."""
        self.step: tuple[int, int, str] | None = None
        """Which step of how many this is, and what it is called."""
        self._works: list[Work] = []
        self._lock = threading.RLock()  # what is printed while lines step aside takes it again
        self._drawn = 0
        self._spoke = clock()

    # -- what goes on -------------------------------------------------------------------------

    def begin(self, work: Work) -> None:
        """Some work begins."""
        with self._lock:
            self._works.append(work)
            self.compiling = None
            work.compiled_before = self.compiled, self.compile_seconds

    def end(self, work: Work, *, failed: bool) -> None:
        """Some work has ended, or was broken off."""
        with self._lock:
            self._works.remove(work)
            self.compiling = None
            now = self.clock()
            took, counted = now - work.begun, work.total is not None
            worth = took > WORTH_A_LINE_S or (counted and (failed or took > WORTH_A_LINE_S / 2))
            if worth and not work.base:
                state = self._with_compiling(work, work.state(now))
                room = self._width() if self.draws else math.inf
                text = progress_lines.ended(state, work.began_with, failed=failed, width=room)
                self._line("broken off" if failed else "end", text, progress_lines.fields(state))

    def found(self, title: str, figures: Sequence[Figure]) -> None:
        """Some work has found these figures."""
        text = ", ".join(figure.text for figure in figures if figure.text)
        values = {figure.name: figure.value for figure in figures}
        with self._lock:
            self._line("found", f"{title}: {text}", {"stage": title, **values})

    def done(self, whole: Work) -> None:
        """All of a command's work is done, after so long."""
        with self._lock:
            state = whole.state(self.clock())
            if state.seconds > WORTH_A_LINE_S:
                took = progress_lines.duration(state.seconds)
                self._line("end", f"{state.title}: done in {took}", progress_lines.fields(state))

    def tick(self) -> None:
        """Draw or say what goes on, if it is time to. The thread calls this."""
        with self._lock:
            now = self.clock()
            for work in self._works:
                work.look(now)
            if not self.live or self.quiet or not self._works:
                return
            if self.draws:
                self._erase()
                self._draw(now)
                return
            for work in self._works:
                if not (work.said or work.base) and now - work.begun > WORTH_A_LINE_S:
                    state = work.state(now)
                    if (state.seconds_left or math.inf) < WORTH_A_LINE_S:
                        continue  # the line of its end comes at once
                    work.said = True
                    self._line(
                        "begin",
                        progress_lines.begun(state, work.began_with),
                        progress_lines.fields(state),
                    )
            if now - self._spoke >= HEARTBEAT_S:
                state = self._current(now)
                self._line("progress", progress_lines.plain(state), progress_lines.fields(state))

    def say(self, kind: str, text: str, fields: Mapping[str, Any] | None = None) -> None:
        """Print something that is no progress: a note, a warning, an error. Work goes on where it
        cannot be printed, as on a full disk."""
        with contextlib.suppress(OSError, ValueError), self.aside():
            terminal.show(self.fitted(self.as_line(kind, text, fields)), self._stream())

    def as_line(self, kind: str, text: str, fields: Mapping[str, Any] | None = None) -> str:
        """A text as it is printed."""
        if self.form == "json":
            return self._json(kind, {"text": text, **(fields or {})})
        return text

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Take away what is drawn, so that something else can be printed; the next tick draws it
        again."""
        with self._lock:
            self._erase()
            yield

    # -- how it is shown ----------------------------------------------------------------------

    @property
    def draws(self) -> bool:
        """Whether lines are drawn on a terminal."""
        stream = self._stream()
        if self.form == "json" or stream is None or os.environ.get("TERM", "dumb") == "dumb":
            return False
        return not stream.closed and stream.isatty()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Show what goes on in the body."""
        done = threading.Event()

        def watch() -> None:
            while not done.wait(_TICK_S):
                self.tick()

        self.live, self._spoke = True, self.clock()
        thread = threading.Thread(target=watch, daemon=True, name="progress")
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            with self._lock:
                self._erase()
                self.live = False

    def _with_compiling(self, work: Work, state: State) -> State:
        """The state, with how many programs were compiled meanwhile."""
        before, seconds = work.compiled_before
        count, took = self.compiled - before, self.compile_seconds - seconds
        if not count:
            return state
        programs = progress_lines.amount(count, "programs")
        text = f"{progress_lines.duration(took)} of it compiling {programs}"
        more = Figure("compile_seconds", round(took, 1), text)
        return dataclasses.replace(state, figures=(more, *state.figures))

    def _counted(self) -> list[Work]:
        return [work for work in self._works if work.total is not None]

    def _within(self, now: float) -> str:
        """What the innermost counted work waits for."""
        if self.compiling is not None and now - self.compiling[1] > 1.0:
            name, since = self.compiling
            took = progress_lines.duration(round(now - since))
            return f"compiling program {self.compiled + 1} ({name}), {took}"
        last = self._works[-1]
        return last.title if last.total is None and now - last.begun > 1.0 else ""

    def _current(self, now: float) -> State:
        """What a line says that is about all that goes on."""
        counted, within = self._counted(), self._within(now)
        if counted:
            return counted[-1].state(now, within)
        state = self._works[-1].state(now)
        if self._works[-1].base and self.step:
            return State(title=f"{state.title}, {self.step[2]}", seconds=state.seconds)
        if not within or within == state.title:
            return state
        return State(title=f"{state.title}, {within}", seconds=state.seconds)

    def _draw(self, now: float) -> None:
        width, within = self._width(), self._within(now)
        counted = self._counted()
        states = [work.state(now, within if work is counted[-1] else "") for work in counted]
        last = self._works[-1]
        # of a command that has nothing to show nothing is drawn: it may be asking something
        if not counted and now - last.begun > 1.0 and not last.base:
            states = [self._current(now)]
        lines = [progress_lines.drawn(state, width) for state in states]
        if self.step is not None:
            lines.append(progress_lines.cut(self._overall(now, *self.step), width))
        if lines:
            self._put("\n".join(terminal.harmless(line) for line in lines))
            self._drawn = len(lines)

    def _overall(self, now: float, number: int, of: int, name: str) -> str:
        base = [work for work in self._works if work.base][-1]
        took = progress_lines.duration(now - base.begun)
        return f"{base.title}: step {number} of {of} ({name}), {took} since the start"

    def _width(self) -> int:
        # in the last column a terminal may begin a new line
        return (terminal.width(self._stream()) or 80) - 1

    def fitted(self, text: str) -> str:
        """A text with its lines broken between words, on a terminal that is narrower."""
        if self.form == "json":
            return text
        return terminal.fitted(text, terminal.width(self._stream()))

    def _erase(self) -> None:
        if self._drawn:
            up = f"\x1b[{self._drawn - 1}A" if self._drawn > 1 else ""
            self._put(f"\r{up}\x1b[J")
            self._drawn = 0

    def _line(self, kind: str, text: str, fields: Mapping[str, Any]) -> None:
        """Print a line of progress."""
        self._spoke = self.clock()
        if not self.live or self.quiet:
            return
        self._erase()
        if self.form == "json":
            self._write(self._json(kind, fields))
        elif self.draws:
            self._write(self.fitted(terminal.harmless(text)))
        else:
            where = "[{}/{}] ".format(*self.step[:2]) if self.step else ""
            self._write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {where}{terminal.harmless(text)}")

    def _json(self, kind: str, fields: Mapping[str, Any]) -> str:
        steps: dict[str, Any] = {}
        if self.step:
            steps = dict(zip(("step", "steps", "step_name"), self.step, strict=True))
        when = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        return json.dumps({"time": when, "kind": kind, **steps, **fields})

    def _write(self, line: str) -> None:
        self._put(f"{line}\n")

    def _put(self, text: str) -> None:
        stream = self._stream()
        if stream is None:
            return
        encoding = stream.encoding or "utf-8"
        with contextlib.suppress(OSError, ValueError):  # closed, or nobody reads: work goes on
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            stream.flush()
