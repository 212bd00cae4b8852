"""Does what pip installs hold all that the package reads at run time?"""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.test_layers import IMPORTS

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, unpacked as pip would."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_every_file_of_the_package_and_every_config_is_there(installed: Path) -> None:
    wanted = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "ste_jax").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    wanted |= {f"ste_jax/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.yaml")}
    found = {
        path.relative_to(installed).as_posix() for path in installed.rglob("*") if path.is_file()
    }
    assert {name for name in found if ".dist-info/" not in name} == wanted
    assert {
        "ste_jax/stages/shipped/instructions.jsonl",
        "ste_jax/configs/smollm2-135m.yaml",
    } <= found


def test_a_shipped_config_is_found_by_its_name_outside_a_checkout(
    installed: Path, tmp_path: Path
) -> None:
    code = (
        "import ste_jax.config.load as c; print(c.__file__); "
        "print(c.load_config('smollm2-135m').model)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    where, model = done.stdout.splitlines()
    assert Path(where).is_relative_to(installed)
    assert model.startswith("pypi:")


def test_every_import_belongs_to_a_declared_dependency() -> None:
    """What another package happens to bring along may be gone tomorrow, or elsewhere."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {_plain(re.split(r"[^\w.-]", line)[0]) for line in project["dependencies"]}
    bringers = importlib.metadata.packages_distributions()
    undeclared = {
        (module, top)
        for module, imported in IMPORTS.items()
        for top in {name.partition(".")[0] for name, _ in imported}
        if top not in sys.stdlib_module_names and top != "ste_jax"
        if not declared & {_plain(name) for name in bringers.get(top, [top])}
    }
    assert undeclared == set()


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
