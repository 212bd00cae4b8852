"""How much host memory and time does it take to read and to write a model's files?

`python benchmarks/model_files.py` makes a Llama of random bfloat16 weights (4 GB, in a directory
that is removed at the end), imports it as an Orbax checkpoint and exports that again, each in a
process of its own, and prints for each the seconds, the speed and the largest resident size, as the
operating system counted it. Its exit status is 1 if the import takes more than 1.5 GB above the
arrays themselves, or if what comes out is not what went in.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.claims import claim_line
from ste_jax.model_io.families import FAMILIES
from ste_jax.model_io.tensor_map import stored
from ste_jax.models.config import ModelConfig
from ste_jax.reporting.tables import markdown
from ste_jax.system import shipped

ALLOWED = 1.5e9
"""Bytes of resident memory above the arrays that an import may take."""
SHARD = 2 * 10**9
"""Bytes of one safetensors file."""
_LAYER = 67_112_960
"""Parameters of one layer below."""


def shape(gigabytes: float) -> ModelConfig:
    """A Llama of about so many gigabytes in bfloat16."""
    outside = 2 * 49152 * 2048
    return ModelConfig(
        vocab_size=49152,
        hidden_size=2048,
        intermediate_size=8192,
        num_layers=max(1, round((gigabytes * 5e8 - outside) / _LAYER)),
        num_heads=32,
        num_kv_heads=32,
        head_dim=64,
        max_position=8192,
    )


def write_random(directory: Path, config: ModelConfig) -> None:
    """Random weights as a Hugging Face directory in several files, with pico's tokenizer."""
    directory.mkdir(parents=True)
    seed = shipped.model_of("pico")
    assert seed is not None
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (seed / name).exists():
            shutil.copyfile(seed / name, directory / name)
    family = FAMILIES["llama"]
    draw = np.random.default_rng(0)
    files: dict[str, str] = {}
    waiting: dict[str, np.ndarray[Any, Any]] = {}

    def flush() -> None:
        name = f"model-{len(set(files.values())) + 1:05}.safetensors"
        save_file(waiting, str(directory / name), metadata={"format": "pt"})
        files.update(dict.fromkeys(waiting, name))
        waiting.clear()

    for one in stored(config, family.weights, lambda weight: weight.hf).values():
        for place in one.places():
            bits = draw.integers(0, 1 << 16, one.shape, np.uint16)
            # A sign and a random mantissa, of magnitudes from 1/128 to 1/64.
            bits = (bits & np.uint16(0x807F)) | np.uint16(0x3C00)
            waiting[one.name(place)] = bits.view(ml_dtypes.bfloat16)
            if sum(value.nbytes for value in waiting.values()) > SHARD:
                flush()
    flush()
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    (directory / "config.json").write_text(json.dumps(family.config_to_hf(config)))


def measured(*words: str) -> dict[str, Any]:
    """What a `ste` command took."""
    begun = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "ste_jax.cli", *words], cwd=Path(__file__).parent.parent
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"ste {' '.join(words)}: exit status {process.returncode}")
    unit = 1 if sys.platform == "darwin" else 1024
    return {"seconds": time.perf_counter() - begun, "peak": used.ru_maxrss * unit}


def contents(directory: Path) -> dict[str, str]:
    """A hash of every tensor of a directory."""
    found = {}
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(str(file), framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (it is no mapping)
                found[name] = hashlib.blake2b(tensors.get_tensor(name).tobytes()).hexdigest()
    return found


def main() -> int:
    """Make, import, export, compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=4.0, metavar="GB",
                        help="size of the weights (default: %(default)g)")  # fmt: skip
    parser.add_argument("--dir", type=Path, metavar="DIR",
                        help="where the files go for the time being (default: a temporary "
                        "directory); three times their size is needed")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="the figures also as JSON")
    given = parser.parse_args()
    config = shape(given.gigabytes)
    arrays = 2 * config.parameter_count()
    with tempfile.TemporaryDirectory(dir=given.dir) as place:
        hf, checkpoint, out = (Path(place) / name for name in ("hf", "checkpoint", "out"))
        # In a process of its own: what this one has used would be counted for its children.
        writer = multiprocessing.get_context("spawn").Process(
            target=write_random, args=(hf, config)
        )
        writer.start()
        writer.join()
        rows = []
        for what, words in (
            ("nothing (a tiny model)", ("import", "pico", f"{place}/tiny")),
            ("import", ("import", str(hf), str(checkpoint))),
            ("export", ("export", str(checkpoint), str(out))),
        ):
            found = measured(*words)
            size = 0 if what.startswith("nothing") else arrays
            rows.append(
                {
                    "what": what,
                    "arrays, GB": size / 1e9,
                    "seconds": found["seconds"],
                    "MB/s": size / 1e6 / found["seconds"] if size else None,
                    "peak, GB": found["peak"] / 1e9,
                    "above the arrays, GB": (found["peak"] - size) / 1e9,
                }
            )
        same = contents(hf) == contents(out)
    print(markdown(rows))
    print(f"- {claim_line('what was exported is what was imported', same)}")
    above = rows[1]["above the arrays, GB"]
    little = above * 1e9 <= ALLOWED
    print(f"- {claim_line('an import takes at most 1.5 GB more', little)}")
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0 if same and little else 1


if __name__ == "__main__":
    sys.exit(main())
