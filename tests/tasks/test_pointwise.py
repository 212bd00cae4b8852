"""What a judge's score is, what is none, and what two of them come to."""

from __future__ import annotations

from pathlib import Path

import pytest
from etils import epath
from hypothesis import given
from hypothesis import strategies as st

from ste_jax.config.load import load_config
from ste_jax.config.schema import AnnotateKnobs, CurateKnobs, JudgeKnobs
from ste_jax.evaluation.metrics import measure
from ste_jax.generation import Message, Sampling
from ste_jax.pipeline.evaluate import check_sets
from ste_jax.pipeline.phases import check_phases
from ste_jax.records import Instruction, Judgment, Pair, instruction_id, make_pair
from ste_jax.run.layout import RunDir
from ste_jax.stages.annotate import annotate
from ste_jax.stages.curate import curate, training_examples
from ste_jax.stages.judge import Judge, build_prompts
from ste_jax.stages.roles import Role
from ste_jax.system.errors import RequestError, WorkError
from ste_jax.tasks.pointwise import POINTWISE, parse_score
from tests.stages.scripted import Scripted

SCORES = [str(score) for score in range(1, 11)]


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Good.\n[[7]]", "7"),
        ("It is right throughout. [[10]]", "10"),
        ("**[[3]]**", "3"),
        ("[[4]] at first, and in the end [[4]]", "4"),
        ("It ends with `[[9]]`.\n\n[[2]]", "2"),  # code
        ('The answer says "[[9]]".\n[[2]]', "2"),  # a quotation
        ("> [[9]]\n\n[[2]]", "2"),  # a block quote
        ("```\n[[9]]\n```\n[[2]]", "2"),
        ('My score: "[[6]]"\n"[[6]]"', "6"),  # alone on the last line, as some prompts ask for it
        ("<think>\nsay [[1]]?\n</think>\n[[8]]", "8"),
    ],
)
def test_a_score_is_the_judges_own(text: str, score: str) -> None:
    assert parse_score(text) == (score, None)
    assert parse_score(text.replace("\n", "\r\n")) == (score, None)


@pytest.mark.parametrize(
    ("text", "failure"),
    [
        ("[[11]]", "out_of_range"),
        ("[[0]]", "out_of_range"),
        ("[[-3]]", "out_of_range"),
        ("[[100]]", "out_of_range"),
        ("[[7.5]]", "not_whole"),
        ("[[7,5]]", "not_whole"),
        ("[[7/10]]", "not_whole"),
        ("[[7]] or rather [[8]]", "conflict"),
        ("[[7]] of [[7/10]]", "conflict"),
        ("[[11]]\n[[10]]", "conflict"),
        ("seven", "no_verdict"),
        ("[7]", "no_verdict"),
        ("[[07]]", "no_verdict"),
        ("[[ 7 ]]", "no_verdict"),
        ("[[[7]]]", "no_verdict"),
        ("[[N]]", "no_verdict"),
        ("[[seven]]", "no_verdict"),
        ("[[A]]", "no_verdict"),
        ("`[[7]]` is what I would", "no_verdict"),
        ("", "no_verdict"),
        ("<think>\n[[7]]", "no_verdict"),
    ],
)
def test_what_is_no_score_is_said_how(text: str, failure: str) -> None:
    assert parse_score(text) == (None, failure)


def test_of_a_text_that_was_cut_off_a_score_must_stand_alone() -> None:
    assert parse_score("Fine.\n[[7]]\nThat", "length") == ("7", None)
    assert parse_score("Fine. [[7]] would be", "length") == (None, "cut_off")
    assert parse_score("Fi", "length") == (None, "cut_off")
    assert parse_score("[[77]]", "length") == (None, "out_of_range")


@given(score=st.sampled_from(SCORES), before=st.text("ab .\n", max_size=40))
def test_a_score_at_the_end_is_read_whatever_plain_text_is_before(score: str, before: str) -> None:
    assert parse_score(f"{before}\n\n[[{score}]]") == (score, None)


@given(text=st.text("[]0123456789.,/-`\"'> \nab", max_size=60), cut=st.booleans())
def test_no_text_gives_both_or_neither_and_only_scores(text: str, cut: bool) -> None:
    verdict, failure = parse_score(text, "length" if cut else "stop")
    assert (verdict is None) != (failure is None)
    assert verdict is None or (verdict in SCORES and f"[[{verdict}]]" in text)


@given(number=st.integers(-(10**8), 10**8))
def test_every_whole_number_is_a_score_or_out_of_range(number: int) -> None:
    inside = 1 <= number <= 10
    wanted = (str(number), None) if inside else (None, "out_of_range")
    assert parse_score(f"[[{number}]]") == wanted


@pytest.mark.parametrize("piece", ["[[", "[[7", "`[[7]]", '"[[7]]', "> [[7]]\n", "<think>"])
def test_it_is_linear(piece: str) -> None:
    assert parse_score(piece * 4000 + "\n\n[[7]]").verdict in ("7", None)


# ---------------------------------------------------------------------------------------------
# Questions of two prompts


def pair(number: int = 0) -> Pair:
    messages = (Message(role="user", content=f"question {number}"),)
    row = Instruction(id=instruction_id(messages), messages=messages, source="test")
    return make_pair(row, chosen="good", rejected="bad", modified_instruction="m", source="t")


JUDGE = Judge(
    role=Role(
        name="judge",
        template=POINTWISE.load_template(""),
        sampling=Sampling(max_new_tokens=64, temperature=0.7),
        key=7,
    ),
    knobs=JudgeKnobs(task="pointwise", force_verdict=True),
    model="m",
    iteration=1,
)
PROMPTS = [
    prompt
    for n in range(6)
    for prompt in build_prompts(POINTWISE, pair(n), JUDGE.role.template, "both")
]
QUESTIONS = POINTWISE.questions(PROMPTS)


def test_each_answer_is_shown_by_itself_and_not_which_it_is() -> None:
    (question,) = POINTWISE.questions(PROMPTS[:2])
    chosen, rejected = question.prompts
    texts = [prompt.messages[-1]["content"] for prompt in (chosen, rejected)]
    assert "good" in texts[0] and "bad" not in texts[0]
    assert texts[0].replace("good", "bad") == texts[1]
    assert "chosen" not in texts[0] and chosen.label == rejected.label == ""
    assert question.id == chosen.pair_id and chosen.id != rejected.id


def test_a_question_needs_both_prompts() -> None:
    with pytest.raises(WorkError, match="has the prompts chosen; pointwise asks chosen, rejected"):
        POINTWISE.questions(PROMPTS[:1])


@pytest.mark.parametrize(
    ("scores", "outcome"),
    [
        (("7", "4"), "chosen"),
        (("10", "9"), "chosen"),  # as numbers, not as texts
        (("9", "10"), "rejected"),
        (("5", "5"), "tie"),
        (("5", None), None),
        ((None, "5"), None),
    ],
)
def test_right_is_the_higher_score_of_the_better_answer(scores, outcome) -> None:
    assert POINTWISE.outcome(QUESTIONS[0], scores) == outcome


def test_waves_are_drawn_of_both_answers_until_one_sample_is_right() -> None:
    def reply(request, sample):
        better = "good" in request.messages[-1]["content"]
        # the highest score of the worse answer and the lowest of the better are of other samples
        return f"[[{(2, 9, 8)[sample] if better else (5, 9, 4)[sample]}]]"

    generator = Scripted(reply)
    knobs = AnnotateKnobs(samples=3, waves=(1,), policy="first_correct")
    found = dict_of(annotate(QUESTIONS[:2], generator, JUDGE, knobs))
    for judgments in found.values():
        assert [each.sample for each in judgments] == [0, 0, 1, 1, 2, 2]
    assert sorted(generator.released) == sorted(prompt.id for prompt in PROMPTS[:4])


def dict_of(found) -> dict[str, list[Judgment]]:
    return {question.id: judgments for question, judgments in found}


def test_a_judgment_without_a_score_is_made_to_score() -> None:
    generator = Scripted(lambda request, _: "8]]" if "/force/" in request.id else "Hm.")
    knobs = AnnotateKnobs(samples=1, waves=(1,))
    ((_, judgments),) = annotate(QUESTIONS[:1], generator, JUDGE, knobs)
    assert [(each.verdict, each.forced, each.failure) for each in judgments] == [
        ("8", True, "no_verdict")
    ] * 2
    assert judgments[0].text == "Hm.\n\nScore: [[8]]"


def judgment(prompt_id: str, sample: int, score: str | None, **changes) -> Judgment:
    values = {
        "id": f"{prompt_id}/{sample}",
        "prompt_id": prompt_id,
        "judge": "m",
        "iteration": 1,
        "sample": sample,
        "text": f"[[{score}]]",
        "token_ids": (1,),
        "verdict": score,
        "failure": None if score else "no_verdict",
        "forced": False,
        "finish_reason": "stop",
        "free_tokens": 1,
    }
    return Judgment(**{**values, **changes})


def judged(*scores: list[tuple[str | None, str | None]]) -> list[Judgment]:
    """`scores[question][sample]`: of the chosen and of the rejected answer."""
    return [
        judgment(prompt.id, sample, both[place])
        for question, samples in zip(QUESTIONS, scores, strict=False)
        for sample, both in enumerate(samples)
        for place, prompt in enumerate(question.prompts)
    ]


def test_both_judgments_of_a_right_question_are_trained_on() -> None:
    judgments = judged(
        [("3", "3"), ("7", "4")],  # a tie, then right
        [("2", "4"), ("1", "9")],  # never right
        [(None, "4"), (None, None)],
        [("9", "1"), ("9", "2")],
    )
    found = curate(POINTWISE, PROMPTS[:8], judgments, CurateKnobs())
    first, second = QUESTIONS[0].prompts
    assert {id: found.kept[id] for id in (first.id, second.id)} == {
        first.id: f"{first.id}/1",
        second.id: f"{second.id}/1",
    }
    assert len(found.kept) == 4 and found.kept_by_class == {"chosen": 2, "rejected": 0}
    assert found.dropped == {"no_correct": 1, "no_verdict": 1}
    rows = training_examples(
        POINTWISE, PROMPTS[:8], judgments, lambda each: found.kept.get(each.prompt_id) == each.id
    )
    assert sorted(row.label for row in rows) == ["1", "4", "7", "9"]


def test_judgments_need_not_come_together() -> None:
    judgments = judged([("7", "4")], [("2", "4")], [("9", "1")])
    knobs = CurateKnobs()
    one = curate(POINTWISE, PROMPTS[:6], judgments, knobs)
    assert curate(POINTWISE, PROMPTS[:6][::-1], judgments[::-1], knobs) == one


def test_measures_are_over_pairs_of_scores() -> None:
    judgments = judged(
        [("7", "4"), ("7", "8"), ("9", "4")],
        [("2", "4"), ("3", "4"), ("2", "2")],
        [("5", "5"), ("6", "5"), ("6", "5")],
        [(None, "5"), ("6", "5"), ("5", "6")],
    )
    found = measure(POINTWISE, PROMPTS[:8], judgments, bootstrap=20)
    shares = {
        "n": 4,
        "n_prompts": 8,
        "accuracy": 1 / 4,
        "ties": 1 / 4,
        "unparsed": 1 / 4,
        "majority_accuracy": 2 / 4,
        "majority_undecided": 1 / 4,
        "parsed_unforced": 3 / 4,
        "failures": {"no_verdict": 1},
    }
    assert {name: found[name] for name in shares} == shares
    assert not {"consistent_accuracy", "share_a"} & set(found)


def test_a_pair_of_which_one_answer_is_too_long_is_in_no_share() -> None:
    judgments = judged([("7", "4")], [("8", "2")])
    gone = judgments[3]
    judgments[3] = judgment(gone.prompt_id, 0, None, failure="too_long", finish_reason="error")
    found = measure(POINTWISE, PROMPTS[:4], judgments, bootstrap=5)
    assert (found["n_too_long"], found["n_prompts_too_long"], found["accuracy"]) == (1, 1, 1.0)


# ---------------------------------------------------------------------------------------------
# Configs


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["judge.task=scores"], "judge.task is 'scores', which is none of pairwise, pointwise"),
        (
            ["judge.task=pointwise", "finetune.stages=[sft,dpo]", "evaluate.sets=[]"],
            "finetune.stages has dpo, which pairs two judgments of one prompt",
        ),
        (
            ["judge.task=pointwise", "evaluate.sets=[]", "annotate.orders=one"],
            "annotate.orders=one chooses among a pair's questions",
        ),
    ],
)
def test_what_a_task_cannot_do_is_refused(changes: list[str], told: str) -> None:
    with pytest.raises(RequestError) as caught:
        check_phases(load_config("pico", changes))
    assert told in str(caught.value)


def test_steps_that_only_judgments_of_pairs_have_are_refused_before_a_run(tmp_path: Path) -> None:
    asked = load_config("pico", ["judge.task=pointwise"])
    with pytest.raises(RequestError, match=r"evaluate\.sets: same-task.*task=pairwise, not of poi"):
        check_sets(asked, RunDir(epath.Path(tmp_path)))


def test_a_config_takes_from_the_task_what_it_does_not_say() -> None:
    usual = load_config("smollm2-135m", ["roles.judge.template=''"])
    assert usual.roles.judge.template == "judge"
    empty = ["roles.judge.template=''", "judge.force_text=''"]
    scores = load_config("smollm2-135m", [*empty, "judge.task=pointwise"])
    assert scores.roles.judge.template == "score"
    assert scores.judge.force_text == "\n\nScore: [["
    own = load_config("smollm2-135m", ["judge.force_text=' So [['"])
    assert own.judge.force_text == " So [["
