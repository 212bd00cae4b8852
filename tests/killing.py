"""Run `ste` and kill -9 it inside a named place: `python -m tests.killing PLACE -- run CONFIG ...`.

PLACE is one of

    write:PART:N    in the Nth whole-or-nothing write of a file whose path holds PART: the bytes are
                    on disk under the partial name, the file is not there yet
    step:N          in the Nth train step, after it was handed to the device
    orbax:PART      while Orbax writes below a path that holds PART, in a temporary directory
    round:N         in the Nth round of decoding, before anything is made of its tokens
    append:N        in the Nth line that `ste generate` appends to its work file: half of it is on
                    disk

The kill is real: SIGKILL from inside, so no handler, no `finally` and no flush runs.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

_ORBAX = "*orbax-checkpoint-tmp*"
"""The names of the directories that Orbax writes in until a save is complete."""


def kill() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


def in_write(part: str, number: int) -> None:
    replace, seen = Path.replace, 0

    def replace_or_die(self: Path, target: Any) -> Any:
        nonlocal seen
        if part in str(target):
            seen += 1
            if seen == number:
                kill()
        return replace(self, target)

    Path.replace = replace_or_die  # type: ignore[method-assign]


def in_step(number: int) -> None:
    from ste_jax.finetuning import loop

    make, calls = loop.make_train_step, 0

    def make_deadly(*args: Any, **kwargs: Any) -> Any:
        step = make(*args, **kwargs)

        def step_or_die(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            done = step(*args, **kwargs)
            if calls == number:
                kill()
            return done

        return step_or_die

    loop.make_train_step = make_deadly


def in_orbax(part: str, root: Path) -> None:
    assert not list(root.rglob(_ORBAX)), "an earlier kill left what this one waits for"

    def watch() -> None:
        while not any(part in str(path) for path in root.rglob(_ORBAX)):
            time.sleep(0.0005)
        kill()

    threading.Thread(target=watch, daemon=True).start()


def in_round(number: int) -> None:
    from ste_jax.decoding.engine import Engine

    run, calls = Engine._round, 0

    def run_or_die(self: Engine, state: Any) -> Any:
        nonlocal calls
        calls += 1
        done = run(self, state)
        if calls == number:
            kill()
        return done

    Engine._round = run_or_die  # type: ignore[method-assign]


def in_append(number: int) -> None:
    from ste_jax.commands import batch

    append, calls = batch._append, 0

    def append_or_die(file: Any, row: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            line = json.dumps(row)
            file.write(line[: len(line) // 2])
            file.flush()
            kill()
        append(file, row)

    batch._append = append_or_die


def main() -> int:
    place, dashes, *words = sys.argv[1:]
    assert dashes == "--"
    kind, _, rest = place.partition(":")
    if kind == "write":
        part, _, number = rest.rpartition(":")
        in_write(part, int(number))
    elif kind == "step":
        in_step(int(rest))
    elif kind == "round":
        in_round(int(rest))
    elif kind == "append":
        in_append(int(rest))
    elif kind == "orbax":
        in_orbax(rest, Path(words[words.index("--dir") + 1]))
    from ste_jax.cli import main as ste

    return ste(words)


if __name__ == "__main__":
    sys.exit(main())
