"""How fast is a step of supervised fine-tuning, against torch with transformers?

`python benchmarks/train.py --peer torch` runs this project's training step and the peer's in turn,
each in a process of its own, on random weights of one shape and the same token ids, and prints
tokens per second (compilation and the first step apart), their ratio, and the most memory each has
held. Beside it stands how near the step is to its limit: the summed times of its own matrix
products, each timed alone, and what saving the training state costs.

  cpu  135M Llama shape in float32, 8 rows x 512 tokens, the first half masked, AdamW
  1b   Llama 3.2 1B's shape in bfloat16, 8 rows x 4,096 tokens, layers rematerialized: for a GPU
  3b   that of 3B, 4 rows

On a GPU only MFU is claimed: there parameters are in bfloat16 on both sides, but torch's moments
too, and ours in float32, with parameters rounded stochastically.

The peer computes its loss as `transformers` does, of logits of all tokens; its best form, logits of
the second half alone, is printed beside it. Either takes the batch at once or in micro-batches,
whichever is faster. The exit status is 1 where a claim does not hold.
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

RATIO, OF_THE_LIMIT, MEMORY, SAVING, MFU = 1.15, 0.8, 1.1, 0.05, 0.5
SAVED_STEPS, SAVE_EVERY = 12, 4


def worker(role: str, name: str) -> dict[str, Any]:
    """What one process does."""
    import dataclasses

    from benchmarks.training import limit, ours, peers
    from benchmarks.training.work import TRAININGS

    work = TRAININGS[name]
    longer = dataclasses.replace(work, steps=SAVED_STEPS)
    if role == "limit":
        return limit.seconds(work)
    if role == "ours":
        return ours.run(work)
    if role in ("saves", "no saves"):
        return ours.run_saves(longer, SAVE_EVERY if role == "saves" else 0)
    way, _, parts = role.partition("/")
    return peers.run(work, way, int(parts))


def in_a_process(role: str, name: str) -> dict[str, Any]:
    """`worker` in a process of its own."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "found.json"
        words = ["--worker", role, "--workload", name, "--json", str(out)]
        status = subprocess.run([sys.executable, __file__, *words]).returncode
        if status:
            sys.exit(f"{role}: exit status {status}")
        found: dict[str, Any] = json.loads(out.read_text())
        return found


def fastest(way: str, name: str) -> dict[str, Any]:
    """The peer's figures with the whole batch at once, or in as many micro-batches as we take."""
    from benchmarks.training.work import TRAININGS

    parts = sorted({1, TRAININGS[name].accumulate})
    tried = [in_a_process(f"{way}/{count}", name) for count in parts]
    return max(tried, key=lambda one: float(one["tokens/s"]))


def compare(name: str, peer: str | None, *, saves: bool) -> tuple[dict[str, Any], bool]:
    """All figures, and whether what is claimed holds."""
    claims: list[bool] = []

    def claim(text: str, holds: bool) -> None:
        print(f"- {claim_line(text, holds)}", flush=True)
        claims.append(holds)

    found: dict[str, Any] = {"workload": name}
    on_cpu = name == "cpu"
    parts = in_a_process("limit", name) if on_cpu else {}
    ours = found["ours"] = in_a_process("ours", name)
    if peer is not None:
        theirs = found["peer"] = fastest("own", name)
        found["peer's best form"] = fastest("tail", name)
        found["ratio"] = ours["tokens/s"] / theirs["tokens/s"]
        found["ratio to its best form"] = ours["tokens/s"] / found["peer's best form"]["tokens/s"]
        found["memory ratio"] = ours["peak bytes"] / theirs["peak bytes"]
        if on_cpu:
            claim(f"ours / theirs {found['ratio']:.2f} (at least {RATIO})", found["ratio"] >= RATIO)
            ratio = found["memory ratio"]
            claim(f"peak memory, ours / theirs {ratio:.2f} (at most {MEMORY})", ratio <= MEMORY)
    if on_cpu:
        again = in_a_process("limit", name)
        parts = {part: min(value, again[part]) for part, value in parts.items()}
        times = ours["seconds of the steps"]
        share = sum(parts.values()) * len(times) / sum(times)
        found |= {"limit, seconds of a step": parts, "of the limit": share}
        claim(f"of the limit {share:.2f} (at least {OF_THE_LIMIT})", share >= OF_THE_LIMIT)
    elif "mfu" in ours:
        claim(f"MFU {ours['mfu']:.2f} (at least {MFU})", ours["mfu"] >= MFU)
    if saves:
        # In turn, and of each the fastest: what is looked for is small beside what others do here.
        runs = [(in_a_process("no saves", name), in_a_process("saves", name)) for _ in range(2)]
        without, within = (
            min(of, key=lambda one: float(one["seconds"])) for of in zip(*runs, strict=True)
        )
        lost = within["seconds"] / without["seconds"] - 1
        found |= {"saves": within, "no saves": without, "lost to saves": lost}
        text = f"lost to a save every {SAVE_EVERY} of {SAVED_STEPS} steps {lost:.1%}"
        claim(f"{text} (below {SAVING:.0%})", lost < SAVING)
    return found, all(claims)


def main() -> int:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workload", choices=("cpu", "1b", "3b"), default="cpu")
    parser.add_argument("--peer", choices=("torch",), help="without one, this project's step alone")
    parser.add_argument("--no-saves", action="store_true", help="leave the cost of saves out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the figures as JSON")
    parser.add_argument(
        "--worker",
        help=argparse.SUPPRESS,
    )
    given = parser.parse_args()
    if given.worker:
        given.json.write_text(json.dumps(worker(given.worker, given.workload)))
        return 0
    saves = given.workload == "cpu" and not given.no_saves
    found, holds = compare(given.workload, given.peer, saves=saves)
    return report(found, holds, given.json)


if __name__ == "__main__":
    sys.exit(main())
