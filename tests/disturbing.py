"""Stop a run of pico with one shard again and again, and count what that costs.

`python -m tests.disturbing --out DIR` makes one undisturbed run, then others that are stopped at
random moments by SIGKILL, SIGTERM and SIGINT in turn. Each is compared with the undisturbed one.
Then runs are interrupted in their first seconds. It prints a JSON object: of every stop, the tokens
that were drawn of rows that had not finished (they must be drawn again), and of all the tokens that
were drawn again although their rows had finished, which must be none.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parent.parent
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
WORDS = ("run", "pico", "pool.shards=1", "iterations=1", "select.heldout=30", "evaluate.sets=[]")
"""What is run; `pool.limit` and the directory come behind it."""


def counting(file: Path, words: list[str]) -> int:
    """Run `ste`. The file always holds how many tokens were drawn so far, and how many of them are
    of rows that have not finished."""
    import mmap

    from ste_jax.system import preemption

    preemption.install()  # as `ste` does, before JAX is loaded
    from ste_jax.decoding.engine import Engine

    file.write_bytes(bytes(16))
    with file.open("r+b") as opened:
        shown = mmap.mmap(opened.fileno(), 16)
    plain, drawn = Engine._round, 0

    def counted(self: Engine, running: Any) -> Any:
        nonlocal drawn
        before = self.usage.new_tokens
        shown[:] = struct.pack("2q", drawn, self.usage.tokens_in_hand)
        found = plain(self, running)
        drawn += self.usage.new_tokens - before
        shown[:] = struct.pack("2q", drawn, self.usage.tokens_in_hand)
        return found

    Engine._round = counted  # type: ignore[method-assign]
    from ste_jax.cli import main as ste

    return ste(words)


class Bench:
    """Starts runs and reads what they count."""

    def __init__(self, out: Path, limit: int) -> None:
        self.out = out
        self.words = [*WORDS, f"pool.limit={limit}"]
        self.environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": "2",
            "JAX_COMPILATION_CACHE_DIR": str(out / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            # one thread for each device: the same program gives the same bits
            "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
        }

    def start(self, run: Path, *, counting: bool = True) -> subprocess.Popen[bytes]:
        """Start or resume a run, which writes beside its directory what it says."""
        how = ["tests.disturbing", "--count", str(self._count)] if counting else ["ste_jax.cli"]
        self._count.unlink(missing_ok=True)
        with (self.out / f"{run.name}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", *how, *self.words, "--dir", str(run)],
                cwd=REPOSITORY,
                env=self.environment,
                stdout=log,
                stderr=log,
            )

    def counted(self) -> tuple[int, int]:
        """Of the last run: tokens drawn, and those of unfinished rows."""
        data = self._count.read_bytes() if self._count.exists() else b""
        drawn, in_hand = struct.unpack("2q", data.ljust(16, b"\0"))
        return drawn, in_hand

    @property
    def _count(self) -> Path:
        return self.out / "count"


def stopped(process: subprocess.Popen[bytes], after: float, number: int) -> dict[str, Any] | None:
    """Send a signal after so many seconds, and wait; None if the run had ended before."""
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        sent = time.monotonic()
        process.send_signal(number)
        status = process.wait(120)
        name = signal.Signals(number).name
        took = round(time.monotonic() - sent, 2)
        return {"signal": name, "after_s": round(after, 2), "status": status, "took_s": took}
    assert process.returncode == 0, process.returncode
    return None


def disturb(bench: Bench, stops: int, seed: int) -> dict[str, Any]:
    """Stop runs so many times, run each to its end, and compare it with the undisturbed one."""
    from tests.comparing import assert_identical

    undisturbed = bench.out / "undisturbed"
    assert bench.start(undisturbed).wait() == 0  # also fills the cache of compiled programs
    began = time.monotonic()
    assert bench.start(bench.out / "again").wait() == 0
    seconds = time.monotonic() - began
    whole = bench.counted()[0]
    draw = random.Random(seed)
    found: list[dict[str, Any]] = []
    runs = drawn = lost = 0
    while len(found) < stops:
        run = bench.out / f"run-{runs}"
        runs += 1
        ended = False
        while not ended:
            process = bench.start(run)
            after = draw.uniform(0.1, 0.5 * seconds) if len(found) < stops else 3600.0
            stop = stopped(process, after, SIGNALS[len(found) % len(SIGNALS)])
            here, in_hand = bench.counted()
            drawn += here
            if ended := stop is None:
                continue
            lost += in_hand
            found.append({**stop, "drawn": here, "in_hand": in_hand})
            print(json.dumps(found[-1]), file=sys.stderr, flush=True)
        assert_identical(undisturbed, run)
    return {
        "undisturbed_seconds": round(seconds, 1),
        "undisturbed_tokens": whole,
        "tokens_per_second": round(whole / seconds),
        "runs": runs,
        "stops": found,
        "tokens_drawn_again": drawn - runs * whole,
        "of_rows_in_hand": lost,
        "of_finished_rows": drawn - runs * whole - lost,
    }


def interrupt(bench: Bench, starts: int) -> list[dict[str, Any]]:
    """Interrupt fresh runs in their first seconds; what came of each."""
    found = []
    for number in range(starts):
        after = 0.1 + (4.0 - 0.1) * number / max(1, starts - 1)
        process = bench.start(bench.out / f"start-{number}", counting=False)
        stop = stopped(process, after, signal.SIGINT)
        assert stop is not None
        found.append(stop)
        print(json.dumps(stop), file=sys.stderr, flush=True)
    return found


def main() -> int:
    """Disturb as the options say; prints what came of it."""
    if sys.argv[1:2] == ["--count"]:
        return counting(Path(sys.argv[2]), sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="where the runs go (default: a new directory)")
    parser.add_argument("--stops", type=int, default=30, help="default 30")
    parser.add_argument("--starts", type=int, default=20, help="default 20")
    parser.add_argument("--limit", type=int, default=300, help="instructions (default 300)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    given = parser.parse_args()
    # A shell that starts this in the background has SIGINT ignored, and runs would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    bench = Bench((given.out or Path(tempfile.mkdtemp())).absolute(), given.limit)
    bench.out.mkdir(parents=True, exist_ok=True)
    disturbed = disturb(bench, given.stops, given.seed) if given.stops else {}
    print(json.dumps({**disturbed, "starts": interrupt(bench, given.starts)}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
