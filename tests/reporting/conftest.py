"""A small made-up run on disk: every table filled, every count adding up, no model asked."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from etils import epath

from ste_jax import records
from ste_jax.evaluation.metrics import measure
from ste_jax.records import Instruction, Judgment, Label, Pair, Prompt, Selection, TrainingExample
from ste_jax.run.layout import IterationDir, RunDir
from ste_jax.run.tables import Table
from ste_jax.system import files
from ste_jax.tasks import PAIRWISE

SHARDS = 3
VOTES = 3
WAVES = (2, 2, 4)


class FakeRun:
    """Builds a run step by step, as far as it is asked to; `hostile` goes into every text."""

    def __init__(self, root: Path, hostile: str = "", pool: int = 120) -> None:
        self.run = RunDir(epath.Path(root))
        self.random = random.Random(7)
        self.hostile = hostile
        self.size = pool
        self.events: list[dict[str, Any]] = []

    def text(self, words: str) -> str:
        return words + self.hostile

    def write(self, table: Table[Any], rows: Iterable[tuple[str, Any]]) -> None:
        """Rows with the id that tells their shard."""
        shards: dict[int, list[Any]] = defaultdict(list)
        for owner, row in rows:
            shards[records.shard_of(owner, SHARDS)].append(row)
        for shard in range(SHARDS):
            table.write(shard, shards[shard])

    def log(self, event: str, **values: Any) -> None:
        self.events.append({"event": event, "time": 1000.0 + len(self.events), **values})
        with self.run.metrics.open("a") as file:
            file.write(json.dumps(self.events[-1]) + "\n")

    def begin(self) -> FakeRun:
        """Config, manifest and pool."""
        config = {
            "name": self.text("made-up"),
            "model": self.text("pypi:made-up-model"),
            "seed": 3,
            "iterations": 2,
            "annotate": {"samples": 8, "waves": list(WAVES)},
            "evaluate": {"votes": VOTES, "bootstrap": 300},
            "judge": {"force_text": self.text("\n\nFinal verdict: [[")},
        }
        files.write_whole(self.run.config, yaml.safe_dump(config).encode())
        intake = {"read": self.size + 10, "rejected": 6, "duplicates": 4, "kept": self.size}
        files.write_json(self.run.manifest, {"shards": SHARDS, "iterations": 2, "intake": intake})
        self.pool = []
        for number in range(self.size):
            messages = (
                {"role": "user", "content": self.text(f"Say how many {number} are.\nBriefly.")},
            )
            id = records.instruction_id(messages)
            self.pool.append(Instruction(id=id, messages=messages, source=self.text("made-up")))
        self.write(self.run.pool, ((row.id, row) for row in self.pool))
        return self

    def select(self) -> FakeRun:
        """Labels, fates, and the kept instructions in three splits."""
        names = [self.text(name) for name in ("coding", "reasoning", "writing")]
        labels, fates = [], []
        splits = ["train"] * 50 + ["validation"] * 6 + ["heldout"] * 34
        for number, row in enumerate(self.pool):
            category = None if number % 10 == 9 else names[number % 3]
            failure = self.text("no_category") if category is None else None
            label = Label(
                id=row.id,
                category=category,
                difficulty=2,
                failure=failure,
                text=self.text("coding!"),
            )
            labels.append((row.id, label))
            fate, split = "kept", None
            if category is None:
                fate = "no_category"
            elif number % 7 == 0:
                fate = self.text("near_duplicate")
            elif splits:
                split = splits.pop(self.random.randrange(len(splits)))
            else:
                fate = "over_quota"
            fates.append(
                Selection(
                    id=row.id, fate=fate, detail=self.text("why"), category=category, difficulty=2,
                    split=split,
                )
            )  # fmt: skip
        self.split = {row.id: row.split for row in fates if row.fate == "kept"}
        self.selected = [row for row in self.pool if row.id in self.split]
        self.write(self.run.labels, labels)
        self.write(self.run.selection, ((row.id, row) for row in fates))
        self.write(self.run.selected, ((row.id, row) for row in self.selected))
        self.log("work", stage="select", iteration=0, rows=self.size, prompt_tokens=30000,
                 cached_prompt_tokens=22000, new_tokens=900, flops=8.1e12,
                 seconds=22.5)  # fmt: skip
        return self

    def make_pairs(self) -> FakeRun:
        """A pair of most selected instructions, a reason for the others."""
        self.pairs: list[Pair] = []
        dropped = []
        for number, row in enumerate(self.selected):
            if number % 8 == 3:
                reason = self.text(("modified_is_same", "answer_empty")[number % 16 == 3])
                text = self.text("what it said")
                dropped.append((row.id, records.DroppedPair(id=row.id, reason=reason, text=text)))
                continue
            pair = records.make_pair(
                row,
                chosen=self.text(f"The better answer, number {number}. " + "It says more. " * 12),
                rejected=self.text(f"The worse answer, number {number}. " + "It says less. " * 7),
                modified_instruction=self.text("Say how few there are."),
                source=self.text("constructed"),
            )
            self.pairs.append(pair)
        self.write(self.run.pairs, ((pair.instruction_id, pair) for pair in self.pairs))
        self.write(self.run.dropped_pairs, dropped)
        for process in range(2):
            self.log("work", stage="pair", iteration=0, rows=40 + process, prompt_tokens=41000,
                     cached_prompt_tokens=9000, new_tokens=21000, flops=1.9e13,
                     seconds=95.25)  # fmt: skip
        return self

    def prompts(self, split: str) -> list[tuple[str, Prompt]]:
        """Instruction id and prompt, both orders of every pair of a split."""
        found = []
        for pair in self.pairs:
            if self.split[pair.instruction_id] != split:
                continue
            for order in PAIRWISE.orders:
                id = self.text(records.content_id("prompt", pair.id, order))
                turn = {"role": "user", "content": self.text(f"Which is better, in {order}?")}
                label = "A" if order == "ab" else "B"
                prompt = Prompt(id=id, pair_id=pair.id, order=order, messages=(turn,), label=label)
                found.append((pair.instruction_id, prompt))
        return found

    def judgment(self, prompt: Prompt, iteration: int, sample: int, skill: float) -> Judgment:
        """A judgment that is right with probability `skill` where it says anything."""
        luck = self.random.random()
        letter = prompt.label if self.random.random() < skill else "BA"[prompt.label == "B"]
        failure, forced, verdict = None, False, letter
        if luck < 0.35 - 0.15 * iteration:
            failure, forced = self.text("no_verdict"), True
        elif luck < 0.4 - 0.15 * iteration:
            failure, verdict = self.text("cut_off"), None
        elif luck > 0.98:
            verdict = "tie"
        text = self.text(
            f"Judge {iteration}: the first answer is fuller.\n\nVerdict: [[{verdict}]]"
        )
        return Judgment(
            id=self.text(records.content_id("judgment", prompt.id, iteration, sample)),
            prompt_id=prompt.id, judge=self.text("judge"), iteration=iteration, sample=sample,
            text=text, token_ids=(1, 2, 3), verdict=verdict, failure=failure, forced=forced,
            finish_reason="length" if verdict is None else "stop", free_tokens=3,
        )  # fmt: skip

    def annotate(self, iteration: IterationDir) -> FakeRun:
        """Judgments of the training prompts in waves, until one is correct."""
        owned = self.prompts("train")
        self.write(iteration.prompts, owned)
        judgments: list[tuple[str, Judgment]] = []
        for owner, prompt in owned:
            drawn: list[Judgment] = []
            for wave in WAVES:
                for _ in range(wave):
                    drawn.append(self.judgment(prompt, iteration.index - 1, len(drawn), 0.45))
                if any(each.verdict == prompt.label for each in drawn):
                    break
            judgments += [(owner, each) for each in drawn]
        self.write(iteration.judgments, judgments)
        self.judgments = judgments
        self.log("work", stage="annotate", iteration=iteration.index, rows=len(owned),
                 prompt_tokens=50000, cached_prompt_tokens=30000, new_tokens=18000, flops=1.4e13,
                 seconds=61.0)  # fmt: skip
        return self

    def curate(self, iteration: IterationDir) -> FakeRun:
        """The first correct judgment of each prompt, as many of each letter."""
        labels = {prompt.id: (owner, prompt) for owner, prompt in self.prompts("train")}
        best: dict[str, Judgment] = {}
        for _, each in self.judgments:
            if each.verdict == labels[each.prompt_id][1].label:
                best.setdefault(each.prompt_id, each)
        letters: dict[str, list[Judgment]] = {"A": [], "B": []}
        for id, each in best.items():
            letters[labels[id][1].label].append(each)
        fewest = min(len(of) for of in letters.values())
        kept = [each for of in letters.values() for each in of[:fewest]]
        rows = []
        for each in kept:
            owner, prompt = labels[each.prompt_id]
            rows.append((owner, TrainingExample(
                id=records.content_id("training", each.id), prompt_id=prompt.id,
                judgment_id=each.id, label=prompt.label, messages=prompt.messages,
                completion=each.text, completion_ids=each.token_ids, forced=each.forced,
            )))  # fmt: skip
        self.write(iteration.training, rows)
        dropped = Counter({self.text("no_correct"): len(labels) - len(best)})
        dropped["balance"] = len(best) - len(kept)
        files.write_json(
            iteration.curation, {"kept": {"A": fewest, "B": fewest}, "dropped": dict(dropped)}
        )
        return self

    def finetune(self, iteration: IterationDir, steps: int = 24) -> FakeRun:
        """A falling loss, a validation every eight steps, a step that was done twice."""
        losses = [1.9 / (1 + 0.15 * step) + 0.05 * self.random.random() for step in range(steps)]
        curve = {
            "steps": [
                {"step": n + 1, "loss": loss, "tokens": 900} for n, loss in enumerate(losses)
            ],
            "validations": [{"step": n, "accuracy": 0.5 + n / 100} for n in range(8, steps + 1, 8)],
            "best_step": 8 * (steps // 8),
            "too_long": [self.text("a row that is too long")],
        }
        files.write_json(iteration.loss_curve, curve)
        for step in [*range(1, steps + 1), steps]:
            self.log("train_step", iteration=iteration.index, step=step, tokens=900, flops=5e11,
                     seconds=2.0)  # fmt: skip
        return self

    def evaluate(self, iteration: IterationDir) -> FakeRun:
        """Every held-out prompt judged by a judge that gets better from iteration to iteration."""
        owned = self.prompts("heldout")
        judgments = [
            (owner, self.judgment(prompt, iteration.index, sample, 0.5 + 0.12 * iteration.index))
            for owner, prompt in owned
            for sample in range(VOTES)
        ]
        self.write(iteration.heldout.prompts, owned)
        self.write(iteration.heldout.judgments, judgments)
        result = measure(
            PAIRWISE, (row for _, row in owned), (row for _, row in judgments), bootstrap=300
        )
        told = {"judge": self.text("judge"), "iteration": iteration.index,
                "what": self.text("agreement with constructed labels")}  # fmt: skip
        files.write_json(iteration.evaluation, {**told, **result})
        self.log("work", stage=self.text("evaluate"), iteration=iteration.index, rows=len(owned),
                 prompt_tokens=30000, cached_prompt_tokens=12000, new_tokens=15000, flops=1.1e13,
                 seconds=50.0)  # fmt: skip
        return self

    def whole(self) -> FakeRun:
        """All of it: the seed's evaluation and two iterations."""
        self.begin().select().make_pairs().evaluate(self.run.iteration(0))
        for index in (1, 2):
            iteration = self.run.iteration(index)
            self.annotate(iteration).curate(iteration).finetune(iteration).evaluate(iteration)
        return self


@pytest.fixture
def fake_run(tmp_path: Path) -> Callable[..., FakeRun]:
    """A builder of made-up runs in this test's directory."""

    def build(name: str = "run", **knobs: Any) -> FakeRun:
        return FakeRun(tmp_path / name, **knobs)

    return build


@pytest.fixture
def own_run(whole_run: RunDir, tmp_path: Path) -> RunDir:
    """A finished made-up run of this test's own, to change at will."""
    return RunDir(epath.Path(shutil.copytree(whole_run.root, tmp_path / "own")))


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A finished made-up run; tests only read it."""
    return FakeRun(tmp_path_factory.mktemp("whole") / "run").whole().run
