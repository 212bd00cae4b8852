"""Do compared runs differ in what they are said to differ in, and are they counted right?"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from benchmarks import pico_ablation, pico_seeds, tokenizer_libraries
from benchmarks.cells import (
    SETS,
    Cell,
    Hits,
    both_parsed,
    by_letter,
    evaluations,
    hits,
    kept,
    reasoned,
    rightly_labelled,
    run_cell,
    shuffle_labels,
    taught,
)
from benchmarks.decoding import cpu, gpu, limit, peers, recipe, work
from benchmarks.training import limit as limit_training
from benchmarks.training import ours as ours_training
from benchmarks.training import peers as peers_training
from benchmarks.training import work as training
from ste_jax.models.config import ModelConfig
from ste_jax.records import Judgment, Pair, Prompt
from ste_jax.run.layout import RunDir
from ste_jax.system import files
from ste_jax.system.errors import WorkError
from ste_jax.tokenization.load import load_tokenizer
from ste_jax.tokenization.tokenizer import Tokenizer
from tests import chats, sentencepieces
from tests.comparing import assert_same_files
from tests.pipeline.test_labelled_sets import write_pairs


@pytest.fixture(scope="module")
def shuffled(finished, tmp_path_factory):
    """A cell that goes on from the finished run with shuffled labels: (it, how to run it again)."""
    base, config = finished
    root = tmp_path_factory.mktemp("cells")
    write_pairs(root / "words.jsonl", 12)
    measure = f"evaluate.sets=[{{name: words, data: {root / 'words.jsonl'}}}]"
    cell = Cell(name="shuffled", title="shuffled", overrides=(measure,), prepare=shuffle_labels)

    def again():
        return run_cell(cell, str(config), 0, root / "shuffled", Path(base.root))

    return again(), again


def test_shuffling_turns_half_of_the_pairs_but_none_that_is_held_out(finished, shuffled):
    base, cell = finished[0], shuffled[0]
    before = {pair.id: pair for pair in base.pairs.rows()}
    after = {pair.id: pair for pair in cell.pairs.rows()}
    assert before.keys() == after.keys()
    turned = {id for id, pair in after.items() if pair.chosen != before[id].chosen}
    assert all(after[id].chosen == before[id].rejected for id in turned)
    split = {row.id: row.split for row in base.selected.rows()}
    of = {name: {id for id, pair in before.items() if split[pair.instruction_id] == name}
          for name in ("train", "validation", "heldout")}  # fmt: skip
    assert not turned & of["heldout"]
    assert 0.3 < len(turned & of["train"]) / len(of["train"]) < 0.7
    assert turned & of["validation"]


def test_a_cell_shares_what_came_before_and_trains_on_what_it_changed(finished, shuffled):
    base, cell = finished[0], shuffled[0]
    for pattern in ("instructions/**/*.parquet", "iterations/0/evaluation/judgments/*.parquet"):
        assert_same_files(Path(base.root), Path(cell.root), pattern)
    pairs = {pair.id: pair for pair in cell.pairs.rows()}
    for prompt in cell.iteration(1).prompts.rows():
        pair = pairs[prompt.pair_id]
        a, b = (pair.chosen, pair.rejected)[:: 1 if prompt.label == "A" else -1]
        assert prompt.messages[-1]["content"].endswith(f"\n {a}\n {b}")


def test_a_finished_cell_does_nothing_more(shuffled):
    cell, again = shuffled
    before = cell.metrics.read_text().count('"work"')
    again()
    assert cell.metrics.read_text().count('"work"') == before


def test_a_cell_whose_pairs_were_made_anew_is_refused(shuffled):
    cell, again = shuffled
    mark = Path(cell.root) / "copied_pairs.sha256"
    copied = mark.read_text()
    mark.write_text("another")
    try:
        with pytest.raises(WorkError, match=r"shuffled were made anew"):
            again()
    finally:
        mark.write_text(copied)


def test_runs_are_counted_as_they_are_evaluated(shuffled):
    cell, _ = shuffled
    curve = hits([cell], ["words"]).accuracies()
    measured = [each["sets"]["words"] for each in evaluations(cell)]
    assert [each["accuracy"] for each in curve] == [each["accuracy"] for each in measured]
    twice = hits([cell, cell], ["words"])
    assert twice.asked == 4
    assert [each["accuracy"] for each in twice.accuracies()] == [each["accuracy"] for each in curve]
    n, _, last = both_parsed(cell, "words")
    assert (
        n <= measured[-1]["n_prompts"]
        and last * n <= measured[-1]["accuracy"] * measured[-1]["n_prompts"]
    )
    assert kept(cell) == [len(list(each.training.rows())) for each in cell.iterations()[1:]]
    learnt = taught(cell)
    assert [each["judgments"] for each in learnt] == kept(cell)
    assert [each["of no task"] for each in learnt] == kept(cell), "of the tiny model's words"


@pytest.mark.parametrize(
    ("chosen", "rejected", "right"),
    [
        ("It is 85.", "It is 75.", True),
        ("It is 75.", "It is 65.", False),
        ("It is 85.", "85", False),
    ],
)
def test_a_pair_is_rightly_labelled_where_its_chosen_answer_alone_is_right(chosen, rejected, right):
    pair = Pair(
        id="p",
        instruction_id="i",
        messages=({"role": "user", "content": "What is 47 + 38?"},),
        chosen=chosen,
        rejected=rejected,
        modified_instruction="",
        source="",
    )
    assert rightly_labelled(pair) == right


SAID = {
    "right": "9 + 4 = 13. The answer is 13.\nA says 13 against 13: same.\n"
    "B says 12 against 13: different.\n[[A]]",
    "ends wrong": "9 + 4 = 13. The answer is 13.\nA says 12 against 13: different.\n"
    "B says 13 against 13: same.\n[[A]]",
    "leads nowhere": "9 + 4 = 14. The answer is 14.\nA says 12 against 14: different.\n"
    "B says 13 against 14: different.\n[[B]]",
}


def judgment(prompt: Prompt, text: str) -> Judgment:
    return Judgment(
        id=f"{prompt.id}-0",
        prompt_id=prompt.id,
        judge="",
        iteration=0,
        sample=0,
        text=text,
        token_ids=(),
        verdict=text[-3],
        failure=None,
        forced=False,
        finish_reason="stop",
        free_tokens=0,
    )


@pytest.fixture
def judged_by_hand(tmp_path):
    """A run of two judges on one pair in each set. With the right answer first the seed is right;
    with the other order it checks rightly and ends wrong, the last judge ends right by chance."""
    run = RunDir(epath.Path(tmp_path))
    files.write_json(run.manifest, {"shards": 1, "iterations": 1})
    for number, name in enumerate(SETS):
        pair = Pair(
            id=f"p{number}",
            instruction_id="i",
            messages=({"role": "user", "content": "What is 9 + 4?"},),
            chosen="13",
            rejected="12",
            modified_instruction="",
            source="",
        )
        run.labelled(name).write(0, [pair])
        prompts = [
            Prompt(id=f"{pair.id}{order}", pair_id=pair.id, order=order, label=label, messages=())
            for order, label in (("ab", "A"), ("ba", "B"))
        ]
        for iteration, said in ((0, ("right", "ends wrong")), (1, ("right", "leads nowhere"))):
            judged = run.iteration(iteration).labelled(name)
            judged.prompts.write(0, prompts)
            judged.judgments.write(
                0,
                [judgment(prompt, SAID[each]) for prompt, each in zip(prompts, said, strict=True)],
            )
    return run


def test_what_stands_behind_the_verdicts(judged_by_hand):
    seed, last = (by_letter(judged_by_hand, judge) for judge in (0, -1))
    assert seed == {"A": 1.0, "B": 0.0, "nowhere": 0.0, "led_to": 1.0}
    assert last == {"A": 1.0, "B": 1.0, "nowhere": 0.5, "led_to": 0.75}
    found = reasoned(judged_by_hand)
    assert found["gain"] == -0.5 and found["gain_ci95"] == [-0.5, -0.5]
    assert both_parsed(judged_by_hand, SETS[0]) == (2, 0.5, 1.0)
    counted = hits([judged_by_hand], SETS)
    assert [each["accuracy"] for each in counted.accuracies()] == [0.5, 1.0]


GOOD = {
    "accuracy_ci95": [0.9, 0.95],
    "consistent_accuracy": 0.91,
    "sound": 0.85,
    "unparsed": 0.0,
}
WEAK = {
    "accuracy_ci95": [0.6, 0.7],
    "consistent_accuracy": 0.3,
    "sound": 0.6,
    "unparsed": 0.01,
}


@pytest.mark.parametrize(
    ("seed", "last", "accuracies", "broken"),
    [
        ({}, {}, (0.65, 0.93), []),
        ({}, {}, (0.5, 0.93), ["within"]),
        ({}, {}, (0.65, 0.8), ["at most half"]),
        ({}, {"accuracy_ci95": [0.69, 0.8]}, (0.65, 0.93), ["same-task: the error"]),
        ({}, {"sound": 0.59}, (0.65, 0.93), ["right in every step does not"]),
        ({}, {"gain_ci95": [-0.2, -0.1]}, (0.65, 0.93), ["before the verdict"]),
        (
            {"consistent_accuracy": 0.95},
            {"consistent_accuracy": 0.0},
            (0.65, 0.93),
            ["both orders: up", "at least 0.90"],
        ),
        ({"accuracy_ci95": [0.6, 0.91]}, {}, (0.65, 0.93), ["same-task: the error"]),
        ({"unparsed": 0.04}, {}, (0.65, 0.93), ["unparsed"]),
        ({}, {"consistent_accuracy": 0.85}, (0.65, 0.93), ["at least 0.90"]),
    ],
)
def test_every_claim_can_fail(monkeypatch, seed, last, accuracies, broken):
    judged = [
        {"sets": {"same-task": {**whole, **one}, "other-task": whole}}
        for whole, one in ((WEAK, seed), (GOOD, last))
    ]
    monkeypatch.setattr(pico_seeds, "evaluations", lambda run: judged)
    curve = [{"accuracy": a, "accuracy_ci95": [a - 0.02, a + 0.02]} for a in accuracies]
    reasoning = {"gain_ci95": [-0.1, 0.1], **last}
    found = [claim for claim, holds in pico_seeds.claims(None, curve, reasoning) if not holds]
    assert len(found) == len(broken)
    assert all(part in claim for part, claim in zip(broken, found, strict=True))


def test_controls_are_held_against_runs_on_as_many_judgments():
    loose, fewer = pico_ablation.halved(101)
    assert "curate.limit=50" in loose.overrides and "curate.limit=50" in fewer.overrides
    assert "curate.verdicts=any" in loose.overrides
    seed = [0, 1, 0, 1] * 25
    whole, low = Hits(np.array([seed, [2] * 100]), 2), Hits(np.array([seed, seed]), 2)
    counted = {"the recipe": whole, fewer.title: whole, loose.title: low, "labels shuffled": whole}
    found = dict(pico_ablation.controls(counted))
    assert [holds for claim, holds in found.items() if claim.startswith(loose.title)] == [True]
    assert [holds for claim, holds in found.items() if claim.startswith("labels")] == [False]


def test_the_share_of_a_gain():
    whole = Hits(np.array([[0, 1, 0, 1] * 25, [2, 2, 2, 1] * 25]), asked=2)
    part = Hits(np.array([[0, 1, 0, 1] * 25, [1, 1, 1, 1] * 25]), asked=2)
    gain = part.share_of_gain(whole)
    assert gain["share"] == pytest.approx(2 / 5)
    low, high = gain["share_ci95"]
    assert 0.3 < low < 2 / 5 < high < 0.5
    assert whole.share_of_gain(whole)["share_ci95"] == [1.0, 1.0]


def test_the_libraries_are_timed_and_compared(tmp_path, monkeypatch, capsys):
    template = chats.TEMPLATES["inst"]
    sentencepieces.write(tmp_path, sentencepieces.LLAMA2, template)
    command = ["x", "--directory", str(tmp_path), "--texts", "3", "--times", "1"]
    monkeypatch.setattr("sys.argv", command)
    assert tokenizer_libraries.main() == 0
    assert capsys.readouterr().out.count("code, ") == 4
    # A library that gives another id is noticed.
    real = Tokenizer.encode_batch
    fast = []

    def wrong(self, texts, **options):
        fast.append(self)
        return [ids[: None if self is fast[0] else -1] for ids in real(self, texts, **options)]

    tokenizers = [load_tokenizer(tmp_path, name) for name in ("tokenizers", "tensorflow_text")]
    monkeypatch.setattr(
        tokenizer_libraries, "load_tokenizer", lambda _, name: tokenizers[name != "tokenizers"]
    )
    monkeypatch.setattr(Tokenizer, "encode_batch", wrong)
    assert tokenizer_libraries.main() == 1


@pytest.mark.usefixtures("optimized")
def test_what_is_kept_does_not_hang_on_drawing_in_waves():
    found, _ = recipe.measure(pairs=6)
    assert found["same judgments kept"]
    first, every = found["first correct"], found["all at once"]
    assert first["samples"] < every["samples"] == 6 * 2 * recipe.SAMPLES


def test_the_limit_grows_with_the_work():
    tiny = dataclasses.replace(work.LLAMA_135M, num_layers=2, vocab_size=1024)
    little = work.Workload(prompts=((1,) * 64, (2,) * 64), samples=4, new_tokens=8)
    much = dataclasses.replace(little, new_tokens=800)
    one, two = (limit.seconds(tiny, each, work.knobs_for(each, 8)) for each in (little, much))
    assert set(one) == set(two) and all(value > 0 for value in one.values())
    assert two["steps, body"] > 10 * one["steps, body"]


@pytest.mark.parametrize(
    ("profile", "head", "stretches", "around"),
    [
        (cpu.step_profile, ["head"], ("prompt", "past"), "sample"),
        (cpu.piece_profile, ["no name"], ("prefix",), "norm"),  # those of `own` have no name
    ],
)
def test_a_profile_finds_every_product_of_the_limit(profile, head, stretches, around, monkeypatch):
    tiny = dataclasses.replace(work.LLAMA_135M, num_layers=2, vocab_size=1024)
    asked = work.Workload(prompts=((1,) * 512,) * 4, samples=16, new_tokens=32)
    monkeypatch.setattr(cpu, "SMALLEST", 0)
    plain, rows = profile(tiny, asked)
    assert plain > 0
    products = {row["milliseconds of"]: row["products"] for row in rows}
    for name in (*limit.linear(tiny), *head, "all"):
        assert products[name] > 0
    for stretch in stretches:
        assert products[f"{stretch}/scores"] > 0 and products[f"{stretch}/values"] > 0
    assert any(row["milliseconds of"] == around and row["around"] > 0 for row in rows)


def test_the_fastest_way_of_a_peer_does_the_work():
    def slow(asked: work.Workload) -> list[list[list[int]]]:
        time.sleep(0.2)
        return [[[7] * asked.new_tokens]]

    def quick(asked: work.Workload) -> list[list[list[int]]]:
        return [[[8] * asked.new_tokens]]

    def broken(asked: work.Workload) -> list[list[list[int]]]:
        raise RuntimeError("out of memory")

    asked = work.Workload(prompts=((1, 2),), samples=1, new_tokens=8)
    timed = peers.fastest("peer", {"slow": slow, "broken": broken, "quick": quick}, asked)
    assert timed.details["way"] == "quick" and timed.ids == [[[8] * 8]] and timed.new_tokens == 8
    assert set(timed.details["tokens/s in the trial"]) == {"slow", "quick"}


def test_a_step_must_read_its_weights_and_what_its_rows_share_once():
    config = dataclasses.replace(work.LLAMA_135M, tie_embeddings=True)
    one = work.Workload(prompts=((1,) * 100,), samples=2, new_tokens=10)
    token = 2 * 30 * 3 * 64
    read = 2 * (config.parameter_count() + 100 * token + 2 * 10 / 2 * token)
    assert gpu.step_bytes(config, one) == read


TRAINING = training.Training(
    config=ModelConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        max_position=64,
        tie_embeddings=True,
    ),
    rows=4,
    length=32,
    steps=3,
    accumulate=2,
)


def test_ours_and_the_peer_train_the_same_work() -> None:
    ours = ours_training.run(TRAINING)
    found = [ours, *(peers_training.run(TRAINING, way, 2) for way in ("own", "tail"))]
    # Random weights know nothing of the next token; half of the variance of their logits is what
    # the loss is above that of equal ones.
    for one, variance in zip(found, (1.0, 0.02**2 * 32, 0.02**2 * 32), strict=True):
        assert len(one["seconds of the steps"]) == 2
        assert one["peak bytes"] > 0
        assert one["losses"] == pytest.approx([np.log(256) + variance / 2] * 3, rel=0.05)
    # the two ways of the peer are one loss
    assert found[1]["losses"] == pytest.approx(found[2]["losses"], rel=1e-5)
    assert ours_training.run_saves(TRAINING, 2)["steps"] == 3
    assert all(value > 0 for value in limit_training.seconds(TRAINING).values())
