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

import ste_jax
from tests.test_layers import IMPORTS

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """The wheel, unpacked as pip would."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(wheel.parent / "site")
    return wheel.parent / "site"


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


@pytest.mark.slow
def test_the_wheel_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    """pip installs it, `ste run pico` runs outside a checkout, also without TensorFlow, and others
    may read the judge that is exported."""

    def run(*words: str) -> str:
        env = {key: value for key, value in os.environ.items() if key not in SET_FOR_TESTS}
        env |= {"HOME": str(tmp_path), "JAX_NUM_CPU_DEVICES": "2"}
        done = subprocess.run(
            words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=3000
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    run(sys.executable, "-m", "venv", "empty")
    python, ste = (str(tmp_path / "empty" / "bin" / name) for name in ("python", "ste"))
    run(python, "-m", "pip", "install", "--quiet", "--no-cache-dir", str(wheel))
    place = run(python, "-c", "import ste_jax; print(ste_jax.__file__)").strip()
    assert Path(place).is_relative_to(tmp_path / "empty")

    run(ste, "run", "pico")
    run_ = ste_jax.open_run(tmp_path / "runs" / "pico")
    first, last = (run_.evaluation(n)["sets"]["same-task"]["accuracy"] for n in (0, 3))
    assert first < 0.7 and last > 0.9
    assert (tmp_path / "runs/pico/report/index.html").exists()

    run(python, "-m", "pip", "uninstall", "--quiet", "--yes", "tensorflow", "tensorflow-text")
    said = run(
        ste,
        *("judge", "runs/pico", "--instruction", "What is 2 + 3?"),
        *("--a", "It is 5.", "--b", "It is 6."),
    )
    assert "votes: a 2" in said
    run(ste, "export", "runs/pico", "judge")
    written = list((tmp_path / "judge").iterdir())
    assert len(written) > 6
    assert {path.stat().st_mode & 0o444 for path in written} == {0o444}


SET_FOR_TESTS = (
    "PYTHONPATH",
    "XLA_FLAGS",
    "JAX_PLATFORMS",
    "JAX_DISABLE_MOST_OPTIMIZATIONS",
    "JAX_COMPILATION_CACHE_DIR",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
)
"""What this process has in its environment, and a user's shell has not."""


def test_what_is_to_be_left_out_without_tensorflow() -> None:
    """The lines of the README that install without it leave out TensorFlow alone."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r'^python -c "(.*?)" > needs\.txt$', text, re.DOTALL | re.MULTILINE)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    left_out = set(declared["dependencies"]) - set(done.stdout.splitlines())
    assert {_plain(re.split(r"[^\w.-]", line)[0]) for line in left_out} == {
        "tensorflow",
        "tensorflow-text",
    }


def test_extras_that_pages_name_are_there() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    named = {
        extra
        for page in pages
        for extras in re.findall(r"(?:\.|\.whl)\[([a-z,]+)\]'", page.read_text(encoding="utf-8"))
        for extra in extras.split(",")
    }
    assert {"gpu", "tpu", "gcs"} <= named <= set(extras)


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
