"""When is it enough: waves, policies, and the verdict that is forced."""

from __future__ import annotations

import pytest

from ste_jax.config.schema import AnnotateKnobs, DpoKnobs, JudgeKnobs
from ste_jax.generation import Sampling
from ste_jax.prompts.render import Template
from ste_jax.records import Instruction, instruction_id, make_pair
from ste_jax.stages.annotate import annotate, annotate_more, wants_more, waves
from ste_jax.stages.judge import Judge, build_prompts
from ste_jax.stages.roles import Role
from ste_jax.tasks import PAIRWISE
from tests.stages.scripted import Scripted


def make_judge(start: str = "", **knobs) -> Judge:
    template = Template(name="test", user="{instruction} {answer_a} | {answer_b}", start=start)
    sampling = Sampling(max_new_tokens=64, temperature=0.7)
    role = Role(name="judge", template=template, sampling=sampling, key=7)
    return Judge(role=role, knobs=JudgeKnobs(**knobs), model="m", iteration=1)


def prompts(judge: Judge, pairs: int = 3, orders="both"):
    made = []
    for n in range(pairs):
        messages = ({"role": "user", "content": f"question {n}"},)
        row = Instruction(id=instruction_id(messages), messages=messages, source="test")
        pair = make_pair(row, chosen="good", rejected="bad", modified_instruction="m", source="t")
        made += build_prompts(judge.task, pair, judge.role.template, orders)
    return made


def questions(judge: Judge):
    return PAIRWISE.questions(prompts(judge, 1))


def test_both_orders_and_their_labels():
    first, second = prompts(make_judge(), 1)
    assert (first.order, first.label) == ("ab", "A")
    assert (second.order, second.label) == ("ba", "B")
    assert first.messages[-1]["content"] == "question 0 good | bad"
    assert second.messages[-1]["content"] == "question 0 bad | good"
    assert first.id != second.id


def test_one_order_shows_each_pair_once_and_either_answer_first():
    judge = make_judge()
    made = prompts(judge, 200, orders="one")
    assert len({prompt.pair_id for prompt in made}) == len(made) == 200
    assert 70 < [prompt.label for prompt in made].count("A") < 130
    assert set(made_ids(made)) <= set(made_ids(prompts(judge, 200)))


def made_ids(made):
    return [prompt.id for prompt in made]


@pytest.mark.parametrize(
    ("samples", "sizes", "expected"),
    [
        (15, (2, 2, 4, 8), [(0, 1), (2, 3), (4, 5, 6, 7), tuple(range(8, 15))]),
        (5, (2,), [(0, 1), (2, 3), (4,)]),
        (1, (4,), [(0,)]),
    ],
)
def test_waves(samples, sizes, expected):
    assert list(waves(samples, sizes)) == expected


def test_first_correct_stops_after_the_wave_that_holds_one():
    judge = make_judge()
    knobs = AnnotateKnobs(samples=6, waves=(2,), policy="first_correct")
    generator = Scripted(lambda request, sample: "[[A]]" if sample < 3 else "[[B]]")
    drawn = {
        p.prompts[0].order: len(j) for p, j in annotate(questions(judge), generator, judge, knobs)
    }
    assert drawn == {"ab": 2, "ba": 4}


def test_all_draws_every_sample_and_releases_every_prompt():
    judge = make_judge()
    knobs = AnnotateKnobs(samples=6, waves=(2, 4), policy="all")
    generator = Scripted(lambda request, sample: "[[A]]")
    asked = prompts(judge)
    done = list(annotate(PAIRWISE.questions(asked), generator, judge, knobs))
    assert [len(judgments) for _, judgments in done] == [6] * 6
    assert sorted(generator.released) == sorted(prompt.id for prompt in asked)


def test_a_prompt_that_cannot_be_asked_is_asked_once():
    judge = make_judge(force_verdict=True)
    knobs = AnnotateKnobs(samples=8, waves=(2,), policy="all")
    for failure in ("error", "too_long"):
        generator = Scripted(lambda request, sample, kind=failure: ("4000 tokens", kind))
        ((_, judgments), *_) = annotate(questions(judge), generator, judge, knobs)
        assert [(j.failure, j.verdict, j.forced, j.text) for j in judgments] == [
            (failure, None, False, "4000 tokens")
        ] * 2


def test_more_are_drawn_until_one_has_failed_as_is_wanted():
    judge = make_judge().at(1.3)
    temperatures = set()

    def reply(request, sample):
        temperatures.add(request.sampling.temperature)
        return {5: "no verdict", 9: "[[B]]"}.get(sample, "[[A]]")

    asked = [prompt for prompt in prompts(judge) if prompt.label == "A"]
    knobs = AnnotateKnobs(samples=4, waves=(2,), policy="all")

    def drawn(**dpo):
        generator = Scripted(reply)
        found = annotate_more(PAIRWISE.questions(asked), generator, judge, knobs, DpoKnobs(**dpo))
        samples = {tuple(each.sample for each in judgments) for _, judgments in found}
        assert sorted(generator.released) == sorted(prompt.id for prompt in asked)
        return samples

    assert drawn(more_samples=8) == {(4, 5)}
    assert drawn(more_samples=8, negatives=("incorrect",)) == {(4, 5, 6, 7, 8, 9)}
    assert drawn(more_samples=3, negatives=("incorrect",)) == {(4, 5, 6)}
    assert temperatures == {1.3}


@pytest.mark.parametrize(
    ("texts", "kinds", "lacks"),
    [
        (("[[A]]", "[[A]]"), ("incorrect", "unparsed"), True),
        (("[[A]]", "[[B]]"), ("incorrect", "unparsed"), False),
        (("[[A]]", "nothing"), ("incorrect", "unparsed"), False),
        (("[[A]]", "nothing"), ("incorrect",), True),
        (("[[B]]", "nothing"), ("unparsed",), False),  # no correct one: more would not help
        (("[[B]]", "[[B]]"), ("unparsed",), False),
    ],
)
def test_more_are_wanted_where_there_is_a_correct_one_and_none_that_failed(texts, kinds, lacks):
    judge = make_judge()
    first = prompts(judge, 1)[:1]
    generator = Scripted(lambda request, sample: texts[sample])
    knobs = AnnotateKnobs(samples=2, waves=(2,), policy="all")
    ((question, judgments),) = annotate(PAIRWISE.questions(first), generator, judge, knobs)
    assert wants_more(question.prompts[0], judgments, kinds) is lacks


def test_a_judgment_without_a_verdict_is_made_to_choose():
    judge = make_judge(start="First,", force_verdict=True, force_text=" So: [[")

    def reply(request, sample):
        if request.continue_text == "First,":
            return (" it is long. And then it bre", "length") if sample else (" [[A]]", "stop")
        return "B]]"

    generator = Scripted(reply)
    knobs = AnnotateKnobs(samples=2, waves=(2,), policy="all")
    ((_, (own, forced)), *_) = annotate(questions(judge), generator, judge, knobs)
    assert (own.verdict, own.forced, own.failure, own.text) == ("A", False, None, "First, [[A]]")
    assert (forced.verdict, forced.forced, forced.failure) == ("B", True, "cut_off")
    # cut back to the last full sentence, then the fixed text, then what was sampled
    assert forced.text == "First, it is long. So: [[B]]"
    assert "".join(map(chr, forced.token_ids)) == forced.text
    assert forced.finish_reason == "length"


def test_two_different_verdicts_are_not_forced():
    judge = make_judge(force_verdict=True)
    knobs = AnnotateKnobs(samples=1, waves=(1,))
    generator = Scripted(lambda request, sample: "[[A]] or [[B]]")
    ((_, (judgment,)), *_) = annotate(questions(judge), generator, judge, knobs)
    assert (judgment.verdict, judgment.failure, judgment.forced) == (None, "conflict", False)
