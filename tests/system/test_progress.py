"""What goes on is shown: in lines that fit a terminal, or in plain ones every 30 seconds."""

from __future__ import annotations

import io
import json
import logging
import math
import os
import pty
import re
import select
import subprocess
import sys
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ste_jax.system import display as display_module
from ste_jax.system import progress
from ste_jax.system.display import Display, Work
from ste_jax.system.progress_lines import (
    Figure,
    State,
    begun,
    columns,
    drawn,
    duration,
    ended,
    fields,
    plain,
)


def state(**more: Any) -> State:
    usual: dict[str, Any] = {"title": "annotate 2 of 4", "seconds": 164.0, "unit": "prompts"}
    return State(**(usual | {"done": 512, "total": 1004, "rate": 3.1} | more))


SPEED = Figure("tokens_per_second", 1240.0, "1,240 tokens/s")


def test_the_line_of_a_stage():
    line = "annotate 2 of 4  [##########          ]  512/1,004 prompts  2:39 left  3.1/s"
    assert drawn(state(), 80) == line
    assert drawn(state(figures=[SPEED]), 120) == f"{line}  1,240 tokens/s"
    narrow = "annotate 2 of 4  [#####      ]  512/1,004 prompts  2:39 left"
    assert drawn(state(figures=[SPEED]), 60) == narrow


def test_the_plain_line_has_all():
    words = "annotate 2 of 4: 512 of 1,004 prompts (51%), 3.1/s, 1,240 tokens/s, 2:39 left"
    assert plain(state(figures=[SPEED])) == words
    waiting = state(done=0, rate=0.1, seconds=35.0, within="compiling program 3 (decode), 12 s")
    assert plain(waiting).endswith("0.10/s, compiling program 3 (decode), 12 s, 35 s so far")


def test_lines_of_the_beginning_and_the_end():
    assert begun(state(done=0)) == "annotate 2 of 4: 1,004 prompts to do"
    resumed = "annotate 2 of 4: 1 prompt to do, 1,003 of 1,004 are there"
    assert begun(state(done=1003), began_with=1003) == resumed
    whole = state(done=1004, figures=[SPEED])
    assert ended(whole) == "annotate 2 of 4: 1,004 prompts in 2:44, 6.1/s, 1,240 tokens/s"
    assert ended(whole, began_with=1003).startswith("annotate 2 of 4: 1 prompt in 2:44, ")
    narrow = "annotate 2 of 4: 1,004 prompts in 2:44, 6.1/s"
    assert ended(whole, width=60) == narrow
    broken = "annotate 2 of 4: broken off at 512 of 1,004 prompts after 2:44"
    assert ended(state(), failed=True) == broken


def test_the_same_for_programs():
    found = fields(state(figures=[SPEED]))
    assert found == {
        "stage": "annotate 2 of 4",
        "seconds": 164.0,
        "done": 512,
        "of": 1004,
        "unit": "prompts",
        "per_second": 3.1,
        "seconds_left": 159,
        "tokens_per_second": 1240.0,
    }


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.42, "0.42 s"), (3.0, "3 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1:00"), (160, "2:40"),
     (3599.7, "1:00:00"), (18160, "5:02:40"), (97200, "1 d 3 h")],
)  # fmt: skip
def test_durations(seconds, text):
    assert duration(seconds) == text


NAMES = st.text(
    st.characters(exclude_categories=("Cc", "Cf", "Cs", "Zl", "Zp", "Mn", "Me")), max_size=120
)


@given(NAMES, st.integers(0, 10**12), st.integers(0, 10**12), st.integers(1, 250), NAMES,
       st.sampled_from(["prompts", "bytes"]), st.none() | st.floats(1e-6, 1e9))  # fmt: skip
def test_a_line_never_takes_more_than_the_width(title, one, other, width, within, unit, rate):
    done, total = sorted((one, other))
    given = state(title=title, done=done, total=total, unit=unit, rate=rate, within=within)
    line = drawn(given, width)
    assert columns(line) <= width and "\n" not in line
    assert columns(drawn(State(title=title, seconds=1.0), width)) <= width


class Screen(io.StringIO):
    """A terminal that is written to, or a file."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal

    def lines(self) -> list[str]:
        """What is to be read on it; of plain lines without the time."""
        shown: list[str] = [""]
        for part in re.split(r"(\n|\r(?:\x1b\[\d+A)?\x1b\[J)", self.getvalue()):
            up = re.fullmatch(r"\r(?:\x1b\[(\d+)A)?\x1b\[J", part)
            if up:
                del shown[len(shown) - 1 - int(up[1] or 0) :]
                shown.append("")
            elif part == "\n":
                shown.append("")
            else:
                shown[-1] += part
        return [re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", "", line) for line in shown]


class Bench:
    """A display whose time is set by hand."""

    def __init__(self, terminal: bool) -> None:
        self.now, self.screen = 0.0, Screen(terminal)
        self.display = Display(lambda: self.screen, lambda: self.now)
        self.display.live = True

    def begin(self, title: str, total: int | None = None, **more: Any) -> Work:
        work = Work(title, total, "prompts", now=self.now, **more)
        self.display.begin(work)
        return work

    def wait(self, seconds: float) -> None:
        """Time passes, and the thread looks four times a second."""
        for _ in range(math.ceil(4 * seconds)):
            self.now += 0.25
            self.display.tick()


@pytest.fixture(params=[False, True])
def bench(request, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    return Bench(request.param)


@pytest.fixture
def log(monkeypatch):
    return Bench(terminal=False)


def test_a_log_has_a_line_at_least_every_thirty_seconds_and_no_carriage_return(log):
    log.display.step = 3, 14, "pair"
    work = log.begin("annotate 1 of 3", 100)
    for _ in range(12):
        log.wait(10)
        work.add(5)
    log.wait(300)  # it hangs
    work.add(40)
    log.display.end(work, failed=False)
    lines = log.screen.lines()[:-1]
    assert lines[0] == "[3/14] annotate 1 of 3: 100 prompts to do"
    assert lines[1] == "[3/14] annotate 1 of 3: 15 of 100 prompts (15%), 0.47/s, 3:03 left"
    assert lines[-1] == "[3/14] annotate 1 of 3: 100 prompts in 7:00, 0.24/s"
    assert len(lines) == 2 + (420 - 3) // 30
    assert "\r" not in log.screen.getvalue() and "\x1b" not in log.screen.getvalue()


def test_what_is_short_has_its_end_alone_or_no_line(log):
    for seconds in (0.5, 1.5):
        work = log.begin("label", 100)
        log.wait(seconds)
        work.add(100)
        log.display.end(work, failed=False)
    work = log.begin("reading the weights of pico")
    log.wait(1.5)
    log.display.end(work, failed=False)
    assert log.screen.lines() == ["label: 100 prompts in 1.5 s, 66.7/s", ""]


def test_what_is_about_to_end_is_not_said_to_begin(log):
    work = log.begin("import pico", 100)
    for _ in range(3):
        log.wait(1)
        work.add(33)
    log.display.end(work, failed=False)
    assert log.screen.lines() == ["import pico: 99 prompts in 3 s, 33.0/s", ""]


def test_what_was_found_is_a_line_without_the_figures_for_programs(log):
    figures = [Figure("kept", 3, "3 of 4 kept"), Figure("of", 4, ""), Figure("more", 1, "1 more")]
    log.display.found("curate", figures)
    log.display.form = "json"
    log.display.found("curate", figures)
    text, values, _ = log.screen.lines()
    assert text == "curate: 3 of 4 kept, 1 more"
    found = {"kind": "found", "stage": "curate", "kept": 3, "of": 4, "more": 1}
    assert found.items() <= json.loads(values).items()


def test_what_is_long_and_counts_nothing_is_said(log):
    work = log.begin("reading the weights of pico")
    log.wait(70)
    log.display.end(work, failed=False)
    title = "reading the weights of pico"
    assert log.screen.lines() == [title, f"{title}: 32 s so far", f"{title}: 1:02 so far",
                                  f"{title}: 1:10", ""]  # fmt: skip


def test_a_compilation_is_named(log):
    work = log.begin("annotate 1 of 3", 100)
    log.wait(3)
    log.display.compiling = "decode", log.now
    log.wait(30)
    line = "annotate 1 of 3: 0 of 100 prompts (0%), compiling program 1 (decode), 29 s, 32 s so far"
    assert log.screen.lines()[1] == line
    log.display.compiled, log.display.compile_seconds = 1, 30.0
    work.add(100)
    log.display.end(work, failed=False)
    assert log.screen.lines()[-2].endswith(
        "100 prompts in 33 s, 3.0/s, 30 s of it compiling 1 program"
    )


def test_the_command_itself_is_never_silent(log):
    log.begin("run", base=True)
    log.wait(61)
    log.display.step = 2, 14, "select"
    log.wait(30)
    assert log.screen.lines() == [
        "run: 30 s so far",
        "run: 1:00 so far",
        "[2/14] run, select: 1:30 so far",
        "",
    ]


def test_a_terminal_shows_what_goes_on_and_keeps_what_ended(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    bench = Bench(terminal=True)
    bench.begin("run pico", base=True)
    bench.display.step = 2, 14, "select"
    work = bench.begin("label", 50)
    bench.wait(5)
    work.add(10)
    bench.wait(5)
    assert bench.screen.lines() == [
        "label  [####                ]  10/50 prompts  40 s left  1.0/s",
        "run pico: step 2 of 14 (select), 10 s since the start",
    ]
    bench.display.say("note", "something of interest")
    work.add(40)
    bench.display.end(work, failed=False)
    bench.display.step = 3, 14, "pair"
    bench.begin("pair", 4)
    bench.wait(0.25)
    assert bench.screen.lines() == [
        "something of interest",
        "label: 50 prompts in 10 s, 5.0/s",
        "pair  [                    ]  0/4 prompts",
        "run pico: step 3 of 14 (pair), 10 s since the start",
    ]


def test_a_resumed_trainings_rate_is_that_of_its_new_steps(bench):
    work = bench.begin("sft 1", 10_000)
    bench.now += 10
    for step in range(8_001, 8_021):
        work.at(step)
    found = work.state(bench.now)
    assert (found.done, found.rate) == (8_020, 2.0)
    bench.display.end(work, failed=False)
    assert "sft 1: 20 prompts in 10 s, 2.0/s" in bench.screen.lines()


def test_a_rate_is_that_of_the_last_minutes(log):
    work = log.begin("annotate", 10_000)
    log.wait(3600)
    for _ in range(2 * int(display_module._WINDOW_S)):
        work.add(2)
        log.wait(1)
    rate = work.state(log.now).rate
    assert rate is not None and 1.9 < rate < 2.1


def test_a_text_from_outside_moves_no_cursor(bench):
    work = bench.begin("import \x1b[2Jmine", 10)
    bench.wait(3)
    work.add(10)
    bench.display.end(work, failed=False)
    assert "\x1b[2J" not in bench.screen.getvalue() and "\\u001b[2Jmine" in bench.screen.getvalue()


def test_a_stream_that_is_gone_ends_no_work(log):
    log.screen.close()
    work = log.begin("annotate", 10)
    log.wait(40)
    log.display.end(work, failed=False)


def test_objects_a_line(capsys):
    with progress.shown("run", form="json"):
        progress.note("a note")
        logging.getLogger("library").warning("that is %s", "odd")
        progress.banner("run pico", {"seed": "pico"})
        with progress.steps("run pico", 2) as step:
            step("select")
            with progress.work("label", 3, "prompts") as work:
                time.sleep(1.1)
                work.add(3)
        progress.error("ste: no", status=2)
    found = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    kinds = ["note", "warning", "run", "end", "error"]
    assert [each["kind"] for each in found] == kinds
    assert (found[1]["text"], found[1]["logger"]) == ("that is odd", "library")
    assert found[3]["stage"] == "label" and (found[3]["step"], found[3]["steps"]) == (1, 2)
    assert found[4]["status"] == 2


def test_quiet_leaves_warnings_and_errors(capsys):
    with progress.shown("run", quiet=True):
        progress.note("a note")
        progress.banner("run pico", {"seed": "pico"})
        progress.warn("careful")
        with progress.work("label", 3, "prompts") as work:
            time.sleep(1.1)
            work.add(3)
        progress.error("ste: no")
    assert capsys.readouterr().err.splitlines() == ["careful", "ste: no"]


WARNING = """
import warnings
from ste_jax.system import progress
with progress.shown("run", form="FORM"):
    warnings.warn("careful")
"""


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_warning_of_python_is_a_line(form):
    done = subprocess.run(
        [sys.executable, "-c", WARNING.replace("FORM", form)],
        capture_output=True,
        text=True,
        check=True,
    )
    (line,) = done.stderr.splitlines()
    assert (json.loads(line)["text"] if form == "json" else line) == "warning: careful"


def test_nothing_is_shown_outside_a_command_but_notes_are(capsys):
    with progress.work("label", 3, "prompts") as work:
        work.add(3)
    progress.note("a note")
    assert capsys.readouterr().err == "a note\n"


def test_work_with_nothing_to_do_is_not_shown(capsys):
    with progress.shown("run"), progress.work("label", 3, "prompts", done=3):
        pass
    assert capsys.readouterr().err == ""


def test_what_is_broken_off_is_said_to_be(capsys):
    with pytest.raises(ValueError), progress.shown("run"), progress.work("label", 3) as work:
        work.add(1)
        raise ValueError
    assert "label: broken off at 1 of 3 rows after" in capsys.readouterr().err


SCRIPT = """
import time
from ste_jax.system import progress
from ste_jax.system.terminal import say
with progress.shown("run"), progress.steps("run pico", 2) as step:
    step("select")
    with progress.work("label", 4, "prompts") as work:
        for _ in range(4):
            time.sleep(0.3)
            work.add()
    say("printed")
say("the result")
"""


def test_a_real_terminal_is_left_clean():
    main, side = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdout=side, stderr=side, env=os.environ | {"TERM": "xterm"}
    )
    os.close(side)
    text, deadline = b"", time.monotonic() + 30
    while time.monotonic() < deadline and select.select([main], [], [], 10)[0]:
        try:
            text += os.read(main, 1 << 16)
        except OSError:  # the other end is closed
            break
    assert child.wait(10) == 0
    screen = Screen(terminal=True)
    screen.write(text.decode().replace("\r\n", "\n"))
    *shown, last = screen.lines()
    assert "label  [#####" in text.decode() and last == ""
    assert re.fullmatch(r"label: 4 prompts in 1\.\d s, 3\.\d/s", shown[0])
    assert shown[1:] == ["printed", "the result"]


def test_the_whole_has_a_line_at_its_end(log):
    whole = log.begin("run pico", base=True)
    log.wait(20)
    log.display.done(whole)
    assert log.screen.lines() == ["run pico: done in 20 s", ""]
