"""Labels by words or by calibrated score; quotas, near-duplicates and splits."""

from __future__ import annotations

from collections import Counter

import pytest

from ste_jax.config.schema import SelectKnobs
from ste_jax.generation import Sampling
from ste_jax.prompts.render import Template
from ste_jax.records import Instruction, Label, instruction_id
from ste_jax.stages.roles import Role
from ste_jax.stages.select import choose, label
from ste_jax.system.errors import RequestError
from tests.stages.scripted import Scripted

CATEGORIES = ("coding", "writing", "other")


def instruction(text: str) -> Instruction:
    messages = ({"role": "user", "content": text},)
    return Instruction(id=instruction_id(messages), messages=messages, source="test")


def role() -> Role:
    template = Template(name="test", user="{instruction}", start="Category:")
    return Role(name="classify", template=template, sampling=Sampling(max_new_tokens=8), key=1)


def knobs(**changes) -> SelectKnobs:
    values = {"categories": CATEGORIES, "train": 8, "heldout": 4, "near_duplicate_threshold": 0.7}
    return SelectKnobs(**{**values, **changes})


def test_generated_labels_and_their_failures():
    said = {"a": " coding", "b": " writing or coding", "c": " nothing", "d": ("no", "error")}
    said["e"] = ("4000 tokens", "too_long")
    generator = Scripted(lambda request, sample: said[request.messages[0]["content"]])
    rows = [instruction(text) for text in said]
    labels = [made for _, made, _ in label(rows, generator, role(), knobs())]
    texts = {row.id: row.messages[0]["content"] for row in rows}
    found = {texts[made.id]: (made.category, made.failure) for made in labels}
    assert found == {
        "a": ("coding", None),
        "b": (None, "conflict"),
        "c": (None, "no_category"),
        "d": (None, "error"),
        "e": (None, "too_long"),
    }
    chosen = choose(lambda: iter(rows), labels, knobs())
    fates = {each.detail: each.fate for each in chosen}
    assert fates["4000 tokens"] == "too_long" and fates["no"] == "error"


def test_scores_are_calibrated_so_that_no_category_swallows_all():
    # the model likes "writing" whatever it reads; the text moves it by less than that
    def logprob(request, completion):
        text, name = request.messages[0]["content"], completion.strip()
        return {"writing": -1.0, "coding": -4.0, "other": -5.0}[name] + 0.5 * (name in text)

    generator = Scripted(lambda r, s: "", logprobs=logprob)
    rows = [instruction(f"some {name}") for name in CATEGORIES]
    made = list(label(rows, generator, role(), knobs(labels="score")))
    assert [found.category for _, found, _ in made] == list(CATEGORIES)
    _, _, scores = made[0]
    assert [(s.label, s.logprob) for s in scores] == [
        ("coding", -3.5),
        ("writing", -1.0),
        ("other", -5.0),
    ]
    assert [round(s.calibrated, 6) for s in scores] == [0.5, 0.0, 0.0]


def test_difficulty_is_scored_after_the_category_where_a_knob_needs_it():
    starts = set()

    def logprob(request, completion):
        starts.add(request.continue_text)
        return -1.0 + (completion == " 4") * (request.id[:12] != "content-free")

    generator = Scripted(lambda r, s: "", logprobs=logprob)
    ((_, found, _),) = label(
        [instruction("x")], generator, role(), knobs(labels="score", min_difficulty=2)
    )
    assert found.difficulty == 4
    assert "Category: coding\nDifficulty:" in starts


def chosen(texts_and_labels, **changes):
    rows = [instruction(text) for text, _, _ in texts_and_labels]
    labels = [
        Label(id=row.id, category=category, difficulty=difficulty, failure=None, text="")
        for row, (_, category, difficulty) in zip(rows, texts_and_labels, strict=True)
    ]
    texts = {row.id: row.messages[0]["content"] for row in rows}
    fates = choose(lambda: iter(rows), labels, knobs(**changes))
    return {texts[fate.id]: fate for fate in fates}


def test_every_instruction_has_one_fate():
    found = chosen(
        [
            ("how do I sort a list of numbers in Python today", "coding", None),
            ("how do I sort a list of numbers in Python", "coding", None),
            ("write a poem", "writing", None),
            ("hm", "other", None),
            ("??", None, None),
        ]
    )
    counts = Counter(fate.fate for fate in found.values())
    assert counts == {"kept": 2, "near_duplicate": 1, "category_dropped": 1, "no_category": 1}


def test_easy_ones_go_and_the_hardest_come_first():
    rows = [(f"question number {n} about topic {n * 7}", "coding", n % 5 + 1) for n in range(20)]
    found = chosen(
        rows, min_difficulty=2, prefer_hard=True, train=3, heldout=1, max_category_share=1.0
    )
    kept = [fate.difficulty for fate in found.values() if fate.fate == "kept"]
    assert kept == [5, 5, 5, 5]
    assert {fate.difficulty for fate in found.values() if fate.fate == "too_easy"} == {1}


def test_quotas_shrink_the_big_and_take_the_small_whole():
    rows = [(f"alpha {n} beta {n * 3} gamma {n * 5}", "coding", None) for n in range(30)]
    rows += [(f"delta {n} epsilon {n * 3} zeta {n * 5}", "writing", None) for n in range(3)]
    found = chosen(rows, max_category_share=0.75)
    counts = Counter(fate.category for fate in found.values() if fate.fate == "kept")
    assert counts == {"coding": 9, "writing": 3}


def test_splits_are_by_instruction_and_in_proportion():
    rows = [(f"alpha {n} beta {n * 3} gamma {n * 5}", "coding", None) for n in range(200)]
    found = chosen(rows, train=100, heldout=50, validation_fraction=0.2, max_category_share=1.0)
    counts = Counter(fate.split for fate in found.values())
    assert counts == {"heldout": 50, "validation": 20, "train": 80, None: 50}


@pytest.mark.parametrize("order", [1, -1])
def test_the_choice_does_not_depend_on_the_order_of_reading(order):
    rows = [(f"alpha {n % 40} beta {n % 40} gamma {n % 7}", "coding", None) for n in range(100)]
    rows = list({text: (text, c, d) for text, c, d in rows}.values())
    assert {t: f.fate for t, f in chosen(rows[::order]).items()} == {
        t: f.fate for t, f in chosen(rows).items()
    }


def test_scores_are_not_asked_of_a_generator_that_has_none():
    generator = Scripted(lambda r, s: "", can_score=False)
    with pytest.raises(RequestError, match=r"select\.labels=generate"):
        list(label([instruction("x")], generator, role(), knobs(labels="score")))


def test_the_same_question_under_another_system_turn_is_no_near_duplicate():
    def under(system: str) -> Instruction:
        turns = [("system", system), ("user", "Tell me about the river Rhine please")]
        messages = tuple({"role": role, "content": content} for role, content in turns)
        return Instruction(id=instruction_id(messages), messages=messages, source="test")

    rows = [under("Answer in French."), under("Answer in German.")]
    labels = [
        Label(id=row.id, category="writing", difficulty=None, failure=None, text="") for row in rows
    ]
    fates = choose(lambda: iter(rows), labels, knobs(max_category_share=1.0))
    assert [fate.fate for fate in fates] == ["kept", "kept"]
