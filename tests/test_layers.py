"""Do imports go down only?

cli -> pipeline -> steps -> stages -> (records, prompts, generators.protocol); the engine side
knows nothing of stages and recipe; what is plain Python brings no JAX. Imports inside functions
count like the others, except where a test looks at what a started interpreter really loaded.
"""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

import ste_jax

PACKAGE = Path(ste_jax.__file__).parent
ENGINE = (
    "models",
    "decoding",
    "finetuning",
    "checkpoints",
    "tokenizers",
    "sharding",
    "parameters",
    "aot",
    "hlo",
    "hlo_cost",
    "handover",
    "generators.local",
)
ABOVE_THE_ENGINE = (
    "cli",
    "pipeline",
    "steps",
    "stages",
    "context",
    "marks",
    "rundir",
    "records",
    "evaluation",
    "reporting",
)
ENGINE_KNOBS = {"DecodingKnobs", "FinetuneKnobs", "LoraKnobs", "MeshKnobs", "SamplingKnobs"}
# What each plain part may import of the package.
PLAIN = {
    "errors": (),
    "generators.protocol": (),
    "ranges": (),
    "strict": ("errors", "ranges"),
    "config": ("ranges",),
    "notation": (),
    "config_file": (
        "config",
        "decoding.lanes",
        "endpoint_check",
        "notation",
        "strict",
        "template_arguments",
        "errors",
    ),
    "endpoint_check": ("config", "errors"),
    "template_arguments": ("errors",),
    "generators.secret": (),
    "generators.wire": ("config", "endpoint_check", "errors", "generators.secret"),
    "generators.answers": (),
    "generators.openai": (
        "config",
        "endpoint_check",
        "errors",
        "generators.answers",
        "generators.protocol",
        "generators.wire",
    ),
    "records": ("errors", "generators.protocol"),
    "prompts": ("prompts", "notation", "errors", "generators.protocol"),
    "shipped": (),
    "stages": (
        "shipped",
        "notation",
        "stages",
        "prompts",
        "records",
        "config",
        "errors",
        "generators.protocol",
    ),
}
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


def test_the_parts_named_here_exist() -> None:
    named = {*ENGINE, *ABOVE_THE_ENGINE, *PLAIN}
    assert {part for part in named if not any(under(name, [part]) for name in KNOWN)} == set()


def test_no_import_leads_back() -> None:
    graph = {name: {m for m, _ in found if m in KNOWN} for name, found in IMPORTS.items()}
    tuple(graphlib.TopologicalSorter(graph).static_order())  # raises on a cycle, and names it


@pytest.mark.parametrize(
    ("part", "importers"),
    [("cli", ()), ("pipeline", ("cli",)), ("steps", ("pipeline", "steps"))],
)
def test_what_is_on_top_is_imported_from_above_only(part: str, importers: tuple[str, ...]) -> None:
    found = {name for name, them in IMPORTS.items() if any(under(m, [part]) for m, _ in them)}
    assert {name for name in found if not under(name, importers)} == set()


@pytest.mark.parametrize("name", [name for name in KNOWN if under(name, ENGINE)])
def test_the_engine_knows_nothing_of_the_recipe(name: str) -> None:
    assert {m for m, _ in IMPORTS[name] if under(m, ABOVE_THE_ENGINE)} == set()
    knobs = {item for m, item in IMPORTS[name] if m == "ste_jax.config"}
    assert knobs <= ENGINE_KNOBS


@pytest.mark.parametrize("name", [name for name in KNOWN if under(name, PLAIN)])
def test_plain_parts_import_what_lies_below_them_and_no_jax(name: str) -> None:
    allowed = next(below for part, below in PLAIN.items() if under(name, [part]))
    ours = {m for m, _ in IMPORTS[name] if m in KNOWN}
    assert {m for m in ours if not under(m, allowed)} == set()
    assert {m for m, _ in IMPORTS[name] if m.partition(".")[0] in JAX} == set()


def test_only_measuring_sees_the_checker_of_the_small_world() -> None:
    importers = {name for name, them in IMPORTS.items() if any(under(m, ["pico"]) for m, _ in them)}
    assert {name for name in importers if not under(name, ["pico"])} == {
        "ste_jax.evaluation.traces"
    }
    traces = "ste_jax.evaluation.traces"
    askers = {name for name, them in IMPORTS.items() if any(m == traces for m, _ in them)}
    assert askers == {"ste_jax.steps.evaluating"}
    users = {name for name, them in IMPORTS.items() if any(m in askers for m, _ in them)}
    assert users == {"ste_jax.pipeline"}


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
