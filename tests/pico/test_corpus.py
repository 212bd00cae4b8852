"""Does the seed read what a run would ask it, and does it see no more than it may?"""

from __future__ import annotations

import dataclasses
from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ste_jax.pico import corpus
from ste_jax.pico.corpus import ALL_CATEGORIES, MAKERS
from ste_jax.pico.kinds import KINDS
from ste_jax.pico.make_seed import JUDGING, PHASES, SKILLS, make_chats, make_examples
from ste_jax.pico.tokenizer import make_tokenizer, save_tokenizer
from ste_jax.pico.traces import check_trace
from ste_jax.pico.world import Tasks, draw_task, understand
from ste_jax.prompts.parse import (
    parse_category,
    parse_difficulty,
    parse_modified,
)
from ste_jax.tasks.pairwise import parse_verdict
from ste_jax.tokenization.load import load_tokenizer

KNOWN = Tasks("known")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(the tokenizer as it is made, and as a run loads it)."""
    directory = tmp_path_factory.mktemp("tokenizer")
    raw = make_tokenizer(corpus.all_texts(Random("test"), 2000), least=2)
    save_tokenizer(raw, directory)
    return raw, load_tokenizer(str(directory))


@pytest.mark.parametrize("role", MAKERS)
def test_the_ids_are_those_that_a_run_would_ask_with(made, role):
    raw, tokenizer = made
    chats = [MAKERS[role](Random(seed), KNOWN) for seed in range(20)]
    for chat, example in zip(chats, make_examples(chats, raw), strict=True):
        first = chat.learnt[0]
        assert list(example.prompt_ids) == tokenizer.prompt_ids(chat.messages[:first])
        ids = [*example.prompt_ids, *example.completion_ids]
        for turn in chat.learnt:
            prompt = tokenizer.prompt_ids(chat.messages[:turn])
            assert ids[: len(prompt)] == prompt
            learnt = example.target_weights()[len(prompt) - len(example.prompt_ids) :]
            reply = tokenizer.encode(chat.messages[turn]["content"])
            assert ids[len(prompt) : len(prompt) + len(reply)] == reply
            assert all(weight > 0 for weight in learnt[: len(reply) + 1])
            assert ids[len(prompt) + len(reply)] in tokenizer.eos_ids


@settings(max_examples=50)
@given(st.integers(0, 2**32))
def test_replies_are_what_the_parsers_of_a_run_read(seed):
    draw = Random(seed)
    classified = corpus.classify(draw, KNOWN).messages[-1]["content"]
    assert parse_category(classified, ALL_CATEGORIES)[0] in ALL_CATEGORIES
    assert parse_difficulty(classified)[0] in range(1, 6)
    modified, failure = parse_modified(
        corpus.modify(draw, KNOWN).messages[-1]["content"], with_response=True
    )
    assert failure is None and modified is not None
    assert understand(modified.instruction) is not None
    assert parse_verdict(corpus.judge(draw, KNOWN).messages[-1]["content"]).verdict in ("A", "B")


@settings(max_examples=50)
@given(st.integers(0, 2**32))
def test_a_judgment_that_is_taught_is_right_throughout(seed):
    draw = Random(seed)
    task = draw_task(draw, "known")
    a, b = corpus.draw_answers(draw, task)
    trace = corpus.judged(task, a, b).messages[-1]["content"]
    assert check_trace(trace, task.instruction, a, b).throughout


def test_no_held_out_task_is_read():
    phases = [dataclasses.replace(phase, chats=1500) for phase in PHASES]
    chats = [chat for phase in phases for chat in make_chats(phase)]
    tasks = []
    for chat in chats:
        for turn in chat.messages:
            tasks += [understand(line) for line in turn["content"].splitlines()]
    found = [task for task in tasks if task is not None]
    assert len(found) > 2500
    assert {task.share for task in found} == {"known"}


def test_judgments_are_few_and_seen_again():
    phase = dataclasses.replace(JUDGING, chats=1000)
    chats = [chat for chat in make_chats(phase, pairs=2) if chat.role == "judge"]
    assert len(chats) > 300
    few = {chat.messages for chat in map(_hashable, chats)}
    assert len(few) == 2 * 2 * len(KINDS)
    assert sum("[[A]]" in str(messages[-1]) for messages in few) == len(few) / 2


def test_a_phase_asks_some_kinds_more_often():
    phase = dataclasses.replace(SKILLS, chats=2000, mix={"respond": 1.0})
    asked = [understand(chat.messages[0]["content"]) for chat in make_chats(phase)]
    counts = Counter(task.kind for task in asked if task is not None)
    more = {name: times for name, times in phase.more_often.items() if times >= 3}
    assert more
    for name in more:
        assert all(
            counts[name] > 1.5 * counts[other] for other in counts if other not in phase.more_often
        )


def test_no_dictated_letter_contradicts_what_was_found():
    draw = Random(0)
    for _ in range(300):
        chat = corpus.dictated(draw, KNOWN)
        *_, of_a, of_b, verdict = chat.messages[-1]["content"].splitlines()
        assert of_a.endswith("same.") == of_b.endswith("same.")
        letter = chat.messages[0]["content"][-len("A.") :][0]
        assert verdict == f"[[{letter}]]"


def _hashable(chat):
    return type(chat)(
        chat.role,
        tuple((turn["role"], turn["content"]) for turn in chat.messages),
        chat.learnt,
    )


@given(st.text(max_size=80))
def test_any_text_survives_the_tokenizer(made, text):
    raw, _ = made
    assert raw.decode(raw.encode(text, add_special_tokens=False).ids) == text


def test_the_lines_of_the_judge_s_prompt_are_single_tokens(made):
    raw, _ = made
    chat = corpus.judge(Random(0), KNOWN)
    system = chat.messages[0]["content"]
    assert len(raw.encode(system).ids) <= 2 * len(system.splitlines())
