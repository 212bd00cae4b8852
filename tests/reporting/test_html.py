"""The report stands alone, shows a run however far it has come, and lets no text become markup."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ste_jax.reporting.examples import heldout_examples
from ste_jax.reporting.html import write_report
from ste_jax.reporting.page import escape, line, tag, words
from ste_jax.reporting.plots import Share, agreement_plot, loss_plot
from ste_jax.run.layout import RunDir
from ste_jax.system import files
from ste_jax.system.errors import RequestError
from tests.reports import REPORTS

HOSTILE = (
    """</div></pre></title></style><script>alert("x")</script><img src=x onerror='y()'>&lt;]]>"""
)
VOID = {"meta"}


class Page(HTMLParser):
    """What a browser would make of a page: its elements in order, balanced, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def report(run: RunDir) -> str:
    path = write_report(run, REPORTS)
    assert path == run.report
    return path.read_text()


def test_a_finished_run_shows_everything(whole_run: RunDir) -> None:
    text = report(whole_run)
    page = Page(text)
    assert "Not yet" not in page.text
    for part in (
        "pypi:made-up-model", "Agreement with constructed labels", "near duplicate", "3 no correct",
        "modified is same", "training loss", "Judgments to read", "adds up", "A among A and B",
        "whole run",
    ):  # fmt: skip
        assert part in page.text, part
    assert "accuracy of judging" not in page.text.lower()
    assert page.tags.count("svg") == 3
    evaluation = files.read_json(whole_run.iteration(2).evaluation)
    assert f"{evaluation['accuracy']:.3f} [{evaluation['accuracy_ci95'][0]:.3f}" in page.text


def test_it_needs_nothing_else(whole_run: RunDir) -> None:
    text = report(whole_run)
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert not {"src", "href", "srcset"} & {name for name, _ in page.attributes}
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert not re.search(r"https?://|@import|url\(", text)
    assert "default-src 'none'" in text


def test_the_same_run_gives_the_same_bytes(whole_run: RunDir) -> None:
    assert (
        write_report(whole_run, REPORTS).read_bytes()
        == write_report(whole_run, REPORTS).read_bytes()
    )


def test_no_text_becomes_markup(fake_run: Callable[..., Any]) -> None:
    """With markup in every text, id, reason, category and knob the page has the same elements."""
    harmless = fake_run("harmless").whole().run
    hostile = fake_run("hostile", hostile=HOSTILE).whole().run
    one, two = Page(report(harmless)), Page(report(hostile))
    assert two.tags == one.tags
    assert {name for name, _ in two.attributes} == {name for name, _ in one.attributes}
    for before in (
        "made-up", "pypi:made-up-model", "coding", "near duplicate", "modified is same",
        "no correct", "no verdict", "It says more. ", "It says less. ", "Briefly.", "[[A]]",
        "Say how few there are.", "evaluate",
    ):  # fmt: skip
        assert before + HOSTILE[:20] in two.text, before
    assert two.text.count("<script>") > 40
    assert "<script" not in hostile.report.read_text()


def test_an_error_that_names_a_hostile_id_is_escaped_too(fake_run: Callable[..., Any]) -> None:
    run = fake_run(hostile=HOSTILE).whole().run
    table = run.iteration(2).heldout.judgments
    table.write(0, table.read(0)[1:])
    page = Page(report(run))
    assert "not judged on the same prompts" in page.text and "script" not in page.tags


def test_every_stage_of_a_run_has_a_report(fake_run: Callable[..., Any]) -> None:
    fake = fake_run().begin()
    iteration = fake.run.iteration(1)
    waiting = [Page(report(fake.run)).text.count("Not yet")]
    for step in (
        fake.select,
        fake.make_pairs,
        lambda: fake.evaluate(fake.run.iteration(0)),
        lambda: fake.annotate(iteration),
        lambda: fake.curate(iteration),
        lambda: fake.finetune(iteration),
        lambda: fake.evaluate(iteration),
    ):
        step()
        waiting.append(Page(report(fake.run)).text.count("Not yet"))
    assert waiting == sorted(waiting, reverse=True)
    assert waiting[0] == 6 and waiting[-1] == 0


def test_a_run_that_has_only_been_opened(fake_run: Callable[..., Any]) -> None:
    run = fake_run().run
    files.write_json(run.manifest, {"shards": 3, "iterations": 2})
    assert Page(report(run)).text.count("Not yet") == 8
    with pytest.raises(RequestError, match="is not a run"):
        write_report(fake_run("nowhere").run, REPORTS)


def test_validations_of_nothing_are_not_drawn(own_run: RunDir) -> None:
    path = own_run.iteration(1).loss_curve
    curve = files.read_json(path)
    files.write_json(path, {**curve, "validations": [{"step": 24, "accuracy": None}]})
    assert Page(report(own_run)).text.count("training loss") == 2
    assert Page(report(own_run)).tags.count("polygon") == 4 + 3


def test_sums_that_do_not_hold_are_shown(own_run: RunDir) -> None:
    own_run.pool.write(0, [])
    page = Page(report(own_run))
    assert "do not add up" in page.text and "rows kept at intake = rows of the pool" in page.text


def test_long_texts_do_not_make_a_long_report(fake_run: Callable[..., Any]) -> None:
    """Six held-out pairs in two orders are shown, with at most 6,000 characters of any text."""
    fake = fake_run().begin().select().make_pairs().evaluate(fake_run().run.iteration(0))
    small = len(report(fake.run))
    fake.hostile = " word" * 4_000
    fake.evaluate(fake.run.iteration(0))
    text = report(fake.run)
    assert text.count("characters more]") == 12
    assert len(text) < small + 12 * 6100


def test_the_examples_are_fixed_and_varied(whole_run: RunDir) -> None:
    chosen = heldout_examples(whole_run)
    assert chosen == heldout_examples(whole_run)
    assert len(chosen) == 6 and len({each.pair.id for each in chosen}) == 6
    kinds = [(each.last_right > each.first_right) - (each.last_right < each.first_right)
             for each in chosen]  # fmt: skip
    assert kinds == sorted(kinds, key=[1, -1, 0].index)
    assert kinds.count(1) == 2 and kinds.count(-1) == 2
    for each in chosen:
        prompts = [view.question.prompts[0] for view in each.views]
        assert [prompt.order for prompt in prompts] == ["ab", "ba"]
        for view in each.views:
            assert sorted(view.said) == [0, 1, 2]
            assert view.said[2][0].text.startswith("Judge 2")
        for index, right in ((0, each.first_right), (2, each.last_right)):
            verdicts = [view.said[index][0].verdict for view in each.views]
            labels = [prompt.label for prompt in prompts]
            assert sum(map(operator.eq, verdicts, labels)) == right


# ---------------------------------------------------------------------------------------------
# The page's parts

printable = st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("\n\t<>&'\""))


@settings(deadline=None, max_examples=50)
@given(text=printable)
def test_text_and_attributes_come_through_as_text(text: str) -> None:
    page = Page(tag("p", text, title=text))
    assert page.tags == ["p"] and page.text == text and page.attributes == [("title", text)]


def test_markup_is_escaped_once_and_our_own_never() -> None:
    inner = tag("b", "1 < 2")
    assert tag("p", inner, ["&", inner]) == "<p><b>1 &lt; 2</b>&amp;<b>1 &lt; 2</b></p>"
    assert escape(escape("<")) == "&lt;"
    assert tag("p", "<" + inner) == "<p>&lt;&lt;b&gt;1 &amp;lt; 2&lt;/b&gt;</p>"


def test_control_characters_are_shown_as_such() -> None:
    assert escape("a\x00\x1b[31m\r\n\tb") == "a\\u0000\\u001b[31m\n\tb"
    assert escape("\u202e[[A]]\u2066\x9b") == "\\u202e[[A]]\\u2066\\u009b"


def test_long_words_are_cut_with_a_remark() -> None:
    assert "[... 4 characters more]" in words("x" * 6004)
    assert line("one\n two  three", 9) == "one two \u2026"


def test_an_agreement_without_interval_or_value_is_drawn() -> None:
    shares = [Share(0.5, (0.4, 0.6)), None, Share(1.0, None)]
    page = Page(agreement_plot(["seed", "1", "2"], {"<b>": shares}, (0.5,)))
    assert page.tags.count("circle") == 3 and "<b>: 0.500 [0.400, 0.600]" in page.text


@settings(deadline=None, max_examples=40)
@given(
    losses=st.lists(st.floats(-1e3, 1e6), max_size=30),
    checks=st.lists(st.floats(0, 1), max_size=4),
)
def test_any_loss_curve_is_drawn_inside_its_picture(
    losses: list[float], checks: list[float]
) -> None:
    if not losses and not checks:
        return
    steps = list(enumerate(losses))
    page = Page(loss_plot(steps, list(enumerate(checks)), 0))
    height = float(dict(page.attributes)["viewBox".lower()].split()[-1])  # type: ignore[union-attr]
    points = [value for name, value in page.attributes if name == "points" and value]
    for place in " ".join(points).split():
        x, y = map(float, place.split(","))
        assert 0 <= x <= 720 and 0 <= y <= height


def test_a_long_loss_curve_is_thinned_by_means() -> None:
    page = Page(loss_plot([(n, 1.0 + n % 2) for n in range(7200)], [], None))
    (points,) = [value for name, value in page.attributes if name == "points" and value]
    assert len(points.split()) == 360 and "means of 20 steps" in page.text
    assert len({place.split(",")[1] for place in points.split()}) == 1
