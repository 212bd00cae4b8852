"""A judge that is asked from Python: what it answers, in which order, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ste_jax
from ste_jax.cli import main
from ste_jax.commands import judge as asking
from ste_jax.commands import judge_options
from ste_jax.config.judging import with_task
from ste_jax.config.schema import Config, JudgeKnobs
from ste_jax.generation import Request
from ste_jax.run.best import locate
from ste_jax.stages import judge_card
from ste_jax.system.errors import RequestError, WorkError
from tests.stages.scripted import Reply, Scripted


@pytest.fixture
def scripted(finished, monkeypatch):
    """A judge of the finished run whose replies a test chooses: (judge, generators opened)."""
    run, _ = finished
    opened: list[Scripted] = []
    replies: list[Any] = [lambda request, sample: " [[A]]"]

    def open_one(*_: Any) -> Scripted:
        opened.append(
            Scripted(lambda request, sample: replies[0](request, sample), last_first=True)
        )
        return opened[-1]

    monkeypatch.setattr(asking, "open_judge", open_one)
    judge = ste_jax.load_judge(run.iteration(1).checkpoint, temperature=0.7)
    return judge, opened, replies


def first_shown(request: Request) -> str:
    """Which of two answers stands first in a prompt."""
    text = request.messages[-1]["content"]
    return min(("house", "igloo"), key=text.index)


def prefers_house(request: Request, sample: int) -> Reply:
    return f" it is {first_shown(request)} [[{'A' if first_shown(request) == 'house' else 'B'}]]"


def test_both_orders_are_read_as_the_answers_they_show(scripted):
    judge, _, replies = scripted
    replies[0] = prefers_house
    verdict = judge(" apple", " house", " igloo", votes=3)
    assert verdict.winner == "a" and verdict.votes == {"a": 6, "b": 0, "tie": 0, "none": 0}
    seen = [(each.order, each.sample, each.verdict, each.winner) for each in verdict.judgments]
    orders = (("ab", "A"), ("ba", "B"))
    assert seen == [(order, n, letter, "a") for order, letter in orders for n in range(3)]
    assert verdict.judgments[0].text.endswith(" it is house [[A]]")
    assert judge(" apple", " igloo", " house", votes=3).winner == "b"


def test_a_judge_that_names_a_place_prefers_neither(scripted):
    judge, _, _ = scripted
    verdict = judge(" apple", " house", " igloo")
    assert verdict.votes == {"a": 1, "b": 1, "tie": 0, "none": 0} and verdict.winner == "tie"


def test_many_come_in_the_order_of_the_rows_and_equal_ones_are_asked_once(scripted):
    judge, opened, replies = scripted
    replies[0] = prefers_house
    chat = [
        {"role": "user", "content": " apple"},
        {"role": "assistant", "content": " bread"},
        {"role": "user", "content": " chair"},
    ]
    rows = [
        (" apple", " house", " igloo"),
        (" bread", " igloo", " house"),
        (" apple", " house", " igloo"),
        (chat, " igloo", " house"),
    ]
    before = len(opened[0].asked)
    verdicts = list(judge.many(rows, votes=2))
    assert [each.winner for each in verdicts] == ["a", "b", "a", "b"]
    asked = opened[0].asked[before:]
    assert len(asked) == 2 * 3 and all(tuple(each.samples) == (0, 1) for each in asked)
    assert opened[0].most_open > 2  # not one after the other
    assert list(judge.many([])) == []


def test_what_is_left_open_is_not_answered_to_the_next(scripted):
    judge, opened, replies = scripted
    replies[0] = prefers_house
    rows = [(f" apple {n}", " house", " igloo") for n in range(20)]
    verdicts = judge.many(rows)
    assert next(verdicts).winner == "a"
    with pytest.raises(RequestError, match="is being asked"):
        next(judge.many(rows))
    verdicts.close()
    assert judge(" bread", " igloo", " house").winner == "b"
    assert len(opened) == 2  # the first had more under way


def test_one_vote_is_greedy_unless_a_temperature_is_given(finished, scripted):
    run, _ = finished
    given, opened, _ = scripted
    given(" apple", " house", " igloo")
    judge = ste_jax.load_judge(run.root)
    judge(" apple", " house", " igloo")
    judge(" apple", " house", " igloo", votes=2)
    drawn = [each.asked[-1].sampling.temperature for each in opened]
    assert drawn[0] == 0.7 and opened[1].asked[0].sampling.temperature == 0.0 < drawn[1]


def test_what_cannot_be_asked_is_counted_and_alone_an_error(scripted):
    judge, _, replies = scripted
    replies[0] = lambda request, sample: (
        ("no room", "too_long")
        if "long" in str(request.messages)
        else prefers_house(request, sample)
    )
    with pytest.raises(WorkError, match="could not be asked: no room"):
        judge(" long", " house", " igloo")
    long, short = judge.many([(" long", " house", " igloo"), (" apple", " house", " igloo")])
    assert (long.winner, long.not_asked, sum(long.votes.values())) == (None, 2, 0)
    assert (short.winner, short.not_asked) == ("a", 0)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ((" apple", " same", " same"), "the same text"),
        ((" apple", "\ud800", " house"), "answer a is not a text"),
        ((" apple", " house", 5), "answer b is not a text"),
        (("\ud800", " house", " igloo"), "surrogate"),
        ((5, " house", " igloo"), "turns"),
        (([{"role": "user"}], " house", " igloo"), "turns"),
        (((), " house", " igloo"), "turns"),
    ],
)
def test_a_row_that_is_none_is_refused_before_anything_is_asked(scripted, row, says):
    judge, opened, _ = scripted
    with pytest.raises(RequestError, match=says):
        judge(*row)
    with pytest.raises(RequestError, match=f"row 1: .*{says}"):
        judge.many([(" apple", " house", " igloo"), row])
    assert not opened[0].asked


def test_rows_of_another_shape_and_votes_below_one_are_refused(scripted):
    judge, *_ = scripted
    with pytest.raises(RequestError, match="row 0 is not"):
        judge.many([{"instruction": "x", "a": "y", "b": "z"}])
    with pytest.raises(RequestError, match="votes=0"):
        judge(" apple", " house", " igloo", votes=0)


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ({"dtype": "float16"}, "dtype"),
        ({"groups": 0}, "groups"),
        ({"temperature": -1.0}, "temperature"),
        ({"template": "absent.yaml"}, "absent.yaml"),
    ],
)
def test_options_are_checked(finished, option, says):
    with pytest.raises(RequestError, match=says):
        ste_jax.load_judge(finished[0].root, **option)


def test_a_judge_that_scores_one_answer_has_a_vote_for_each_two_scores(
    finished, monkeypatch, capsys
):
    run, _ = finished
    knobs = dataclasses.replace(JudgeKnobs(), task="pointwise", force_verdict=False)
    card = judge_card.of_config(with_task(dataclasses.replace(Config(model="m"), judge=knobs)))
    monkeypatch.setattr(judge_options, "stored_judge_card", lambda _: card)

    def score(request: Request, sample: int) -> Reply:
        better = "house" in request.messages[-1]["content"]
        return f" [[{(7, 5, 3)[sample]}]]" if better else " [[5]]"

    monkeypatch.setattr(asking, "open_judge", lambda *_: Scripted(score))
    judge = ste_jax.load_judge(run.root, max_new_tokens=16, temperature=0.5)
    verdict = judge(" apple", " igloo", " house", votes=3)
    assert verdict.votes == {"a": 1, "b": 1, "tie": 1, "none": 0} and verdict.winner == "tie"
    read = [(each.shown, each.verdict, each.winner) for each in verdict.judgments]
    assert read[:2] == [("answer a", "5", "b"), ("answer b", "7", "b")]
    words = ["judge", str(run.root), "--instruction", " apple", "--a", " igloo", "--b", " house"]
    assert main([*words, "--votes", "3", "--max-new-tokens", "16", "--temperature", "0.5"]) == 0
    printed = capsys.readouterr().out
    assert "=> scores 5 and 7: answer b is better" in printed
    assert "votes: a 1, b 1, tie 1, no verdict 0 of 3" in printed


def test_ste_judge_as_json_and_its_status_without_a_verdict(
    finished, monkeypatch, capsys, tmp_path
):
    run, _ = finished
    replies = [prefers_house, lambda request, sample: (" I cannot", "length")]
    monkeypatch.setattr(
        asking, "open_judge", lambda *_: Scripted(lambda *asked: replies[0](*asked))
    )
    (tmp_path / "b.txt").write_text(" igloo\n")
    words = ["judge", str(run.root), "--instruction", " apple", "--a", " house"]
    words += ["--b", f"@{tmp_path / 'b.txt'}", "--no-force-verdict"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    verdict = ste_jax.load_judge(run.root, force_verdict=False)(" apple", " house", " igloo")
    judgments = [dataclasses.asdict(each) for each in verdict.judgments]
    assert found == {
        "model": str(run.root),
        "iteration": locate(str(run.root)).iteration,
        "winner": "a",
        "votes": verdict.votes,
        "not_asked": 0,
        "judgments": judgments,
    }
    del replies[0]
    capsys.readouterr()
    for more in ([], ["--json"]):
        assert main([*words, *more]) == 3
        said = capsys.readouterr()
        assert said.err.count(f"the judge of {run.root} is that of iteration ") == 1, said.err
        assert "ste: the judge ended without a verdict; try `--force-verdict`" in said.err
        assert " I cannot" in said.out
    assert json.loads(said.out)["winner"] is None


def test_settings_of_jax_are_refused_and_left_as_they_are(scripted):
    judge, *_ = scripted
    with jax.enable_x64(True):
        with pytest.raises(RequestError, match="jax_enable_x64 is True"):
            judge(" apple", " house", " igloo")
        assert jax.config.jax_enable_x64
    assert judge(" apple", " house", " igloo").winner == "tie"


def test_ste_judge_and_python_say_the_same(finished, capsys):
    run, _ = finished
    words = ["judge", str(run.root), "--instruction", " apple", "--a", " house", "--b", " igloo"]
    assert main([*words, "--votes", "2", "--temperature", "1.0"]) == 0
    printed = capsys.readouterr().out
    judge = ste_jax.load_judge(run.root, temperature=1.0)
    rows = [(f" {word}", " house", " igloo") for word in ("bread", "apple", "chair")]
    among_others = list(judge.many(rows, votes=2))[1]
    assert among_others == judge(" apple", " house", " igloo", votes=2)
    texts = [each.text for each in among_others.judgments]
    places = [printed.index(text) for text in texts]
    assert len(texts) == 4 and places == sorted(places)
    assert f"votes: a {among_others.votes['a']}, b {among_others.votes['b']}," in printed


@given(st.lists(st.integers(0, 3), min_size=4, max_size=4))
def test_the_winner_has_most_votes(counts):
    votes = dict(zip(("a", "b", "tie", "none"), counts, strict=True))
    verdict = ste_jax.Verdict(votes=votes, not_asked=0, judgments=())
    named = {name: votes[name] for name in ("a", "b", "tie")}
    if not any(named.values()):
        assert verdict.winner is None
        return
    best = {name for name, count in named.items() if count == max(named.values())}
    assert verdict.winner == (best.pop() if len(best) == 1 else "tie")
