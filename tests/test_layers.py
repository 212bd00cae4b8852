"""Do imports go down only?

Between folders in the order of `FOLDERS`; the model side knows nothing of the recipe; what is plain
Python brings no JAX. Imports inside functions count like the others, except where a test looks at
what a started interpreter really loaded.
"""

from __future__ import annotations

import ast
import graphlib
import importlib
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

import ste_jax

PACKAGE = Path(ste_jax.__file__).parent
FOLDERS = (
    "system",
    "generation",
    "records",
    "prompts",
    "tasks",
    "config",
    "tokenization",
    "parallel",
    "endpoints",
    "stages",
    "models",
    "checkpoints",
    "decoding",
    "finetuning",
    "planning",
    "model_io",
    "run",
    "pico",
    "evaluation",
    "reporting",
    "commands",
    "pipeline",
    "cli",
)
"""All that lies at the top of the package, bottom to top: each answers one question, and imports
only what lies below it."""
MODEL_SIDE = (
    "parallel",
    "tokenization",
    "models",
    "checkpoints",
    "decoding",
    "finetuning",
    "planning",
)
RECIPE = ("records", "stages", "run", "evaluation", "reporting", "commands", "pipeline", "cli")
MODEL_KNOBS = {"DecodingKnobs", "LoraKnobs", "MeshKnobs", "SamplingKnobs"}
PLAIN = ("system.errors", "generation", "records", "config", "prompts", "endpoints", "stages")
"""What loads no JAX."""
STANDARD = sys.stdlib_module_names
JAX = {"jax", "jaxlib", "flax", "optax", "orbax", "tensorstore"}
HEAVY = JAX | {"numpy", "pyarrow", "datasets", "transformers", "tensorflow", "torch", "etils"}


def modules(package: Path) -> dict[str, Path]:
    """The file of every module of a package, by its full name."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join([package.name, *(part for part in parts if part != "__init__")])] = path
    return found


def imports(name: str, known: dict[str, Path]) -> set[tuple[str, str]]:
    """What a module imports, as (full name of a module, name taken from it or nothing)."""
    is_package = known[name].name == "__init__.py"
    found = set()
    for node in ast.walk(ast.parse(known[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                parts = name.split(".")
                kept = parts[: len(parts) - node.level + is_package]
                source = ".".join([*kept, source] if source else kept)
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                found.add((inner, "") if inner in known else (source, alias.name))
    return found


def under(module: str, parts: Iterable[str]) -> bool:
    """Whether a module is one of `parts` of the package, or lies in one of them."""
    return any(f"{module}.".startswith(f"ste_jax.{part}.") for part in parts)


KNOWN = modules(PACKAGE)
IMPORTS = {name: imports(name, KNOWN) for name in KNOWN}


def folder(module: str) -> str:
    """The folder (or the file at the top) that a module of the package lies in."""
    return module.split(".")[1] if "." in module else ""


def test_the_list_holds_all_that_lies_at_the_top() -> None:
    there = {
        path.stem
        for path in PACKAGE.iterdir()
        if path.suffix == ".py" or (path.is_dir() and any(path.rglob("*.py")))
    }
    assert there - {"__init__"} == set(FOLDERS)
    assert len(FOLDERS) == len(set(FOLDERS))


def test_the_parts_named_here_exist() -> None:
    named = {*MODEL_SIDE, *RECIPE, *PLAIN}
    assert {part for part in named if not any(under(name, [part]) for name in KNOWN)} == set()


@pytest.mark.parametrize("name", [name for name in KNOWN if folder(name)])
def test_imports_go_down_between_folders(name: str) -> None:
    here = FOLDERS.index(folder(name))
    below = {*FOLDERS[:here], folder(name), ""}
    assert {m for m, _ in IMPORTS[name] if m in KNOWN and folder(m) not in below} == set()


def test_no_import_leads_back() -> None:
    graph = {name: {m for m, _ in found if m in KNOWN} for name, found in IMPORTS.items()}
    del graph["ste_jax"]  # its names are fetched when they are used: see below
    tuple(graphlib.TopologicalSorter(graph).static_order())  # raises on a cycle, and names it


@pytest.mark.parametrize("name", [name for name in KNOWN if under(name, MODEL_SIDE)])
def test_the_model_side_knows_nothing_of_the_recipe(name: str) -> None:
    assert {m for m, _ in IMPORTS[name] if under(m, RECIPE)} == set()
    knobs = {item for m, item in IMPORTS[name] if under(m, ["config.schema"])}
    assert knobs <= MODEL_KNOBS


@pytest.mark.parametrize("name", [name for name in KNOWN if under(name, PLAIN)])
def test_plain_parts_import_no_jax(name: str) -> None:
    assert {m for m, _ in IMPORTS[name] if m.partition(".")[0] in JAX} == set()


def test_only_measuring_sees_the_checker_of_the_small_world() -> None:
    importers = {name for name, them in IMPORTS.items() if any(under(m, ["pico"]) for m, _ in them)}
    assert {name for name in importers if not under(name, ["pico"])} == {
        "ste_jax.evaluation.traces"
    }
    traces = "ste_jax.evaluation.traces"
    askers = {name for name, them in IMPORTS.items() if any(m == traces for m, _ in them)}
    assert askers == {"ste_jax.evaluation.measure"}
    measurers = {name for name, them in IMPORTS.items() if any(m in askers for m, _ in them)}
    assert measurers == {"ste_jax.pipeline.evaluate", "ste_jax.commands.evaluate"}
    users = {name for name, them in IMPORTS.items() if any(m in measurers for m, _ in them)}
    shows = "ste_jax.commands.evaluation_text"
    assert users == {"ste_jax.pipeline.recipe", "ste_jax.cli.models", shows}


def loaded(code: str, heavy: set[str]) -> str:
    """What a new interpreter prints: the heavy modules that it has loaded after running `code`."""
    code += f"\nimport sys\nprint(*sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=PACKAGE.parent,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_plain_parts_load_no_jax() -> None:
    plain = sorted(name for name in KNOWN if under(name, PLAIN))
    assert loaded(f"import {', '.join(plain)}", JAX) == ""


def test_the_command_line_starts_light() -> None:
    run = "from ste_jax.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit: pass"
    assert loaded(run, HEAVY) == ""


def test_the_package_itself_loads_its_version_alone() -> None:
    code = (
        "import sys, time\nbefore = set(sys.modules)\nstart = time.perf_counter()\n"
        "import ste_jax\ntook = time.perf_counter() - start\n"
        "assert took < 0.1, took\nprint(*sorted(set(sys.modules) - before - {'typing'}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=PACKAGE.parent
    )
    assert done.returncode == 0, done.stderr
    ours = {name for name in done.stdout.split() if name.partition(".")[0] not in STANDARD}
    assert ours == {"ste_jax", "ste_jax.system", "ste_jax.system.version"}


def test_what_the_package_names_is_there_and_is_what_a_type_checker_sees() -> None:
    written = {item: module for module, item in IMPORTS["ste_jax"] if module.startswith("ste_jax.")}
    assert written.keys() | {"__version__"} == {*ste_jax.__all__, "__version__"}
    for name, module in written.items():
        assert getattr(ste_jax, name) is getattr(importlib.import_module(module), name)
    assert {*ste_jax.__all__, "__version__"} <= set(dir(ste_jax))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = ste_jax.no_such_name


def test_a_loaded_module_is_seen() -> None:
    assert loaded("import numpy", HEAVY) == "numpy"


def test_every_way_to_import_is_seen(tmp_path: Path) -> None:
    files = {
        "__init__.py": "",
        "low.py": "X = 1",
        "deep/__init__.py": "from . import inner",
        "deep/inner.py": (
            "import json.decoder, low\nfrom ste_jax import low\nfrom ste_jax.low import X\n"
            "from ..low import X\n"
            "def late():\n    import ste_jax.deep.inner\n    from .. import low\n"
        ),
    }
    package = tmp_path / "ste_jax"
    for name, text in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text, encoding="utf-8")
    known = modules(package)
    assert set(known) == {"ste_jax", "ste_jax.low", "ste_jax.deep", "ste_jax.deep.inner"}
    assert imports("ste_jax.deep", known) == {("ste_jax.deep.inner", "")}
    assert imports("ste_jax.deep.inner", known) == {
        ("json.decoder", ""),
        ("low", ""),
        ("ste_jax.low", ""),
        ("ste_jax.low", "X"),
        ("ste_jax.deep.inner", ""),
    }
