"""Does what the launch scripts start on workers install, run, run again and refuse as it should?

The remote part is run here, in a home for each of two workers; only `gcloud`, `python3` and `ste`
are stand-ins.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tpu_scripts.conftest import SCRIPTS, Desk

ZONE = "--zone=us-central2-b"
# Says where compiled programs go and what it was asked; waits to be let go; ends with 75, then 0.
STE = r"""#!/usr/bin/env bash
if [[ $1 == --version ]]; then echo 'ste_jax 0'; exit; fi
printf '%s\n' "$JAX_COMPILATION_CACHE_DIR" "$@" . >>"$HOME/heard"
for _ in {1..300}; do if [[ -e $HOME/go ]]; then break; fi; sleep 0.1; done
if [[ -e $HOME/again ]]; then echo the end; exit 0; fi
touch "$HOME/again"
exit 75
"""
PYTHON = r"""#!/usr/bin/env bash
echo "$PWD: $*" >>"$HOME/installed"
if [[ $* == '-m uv pip install '* ]]; then mkdir -p venv/bin; cp "$STE" venv/bin/ste; fi
"""


def until(condition: Callable[[], bool]) -> None:
    """Wait for something to come about, half a minute at most."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


def read(path: Path) -> str:
    """A file's text, or nothing where there is none yet."""
    return path.read_text() if path.exists() else ""


@pytest.fixture
def homes(desk: Desk, tmp_path: Path) -> list[Path]:
    """Two workers' homes."""
    homes = [tmp_path / "workers" / f"w{index}" for index in range(2)]
    for home in homes:
        home.mkdir(parents=True)
    desk.add_program("python3", PYTHON)
    (tmp_path / "ste").write_text(STE)
    (tmp_path / "ste").chmod(0o755)
    desk.env |= {"WORKERS": str(tmp_path / "workers"), "STE": str(tmp_path / "ste")}
    return homes


def test_from_a_commit_to_the_end_of_a_run(desk: Desk, homes: list[Path]) -> None:
    launch = ["pod", "my run.yaml", "x=$(a) 'b' \"c\"", ZONE, "--dir=gs://b/runs/one"]
    early = desk.call("launch.sh", "pod", "smollm2-135m", ZONE, "--dir=gs://b/runs/one")
    assert early.returncode == 1
    assert "nothing is installed here: run setup.sh" in early.stderr

    (desk.root / "tpu_scripts" / "uncommitted").write_text("stays here")
    done = desk.call("setup.sh", "pod", ZONE)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("installed ste_jax 0") == 2
    for home in homes:
        source = home / "ste_jax" / "source"
        assert (source / "my run.yaml").is_file()
        assert not (source / "tpu_scripts" / "uncommitted").exists()
        assert not (home / "ste_jax" / "incoming").exists()
        assert f"{home}/ste_jax: -m uv pip install" in read(home / "installed")

    done = desk.call("launch.sh", *launch)
    assert (done.returncode, done.stderr) == (0, "")
    assert "follow.sh pod --zone us-central2-b" in done.stdout
    heard = (
        "gs://b/runs/compiled\nrun\nconfig.yaml\nx=$(a) 'b' \"c\"\n"
        "--dir\ngs://b/runs/one\n--distributed\n.\n"
    )
    for home in homes:
        until(lambda home=home: read(home / "heard") == heard)
        assert read(home / "ste_jax" / "work" / "config.yaml") == "name: mine\n"

    for script, words in (("launch.sh", launch), ("setup.sh", ["pod", ZONE])):
        (desk.root / "my run.yaml").write_text("name: another\n")
        again = desk.call(script, *words)
        assert again.returncode == 1
        assert "a run is" in again.stderr
        assert (homes[0] / "ste_jax" / "source" / "tpu_scripts").is_dir()

    for home in homes:
        assert read(home / "ste_jax" / "work" / "config.yaml") == "name: mine\n"
        (home / "go").touch()
    for home in homes:
        log = home / "ste_jax" / "work" / "run.log"
        until(lambda log=log: "ended with status 0" in read(log))
        assert read(home / "heard") == heard * 2
        assert [line.split(" at ")[0] for line in read(log).splitlines()] == [
            "../venv/bin/ste ended with status 75",
            "the end",
            "../venv/bin/ste ended with status 0",
        ]
    until(lambda: desk.call("launch.sh", *launch).returncode == 0)


KEEP_RUNNING = str(SCRIPTS / "remote" / "keep_running.sh")


@pytest.mark.parametrize(("statuses", "last"), [([75, 75, 0], 0), ([75, 1], 1), ([0], 0), ([2], 2)])
def test_only_75_is_run_again(tmp_path: Path, statuses: list[int], last: int) -> None:
    (tmp_path / "statuses").write_text("".join(f"{status}\n" for status in statuses))
    command = 'read -r status <statuses; sed -i 1d statuses; echo "run"; exit "$status"'
    done = subprocess.run(
        ["bash", KEEP_RUNNING, "bash", "-c", command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == last
    assert done.stdout.splitlines().count("run") == len(statuses)


def test_asked_to_stop_it_lets_the_command_save_its_work(tmp_path: Path) -> None:
    command = "trap 'sleep 0.5; echo saved; exit 75' TERM; echo begun; while :; do sleep 0.1; done"
    log = tmp_path / "log"
    with log.open("w") as out:
        loop = subprocess.Popen(
            ["bash", KEEP_RUNNING, "bash", "-c", command], stdout=out, start_new_session=True
        )
    try:
        until(lambda: read(log) == "begun\n")
        loop.terminate()
        assert loop.wait(timeout=30) == 75
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(loop.pid, signal.SIGKILL)
    assert [line.split(" at ")[0] for line in read(log).splitlines()] == [
        "begun",
        "saved",
        "bash ended with status 75",
    ]
