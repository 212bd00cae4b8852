"""Is a fine-tuning that was killed, at whatever moment, bit for bit what it is undisturbed?"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ste_jax.finetuning.loop import FinetuneResult
from ste_jax.system import files
from tests.finetuning.small import Trained
from tests.finetuning.undisturbed import STEPS, Check

# That a state is passed over is never a matter of luck.
pytestmark = [
    pytest.mark.filterwarnings("error:the training state"),
    # what Orbax leaves behind where a read or a write fails
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


class Killed(BaseException):
    """Ends the process, in a test that does not want to start another one."""


def die(
    patch: pytest.MonkeyPatch, owner: Any, name: str, number: int, *, done: bool = False
) -> None:
    """Makes the `number`th call of `owner.name` fatal: at its start, or when it is done."""
    original, calls = getattr(owner, name), [0]

    def dying(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == number and not done:
            raise Killed(name)
        out = original(*args, **kwargs)
        if calls[0] == number:
            raise Killed(name)
        return out

    patch.setattr(owner, name, dying)


# Each of the three validations is measured, recorded, kept if it is the best, and recorded as kept.
SEAMS: dict[str, Callable[[pytest.MonkeyPatch, Trained], None]] = {
    "in a validation": lambda patch, t: die(patch, t, "validate", 2),
    "before it is recorded": lambda patch, t: die(patch, files, "write_json", 3),
    "after it is recorded": lambda patch, t: die(patch, files, "write_json", 3, done=True),
    "after the model is kept": lambda patch, t: die(patch, t, "save_model", 2, done=True),
    "after that is recorded": lambda patch, t: die(patch, files, "write_json", 4, done=True),
    "after the last model is kept": lambda patch, t: die(patch, t, "save_model", 3, done=True),
    "before the result": lambda patch, t: die(patch, files, "write_json", 7),
    "after the result": lambda patch, t: die(patch, files, "write_json", 7, done=True),
}


@pytest.mark.parametrize("seam", SEAMS)
def test_killed_at_every_seam_it_comes_to_the_same(
    seam: str, trained: Trained, check: Check
) -> None:
    given: dict[int, int] = {}

    def never_the_same(step: int) -> float:
        given[step] = given.get(step, 0) + 1
        recorded = next((trained.root / "state").iterdir()) / "ledger.json"
        if recorded.exists():
            validations = json.loads(recorded.read_text())["validations"]
            assert step not in [validation["step"] for validation in validations]
        return step / 100

    trained.accuracy = never_the_same
    with pytest.MonkeyPatch.context() as patch:
        SEAMS[seam](patch, trained)
        with pytest.raises(Killed):
            trained.run()
    check(trained.run(), trained)


KILLED = """
import os, signal, sys, threading, time
import tests.conftest
from etils import epath
from ste_jax.finetuning import loop
from tests.full_disk import files_no_larger_than
from tests.finetuning.small import Trained

place, root = sys.argv[1], epath.Path(sys.argv[2])
trained = Trained(root)

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

if place == "step":
    make = loop.make_train_step
    def deadly(*args, **kwargs):
        step, calls = make(*args, **kwargs), [0]
        def dying(*args):
            calls[0] += 1
            out = step(*args)
            if calls[0] == 6:
                kill()  # handed to the device, not waited for
            return out
        return dying
    loop.make_train_step = deadly
else:
    def watch():
        while True:
            for path in (root / "state").glob("*/*orbax-checkpoint-tmp*"):
                if path.name.startswith("6."):
                    kill()
    threading.Thread(target=watch, daemon=True).start()
trained.run()
"""


@pytest.mark.parametrize("place", ["step", "save"])
def test_a_real_kill_inside_a_step_or_a_save(
    place: str, trained: Trained, undisturbed: tuple[FinetuneResult, Trained]
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, place, os.fspath(trained.root)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    home = next((trained.root / "state").iterdir())
    names = {path.name for path in home.iterdir()}
    complete = max(int(name) for name in names if name.isdigit())
    assert complete in (3, 4)  # the one after step 4 was perhaps still being written
    if place == "save":
        assert any(name.startswith("6.orbax-checkpoint-tmp") for name in names)

    result = trained.run()
    want, wanted = undisturbed
    assert result == want
    assert trained.measured == [8, 10]  # the one after step 4 is on record
    assert [event["step"] for event in trained.logged] == list(range(complete + 1, STEPS + 1))
    assert trained.kept is not None and wanted.kept is not None
    for path, value in wanted.kept[1].items():
        assert np.array_equal(trained.kept[1][path], value), path
