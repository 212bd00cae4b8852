"""A checkout of the scripts alone, under git, and a recording `gcloud` first on the PATH."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "tpu_scripts"
STAND_IN = Path(__file__).with_name("gcloud_stand_in.py")


@dataclass
class Desk:
    """Where a person calls the scripts from."""

    root: Path
    env: dict[str, str] = field(default_factory=dict)

    def call(self, script: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a script in the checkout's root."""
        return subprocess.run(
            [str(self.root / "tpu_scripts" / script), *words],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=self.root,
            env=self.env,
        )

    def calls(self) -> list[list[str]]:
        """The words of every `gcloud` call so far."""
        record = Path(self.env["RECORD"])
        return (
            [json.loads(line) for line in record.read_text().splitlines()]
            if record.exists()
            else []
        )

    def add_program(self, name: str, text: str) -> None:
        """Put a program first on the PATH."""
        program = self.root.parent / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(text)
        program.chmod(0o755)


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts and a config, in one commit."""
    root = tmp_path_factory.mktemp("tpu") / "checkout"
    shutil.copytree(SCRIPTS, root / "tpu_scripts")
    (root / "my run.yaml").write_text("name: mine\n")
    who = ["-c", "user.name=nobody", "-c", "user.email=nobody@localhost"]
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "all"]):
        subprocess.run(["git", *command], cwd=root, check=True, timeout=60)
    return root


@pytest.fixture
def desk(checkout: Path, tmp_path: Path) -> Desk:
    """A copy of the checkout, with a `gcloud` that only records."""
    root = tmp_path / "checkout"
    shutil.copytree(checkout, root)
    env = {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "RECORD": str(tmp_path / "record.jsonl"),
    }
    desk = Desk(root=root, env=env)
    desk.add_program("gcloud", f'#!/bin/sh\nexec "{sys.executable}" "{STAND_IN}" "$@"\n')
    return desk
