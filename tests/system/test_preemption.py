"""A signal stops a command from its first moment on, wherever it is; what is in hand is saved."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ste_jax.system import preemption
from ste_jax.system.errors import Preempted
from tests.running import REPOSITORY

TERM, INT = signal.SIGTERM, signal.SIGINT


@pytest.fixture(autouse=True)
def _interruptible():
    """A shell that starts the tests in the background has SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def start(code: str) -> subprocess.Popen[str]:
    """A process that has taken the signals, and says `ready` where it waits for one."""
    begin = "import os, signal, sys, time\nfrom ste_jax.system import preemption\n"
    process = subprocess.Popen(
        [sys.executable, "-c", begin + code],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def stopped(process: subprocess.Popen[str], *signals: int, apart: float = 0.0) -> tuple[int, str]:
    """(exit status, what was said on the error stream) after signals, `apart` by seconds."""
    for number in signals:
        process.send_signal(number)
        time.sleep(apart)
    try:
        _, said = process.communicate(timeout=20)
    finally:
        process.kill()
    return process.returncode, said


READY = "preemption.install()\nprint('ready', flush=True)\n"
PLACES = {
    "waiting": "time.sleep(60)",
    "an import that swallows errors": (
        "class Finder:\n"
        "    def find_spec(self, *_):\n"
        "        try: time.sleep(60)\n"
        "        except BaseException: pass\n"
        "sys.meta_path.insert(0, Finder())\n"
        "import nothing_like_it"
    ),
    "C code that takes no handler": (
        "import ctypes\nlibc = ctypes.CDLL(None)\n"
        "end = time.monotonic() + 60\n"
        "def compare(a, b):\n"
        "    return 0\n"
        "kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)\n"
        "data = (ctypes.c_int * 1000)()\n"
        "while time.monotonic() < end: libc.qsort(data, 1000, 4, kind(compare))"
    ),
    "one long call of C": "import hashlib; hashlib.pbkdf2_hmac('sha256', b'a', b'b', 60_000_000)",
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("number", "status"), [(TERM, 75), (INT, 130)])
def test_with_nothing_in_hand_a_signal_ends_the_process_at_once(place, number, status):
    process = start(READY + PLACES[place])
    begun = time.monotonic()
    time.sleep(0.2)
    found, said = stopped(process, number)
    assert found == status and time.monotonic() - begun < 5
    assert said == "ste: stopped; finished work is kept: run the same command again\n"


IN_HAND = """
try:
    with preemption.in_hand():
        preemption.install(); print('ready', flush=True)
        for _ in range({rounds}): time.sleep(0.05); preemption.poll()
except preemption.Preempted as error:
    print(error, file=sys.stderr); time.sleep({saving})
    print('saved', file=sys.stderr); sys.exit(preemption.exit_status())
"""


@pytest.mark.parametrize(("number", "status"), [(TERM, 75), (INT, 130)])
def test_work_in_hand_is_stopped_in_good_order(number, status):
    found, said = stopped(start(IN_HAND.format(rounds=400, saving=0)), number)
    again = "; press Ctrl-C again to abort" if number == INT else ""
    assert found == status
    assert said.splitlines() == [
        f"stopping: work in hand is being saved{again}",
        preemption.STOPPED,
        "saved",
    ]


def test_a_second_ctrl_c_aborts():
    found, said = stopped(start(IN_HAND.format(rounds=400, saving=60)), INT, INT, apart=1.3)
    assert found == 130 and said.splitlines()[-1].startswith("ste: aborted")


@pytest.mark.parametrize("signals", [(INT, INT), (TERM, TERM), (TERM, INT), (INT, TERM)])
def test_signals_that_come_together_are_one(signals):
    """A terminal and a launcher may both pass one on; a machine that goes may ask again."""
    found, said = stopped(start(IN_HAND.format(rounds=400, saving=1.5)), *signals)
    assert found in (75, 130) and preemption.STOPPED in said and "aborted" not in said


def test_a_second_sigterm_does_not_abort():
    found, said = stopped(start(IN_HAND.format(rounds=400, saving=3)), TERM, TERM, apart=1.3)
    assert found == 75 and said.splitlines()[1:] == [preemption.STOPPED, "saved"]


@pytest.mark.parametrize("place", ["a pipe that nobody reads", "a full disk"])
def test_a_stop_is_taken_where_nothing_can_be_printed(place):
    read, write = os.pipe()
    if place == "a full disk":
        write = os.open("/dev/full", os.O_WRONLY)
    else:
        os.set_blocking(write, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(write, b"x" * 4096)
        os.set_blocking(write, True)
    code = (
        "import sys, time\n"
        "from ste_jax.system import preemption\n"
        "preemption.install()\n"
        "with preemption.in_hand():\n"
        "    print('ready', flush=True)\n"
        "    for _ in range(200):\n"
        "        time.sleep(0.05)\n"
        "        if preemption.requested(): os._exit(preemption.exit_status())\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", "import os\n" + code],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=write,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(INT)
    assert process.wait(timeout=20) == 130
    for each in (read, write):
        os.close(each)


def test_a_stop_that_nothing_polled_ends_the_work_where_it_ends():
    code = (
        "preemption.install()\n"
        "try:\n"
        "    with preemption.in_hand():\n"
        "        print('ready', flush=True); time.sleep(1)\n"
        "except preemption.Preempted: sys.exit(75)\n"
    )
    assert stopped(start(code), TERM)[0] == 75


def test_work_that_has_not_begun_is_not_in_hand():
    code = f"with preemption.in_hand(lambda: False):\n {READY[:-1].replace(chr(10), '; ')}"
    assert stopped(start(f"{code}; time.sleep(60)"), TERM)[1].startswith("ste: stopped;")


def test_one_of_several_processes_is_never_ended_at_once():
    code = READY.replace("print", "preemption.stop_together(); print")
    code += "for _ in range(400): time.sleep(0.05); preemption.requested() and sys.exit(7)"
    assert stopped(start(code), TERM)[0] == 7


def test_an_ignored_signal_stays_ignored():
    code = "signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + READY + "time.sleep(1)"
    assert stopped(start(code), INT) == (0, "")


def test_a_signal_of_a_forked_process_is_its_own():
    code = (
        "import warnings; warnings.simplefilter('ignore')  # Python warns of forks beside threads\n"
        "preemption.install()\n"
        "child = os.fork()\n"
        "if not child: time.sleep(60); os._exit(0)\n"
        "time.sleep(0.2); os.kill(child, signal.SIGTERM)\n"
        "assert os.waitpid(child, 0)[1] == signal.SIGTERM\n"
        "time.sleep(0.2); print('ready', flush=True); time.sleep(0.5)"
    )
    assert stopped(start(code)) == (0, "")


def test_behind_the_block_the_signals_are_as_they_were():
    before = [signal.getsignal(each) for each in (TERM, INT)]
    with preemption.installed():
        assert signal.getsignal(INT) not in before
        preemption.request()
        with pytest.raises(Preempted):
            preemption.poll()
    assert [signal.getsignal(each) for each in (TERM, INT)] == before
    preemption.poll()


def test_in_another_thread_the_signals_are_left_alone():
    before = [signal.getsignal(each) for each in (TERM, INT)]
    with ThreadPoolExecutor() as pool:
        pool.submit(preemption.install).result()
    assert [signal.getsignal(each) for each in (TERM, INT)] == before
