"""What an evaluation shows at the prompt, and what it warns of."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from etils import epath

from ste_jax.cli import main
from ste_jax.commands.advice import for_no_verdict
from ste_jax.config.identity import fingerprint
from ste_jax.records import Instruction, Judgment, Prompt, instruction_id, make_pair
from ste_jax.run import marks
from ste_jax.run.layout import JudgedDir
from ste_jax.system import files
from ste_jax.tasks import TASKS

USUAL = {"--force-verdict": False, "--max-new-tokens": 64, "usual prompt": True}
Said = Callable[[int, Prompt], dict[str, Any]]


def evaluation(root: Path, said: Said, pairs: int = 40, votes: int = 1) -> str:
    """An evaluation as `ste evaluate` leaves it. `said` gives fields of a judgment, by the number
    of its pair and its prompt."""
    task, out = TASKS["pairwise"], epath.Path(root)
    template = task.load_template("")
    prompts, judgments = [], []
    for number in range(pairs):
        messages = ({"role": "user", "content": f"question {number}"},)
        row = Instruction(id=instruction_id(messages), messages=messages, source="x")  # type: ignore[arg-type]
        pair = make_pair(row, chosen="good", rejected="bad", modified_instruction="", source="x")
        for prompt in task.prompts(pair, template):
            prompts.append(prompt)
            judgments += [
                _judgment(prompt, sample, said(number, prompt)) for sample in range(votes)
            ]
    judged = JudgedDir(out, 8)
    judged.prompts.write(0, prompts)
    judged.judgments.write(0, judgments)
    files.write_twice(out / "benchmark.json", {"benchmark": "pairs", "data": "mine.jsonl"})
    marks.mark(out / "evaluate.mark.json", fingerprint("evaluate", 1, [], named=USUAL))
    asked = {"benchmark": "pairs", "model": "runs/mine", "judge": "judge"}
    files.write_json(out / "evaluation.json", asked)
    return str(root)


def _judgment(prompt: Prompt, sample: int, said: dict[str, Any]) -> Judgment:
    usual: dict[str, Any] = {
        "id": f"{prompt.id}/{sample}",
        "text": "",
        "verdict": prompt.label,
        "failure": None,
        "forced": False,
        "finish_reason": "stop",
    }
    fixed = {"prompt_id": prompt.id, "judge": "judge", "iteration": 0, "sample": sample}
    return Judgment(token_ids=(), free_tokens=0, **fixed, **{**usual, **said})


def shown(out: str, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    capsys.readouterr()
    assert main(["score", out, "--bootstrap", "100", *more]) == 0
    return capsys.readouterr().out


def lines_of(text: str) -> dict[str, list[str]]:
    """The rows of the table: title -> its cells."""
    rows = [line.split("  ") for line in text.splitlines() if "[" in line]
    return {first: [cell.strip() for cell in cells if cell] for first, *cells in rows}


def test_a_short_table_and_where_the_rest_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = evaluation(tmp_path, lambda n, prompt: {} if n % 4 else {"verdict": "A"})
    text = shown(out, capsys)
    assert text.startswith("runs/mine on mine.jsonl (pairs)\n40 pairs, each judged in both orders")
    rows = lines_of(text)
    assert list(rows) == ["right", "right in both orders", "A among A and B", "no verdict"]
    assert rows["right"][0].startswith("0.875 [") and rows["right"][1] == "0.500"
    assert rows["right in both orders"][0].startswith("0.750 [")
    assert "warning" not in text and text.endswith(f"{tmp_path}/evaluation.json, or --json\n")
    assert max(map(len, text.splitlines()[:-1])) <= 80
    assert json.loads(shown(out, capsys, "--json"))["accuracy"] == 0.875


def test_votes_have_rows_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(evaluation(tmp_path, lambda n, prompt: {}, votes=3), capsys)
    assert "3 votes" in text and "majority right in both orders" in text


def test_what_was_not_asked_is_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(number: int, prompt: Prompt) -> dict[str, Any]:
        nothing = {"verdict": None, "finish_reason": "error"}
        if number < 3:
            why = "1,500 tokens are more than the model's 1,024 positions"
            return {**nothing, "failure": "too_long", "text": why}
        return {**nothing, "failure": "error", "text": "a strange role"} if number == 3 else {}

    text = shown(evaluation(tmp_path, said), capsys)
    assert "warning: 3 of 40 pairs were not asked" in text and "the model's 1,024 positions" in text
    assert "warning: 2 judgments could not be asked for" in text and "a strange role" in text
    assert "try" not in text  # 2 of 74 are few


@pytest.mark.parametrize(("failing", "warned"), [(8, False), (10, True)])
def test_advice_where_more_than_a_fifth_has_no_verdict(
    failing: int, warned: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    silent = {"verdict": None, "failure": "no_verdict"}
    text = shown(evaluation(tmp_path, lambda n, prompt: silent if n < failing else {}), capsys)
    assert ("warning: 25% of the judgments ended without a verdict" in text) == warned
    assert ("try `--template small-judge --force-verdict`, with another --out" in text) == warned
    assert ("(20 no verdict)" in text) == warned


def test_verdicts_by_force_are_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forced = {"forced": True, "failure": "cut_off", "verdict": "A"}
    text = shown(evaluation(tmp_path, lambda n, prompt: forced if n < 20 else {}), capsys)
    assert lines_of(text)["verdict by force"][0].startswith("0.500")
    assert lines_of(text)["right, of those without force"][0].startswith("1.000")
    assert "50% of the judgments ended without a verdict and were made to choose" in text


def test_a_judge_that_goes_by_the_place_is_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(evaluation(tmp_path, lambda n, prompt: {"verdict": "A"}), capsys)
    assert "warning: A is 100% of the verdicts" in text


@pytest.mark.parametrize(("pairs", "few"), [(1, True), (2, True), (29, True), (30, False)])
def test_of_few_pairs_it_is_said_that_they_are_few_and_nothing_else(
    pairs: int, few: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(evaluation(tmp_path, lambda n, prompt: {"verdict": "A"}, pairs), capsys)
    (warning,) = [line for line in text.splitlines() if line.startswith("warning: ")]
    assert warning.endswith("to say anything about a judge") == few
    assert warning.startswith("warning: A is 100% of the verdicts") == (not few)


@pytest.mark.parametrize(
    ("task", "asked", "failures", "advice"),
    [
        ("pairwise", {}, {"no_verdict": 1}, "`--template small-judge --force-verdict`"),
        (
            "pairwise",
            {},
            {"no_verdict": 1, "cut_off": 2},
            "`--template small-judge --force-verdict` or a larger `--max-new-tokens` than 64",
        ),
        ("pairwise", {"usual prompt": False}, {"no_verdict": 1}, "`--force-verdict`"),
        ("pairwise", {"--force-verdict": True}, {}, "`--template small-judge`"),
        ("pairwise", {"--force-verdict": True, "usual prompt": False}, {"no_verdict": 1}, ""),
        ("pointwise", {}, {"no_verdict": 1}, "`--force-verdict`"),
    ],
)
def test_the_advice_fits(
    task: str, asked: dict[str, Any], failures: dict[str, int], advice: str
) -> None:
    assert for_no_verdict(TASKS[task], {**USUAL, **asked}, failures) == advice
