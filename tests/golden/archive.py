"""How does a finished run lie in one small file, and what is listed of it?

An archive holds a directory by the variant's name: model, pool, templates, `config.yaml`, the
finished `run`, and what `ste evaluate` has `evaluated` of its judge. All paths in it are relative
to where it is unpacked."""

from __future__ import annotations

import io
import json
import lzma
import tarfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
FINGERPRINTS, FORMATS = HERE / "fingerprints.json", HERE / "formats.json"
_COMMITTED = "commit_success.txt"
"""What Orbax writes last, with the path of the place."""
_LISTED = ("fingerprint", "validated_as", "training_rows", "parent", "judge", "prompts")


def path_of(variant: str) -> Path:
    """Where the archive of a variant lies."""
    return HERE / f"{variant}.tar.xz"


def pack(root: Path, variant: str) -> None:
    """Archive `root/variant`: sorted, without times, owners and paths of this machine, and without
    the report, which every run writes anew."""
    data, here = io.BytesIO(), str(root.resolve()).encode()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(each for each in (root / variant).rglob("*") if each.is_file()):
            if path.is_relative_to(root / variant / "run" / "report"):
                continue
            entry = tarfile.TarInfo(path.relative_to(root).as_posix())
            content = path.read_bytes()
            if path.name == _COMMITTED:
                content = content.replace(here + b"/", b"")
            assert here not in content, f"{path} names {root.resolve()}"
            entry.size, entry.mode = len(content), 0o644
            tar.addfile(entry, io.BytesIO(content))
    path_of(variant).write_bytes(lzma.compress(data.getvalue(), preset=9))


def unpack(variant: str, root: Path) -> Path:
    """Unpack a variant below `root`; returns its directory."""
    with tarfile.open(path_of(variant), "r:xz") as tar:
        tar.extractall(root, filter="data")
    return root / variant


def fingerprints(root: Path) -> dict[str, Any]:
    """What a variant's finished work was made under: path of a mark or card -> what it says."""
    found: dict[str, Any] = {}
    for path in sorted([*root.glob("run/**/*.json"), *root.glob("evaluated/*.json")]):
        values = json.loads(path.read_bytes())
        if isinstance(values, dict):
            values = values.get("provenance", values)
            listed = {key: values[key] for key in _LISTED if isinstance(values.get(key), str)}
            if listed:
                found[path.relative_to(root).as_posix()] = listed
    for path in sorted(root.rglob("train_state/*")):  # a training is found again by its name
        found[path.parent.relative_to(root).as_posix()] = {"fingerprint": path.name}
    return found


def tables(root: Path) -> list[Path]:
    """The files of all tables of a variant."""
    return sorted(root.rglob("*.parquet"))
