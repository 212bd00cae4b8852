"""A model that thinks plays all the roles: no thought is in a pair, a label or a verdict."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ste_jax.config.from_plain import build
from ste_jax.config.schema import (
    AnnotateKnobs,
    Config,
    JudgeKnobs,
    PairKnobs,
    RoleKnobs,
    SamplingKnobs,
    SelectKnobs,
)
from ste_jax.generation import Completion, Request
from ste_jax.pipeline.units import make_examples
from ste_jax.prompts.thoughts import split
from ste_jax.records import DroppedPair, Instruction, Pair, TrainingExample, instruction_id
from ste_jax.stages import judge_card
from ste_jax.stages.annotate import annotate
from ste_jax.stages.judge import Judge
from ste_jax.stages.pair import pair
from ste_jax.stages.roles import make_role, role_fingerprint
from ste_jax.stages.select import label
from ste_jax.system.errors import RequestError
from ste_jax.tasks import PAIRWISE
from ste_jax.tasks.pairwise import parse_verdict
from ste_jax.tokenization.control_tokens import Piece
from ste_jax.tokenization.load import load_tokenizer
from ste_jax.tokenization.tokenizer import Tokenizer
from tests import chats
from tests.stages.scripted import Scripted

WAYS = ("marks", "template", "server")
ROLES = Config(model="m").roles
ROOM = SamplingKnobs(max_new_tokens=99)
THOUGHT = "Hmm, coding? [[A]]\n[Modified Instruction]\nName a hill.\n[Response]\nHmm."


@dataclasses.dataclass
class Thinking(Scripted):
    """Thinks before each reply: between marks, after the template's mark, or apart from the text.
    Of a reply "cut" nothing but thoughts comes."""

    way: str = "marks"

    def completions(self) -> Iterator[Completion]:
        for done in super().completions():
            cut = done.text == "cut"
            said = "" if cut else f"\n</think>\n\n{done.text}"
            change: dict[str, Any] = {
                "marks": {"text": f"<think>\n{THOUGHT}{said}"},
                "template": {"text": f"{THOUGHT}{said}", "thinking": True},
                "server": {"text": "" if cut else done.text, "thoughts": THOUGHT},
            }[self.way]
            if cut:
                change["finish_reason"] = "length"
            text = change["text"]
            yield dataclasses.replace(done, token_ids=tuple(map(ord, text)), **change)


def answers(**said: str) -> Any:
    def reply(request: Request, sample: int) -> str:
        text = request.messages[-1]["content"]
        if "Which one of these" in text:
            return said.get("classify", "Category: mathematics\nDifficulty: 4")
        if "First write a modified" in text:
            marked = "[Modified Instruction]\nName a lake in Finland.\n[Response]\nSaimaa."
            return said.get("modify", marked)
        if "[User Question]" in text:
            return said.get("judge", "A names what was asked for. [[A]]")
        return said.get("respond", "Kemijoki.")

    return reply


MESSAGES = ({"role": "user", "content": "Name a river in Finland."},)
ROW = Instruction(id=instruction_id(MESSAGES), messages=MESSAGES, source="test")  # type: ignore[arg-type]


def paired(way: str, **said: str) -> Pair | DroppedPair:
    respond, modify = (
        make_role(
            name,
            dataclasses.replace(getattr(ROLES, name), sampling=ROOM),
            seed=0,
        )
        for name in ("respond", "modify")
    )
    generator = Thinking(answers(**said), way=way)
    made = pair([ROW], generator, respond, modify, PairKnobs(), count_tokens=len)
    ((_, found),) = made
    return found


def judged(way: str, force: bool = False, **said: str) -> Any:
    role = make_role("judge", ROLES.judge, seed=0, task=PAIRWISE)
    judge = Judge(role=role, knobs=JudgeKnobs(force_verdict=force), model="m", iteration=1)
    made = paired("marks")
    assert isinstance(made, Pair)
    prompt = PAIRWISE.prompts(made, role.template)[0]
    generator = Thinking(answers(**said), way=way)
    knobs = AnnotateKnobs(samples=1, waves=(1,))
    ((_, (judgment,)),) = annotate(PAIRWISE.questions([prompt]), generator, judge, knobs)
    return prompt, judgment, generator


@pytest.mark.parametrize("way", WAYS)
def test_no_thought_is_in_a_label_a_pair_or_a_verdict(way: str) -> None:
    knobs = SelectKnobs(min_difficulty=2)
    role = make_role("classify", ROLES.classify, seed=0)
    ((_, found, _),) = label([ROW], Thinking(answers(), way=way), role, knobs)
    assert (found.category, found.difficulty, found.failure) == ("mathematics", 4, None)

    made = paired(way)
    assert isinstance(made, Pair)
    assert (made.chosen, made.rejected) == ("Kemijoki.", "Saimaa.")
    assert made.modified_instruction == "Name a lake in Finland."

    for verdict in "AB":
        _, judgment, _ = judged(way, judge=f"It is so. [[{verdict}]]")
        assert (judgment.verdict, judgment.failure) == (verdict, None)
        # the stored text alone tells the same
        assert parse_verdict(judgment.text) == (verdict, None)
        assert split(judgment.text).thoughts == THOUGHT


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("role", ["respond", "modify"])
def test_a_pair_of_which_a_part_was_cut_off_in_its_thoughts_is_dropped(way: str, role: str) -> None:
    found = paired(way, **{role: "cut"})
    assert isinstance(found, DroppedPair)
    assert found.reason == {"respond": "answer", "modify": "modify"}[role] + "_cut_off_in_thoughts"


@pytest.mark.parametrize("way", WAYS)
def test_an_answer_asked_for_alone_thinks_too(way: str) -> None:
    respond = make_role("respond", RoleKnobs(template="respond", sampling=ROOM), seed=0)
    modify = make_role("modify", RoleKnobs(template="small-modify", sampling=ROOM), seed=0)

    def made(other: str) -> Pair | DroppedPair:
        def reply(request: Request, sample: int) -> str:
            if request.id.endswith("/modify"):
                return " Name a lake in Finland."
            return other if "lake" in request.messages[-1]["content"] else "Kemijoki."

        knobs = PairKnobs(rejected_from="respond", drop_cut_off=False)
        generator = Thinking(reply, way=way)
        ((_, found),) = pair([ROW], generator, respond, modify, knobs)
        return found

    good, bad = made("Saimaa."), made("cut")
    assert isinstance(good, Pair) and isinstance(bad, DroppedPair)
    assert (good.chosen, good.rejected) == ("Kemijoki.", "Saimaa.")
    assert good.modified_instruction == "Name a lake in Finland."
    assert bad.reason == "rejected_cut_off_in_thoughts"


@pytest.mark.parametrize("way", WAYS)
def test_a_label_that_was_cut_off_in_its_thoughts_is_none(way: str) -> None:
    role = make_role("classify", ROLES.classify, seed=0)
    generator = Thinking(answers(classify="cut"), way=way)
    ((_, found, _),) = label([ROW], generator, role, SelectKnobs())
    assert (found.category, found.failure) == (None, "cut_off_in_thoughts")


@pytest.mark.parametrize("way", WAYS)
def test_a_judgment_that_was_cut_off_in_its_thoughts_is_none(way: str) -> None:
    _, judgment, _ = judged(way, judge="cut")
    assert (judgment.verdict, judgment.failure, judgment.forced) == (None, "cut_off", False)
    assert parse_verdict(judgment.text, judgment.finish_reason) == (None, "cut_off")


@pytest.mark.parametrize("way", ["marks", "template"])
def test_thoughts_are_closed_before_a_verdict_is_forced(way: str) -> None:
    class Forced(Thinking):
        def completions(self) -> Iterator[Completion]:
            for done in super().completions():
                forced = "/force/" in done.request_id
                yield (
                    dataclasses.replace(done, text="B]]", finish_reason="stop") if forced else done
                )

    role = make_role("judge", ROLES.judge, seed=0, task=PAIRWISE)
    judge = Judge(role=role, knobs=JudgeKnobs(force_verdict=True), model="m", iteration=1)
    made = paired("marks")
    assert isinstance(made, Pair)
    generator = Forced(answers(judge="cut"), way=way)
    knobs = AnnotateKnobs(samples=1, waves=(1,))
    prompt = PAIRWISE.prompts(made, role.template)[0]
    ((_, (judgment,)),) = annotate(PAIRWISE.questions([prompt]), generator, judge, knobs)
    assert (judgment.verdict, judgment.forced, judgment.failure) == ("B", True, "cut_off")
    assert generator.asked[-1].continue_text == "\n</think>\n\n\n\nFinal verdict: [["
    assert judgment.text.startswith("<think>\nHmm") and judgment.text.endswith("[[B]]")
    assert parse_verdict(judgment.text) == ("B", None)


# ---------------------------------------------------------------------------------------------
# The chat template's arguments


def test_the_template_is_told_not_to_let_roles_think_but_the_judge() -> None:
    generator = Thinking(answers())
    for name in ("respond", "modify", "classify"):
        generator.submit(make_role(name, getattr(ROLES, name), seed=0).request("r", {}))
    assert [dict(each.template_arguments) for each in generator.asked] == [
        {"enable_thinking": False}
    ] * 3
    _, _, judging = judged("marks")
    assert dict(judging.asked[0].template_arguments) == {}
    assert judge_card.of_config(Config(model="m")).template_arguments == {}


def test_arguments_are_laid_over_the_default_and_null_takes_one_away() -> None:
    def arguments(given: dict[str, Any]) -> Any:
        values = {"model": "m", "roles": {"respond": {"template_arguments": given}}}
        config: Config = build(Config, values, where="test")
        return dict(make_role("respond", config.roles.respond, seed=0).template_arguments)

    assert arguments({"effort": "low"}) == {"enable_thinking": False, "effort": "low"}
    assert arguments({"enable_thinking": True}) == {"enable_thinking": True}
    assert arguments({"enable_thinking": None}) == {}
    with pytest.raises(RequestError, match=r"respond\.template_arguments\.tokenize"):
        arguments({"tokenize": True})
    with pytest.raises(RequestError, match=r"respond\.template_arguments\.day"):
        arguments({"day": {1, 2}})


def test_what_the_chat_template_does_not_read_is_no_part_of_a_role() -> None:
    def told(template: str | None) -> list[Any]:
        return role_fingerprint(make_role("respond", ROLES.respond, seed=0, chat_template=template))

    plain = told("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    assert plain == role_fingerprint(make_role("respond", RoleKnobs(template="respond"), seed=0))
    for template in ("{% if enable_thinking %}x{% endif %}", "{{ '<think>' }}", None):
        assert told(template) == [*plain, {"enable_thinking": False}]


def test_a_judge_remembers_its_arguments() -> None:
    values = {"model": "m", "roles": {"judge": {"template_arguments": {"effort": "low"}}}}
    card = judge_card.of_config(build(Config, values, where="test"))
    assert judge_card.from_dict(judge_card.to_dict(card), "card") == card
    plain = judge_card.default()
    assert "template_arguments" not in judge_card.to_dict(plain)
    assert judge_card.from_dict(judge_card.to_dict(plain), "card") == plain


# ---------------------------------------------------------------------------------------------
# What is trained on

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
    "{% elif open %}<think>\n{% endif %}{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    with tempfile.TemporaryDirectory() as directory:
        return load_tokenizer(chats.write(chats.byte_level(), Path(directory), TEMPLATE))


def example(text: str, ids: tuple[int, ...] = ()) -> TrainingExample:
    return TrainingExample(
        id="x",
        prompt_id="p",
        judgment_id="j",
        label="A",
        messages=MESSAGES,  # type: ignore[arg-type]
        completion=text,
        completion_ids=ids,
        forced=False,
    )


@pytest.mark.parametrize("arguments", [{}, {"enable_thinking": False}, {"open": True}])
def test_prompts_are_trained_on_as_they_are_asked(
    tokenizer: Tokenizer, arguments: dict[str, Any]
) -> None:
    (made,) = make_examples([example("[[A]]", (5, 6))], tokenizer, arguments)
    prompt = tokenizer.prompt_ids(MESSAGES, arguments=arguments)  # type: ignore[arg-type]
    assert list(made.prompt_ids) == prompt
    text = tokenizer.decode(prompt, skip_special=False)
    assert text.endswith(
        {"": "assistant\n", "enable_thinking": "</think>\n\n", "open": "<think>\n"}[
            next(iter(arguments), "")
        ]
    )
    opened = tokenizer.opened_thoughts(MESSAGES, arguments)  # type: ignore[arg-type]
    assert opened == ("<think>" if "open" in arguments else "")


@pytest.mark.parametrize(
    ("text", "arguments", "turn"),
    [
        ("It is so. [[A]]", {}, "It is so. [[A]]"),
        ("<think>\nHmm.\n</think>\n\n[[A]]", {}, "<think>\nHmm.\n</think>\n\n[[A]]"),
        ("[THINK]Hmm.[/THINK][[A]]", {}, "<think>\nHmm.\n</think>\n\n[[A]]"),
        ("<think>\nHmm.\n</think>\n\n[[A]]", {"open": True}, "Hmm.\n</think>\n\n[[A]]"),
        ("It is so. [[A]]", {"open": True}, "</think>\n\nIt is so. [[A]]"),
        ("A says `<think>`. [[A]]", {}, "A says `<think>`. [[A]]"),
    ],
)
def test_an_endpoints_thoughts_are_learnt_as_this_model_writes_them(
    tokenizer: Tokenizer, text: str, arguments: dict[str, Any], turn: str
) -> None:
    (made,) = make_examples([example(text)], tokenizer, arguments)
    assert tokenizer.decode(made.completion_ids) == turn
    marks = {
        tokenizer.encode_pieces([Piece(mark, control=True)])[0] for mark in ("<think>", "</think>")
    }
    told = turn.count("<think>") + turn.count("</think>") - turn.count("`<think>`")
    assert sum(each in marks for each in made.completion_ids) == told
