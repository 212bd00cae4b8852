"""Do the shipped instructions have the mixture that their README promises?"""

import json
import re
from collections import Counter
from importlib.resources import files
from itertools import combinations
from typing import Any

import pytest

from ste_jax.config.schema import SelectKnobs

GOOD_CATEGORIES = {*SelectKnobs().categories} - {"other"}
KINDS = {  # kind -> fewest and most rows
    "good": (145, 160),
    "noise": (10, 15),
    "near_duplicate": (17, 21),
    "off_topic": (10, 15),
    "control": (3, 6),
}


@pytest.fixture(scope="module")
def lines() -> list[str]:
    raw = (files("ste_jax") / "stages" / "shipped" / "instructions.jsonl").read_bytes()
    assert raw.endswith(b"\n")
    # Not splitlines(): it would also cut at U+2028, which JSON allows inside a string.
    return raw.decode("utf-8").removesuffix("\n").split("\n")


@pytest.fixture(scope="module")
def rows(lines: list[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines]


def texts(rows: list[dict[str, Any]], *kinds: str) -> list[str]:
    return [row["instruction"] for row in rows if row["about"]["kind"] in kinds]


def shingles(text: str) -> set[tuple[str, ...]]:
    """Pairs of neighbouring words, in lower case; a text of one word is its own shingle."""
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + 2]) for i in range(max(1, len(words) - 1))}


def jaccard(a: str, b: str) -> float:
    x, y = shingles(a), shingles(b)
    return len(x & y) / len(x | y)


def folded(text: str) -> str:
    return " ".join(text.lower().split())


def test_every_row_has_the_promised_form(rows: list[dict[str, Any]]) -> None:
    assert len(rows) == 200
    for row in rows:
        assert row.keys() == {"instruction", "about"}
        assert row["about"].keys() == {"category", "difficulty", "kind"}
        assert isinstance(row["instruction"], str) and row["instruction"].strip()
        assert row["about"]["difficulty"] in range(1, 6)
        assert row["about"]["category"] in GOOD_CATEGORIES | {"other"}
        # Only what is no task at all is `other`, so that selection can be measured by it.
        is_other = row["about"]["category"] == "other"
        assert is_other == (row["about"]["kind"] in {"noise", "off_topic"})


def test_kinds_categories_and_difficulties_are_spread(rows: list[dict[str, Any]]) -> None:
    kinds = Counter(row["about"]["kind"] for row in rows)
    assert kinds.keys() == KINDS.keys()
    for kind, (fewest, most) in KINDS.items():
        assert fewest <= kinds[kind] <= most, kind
    good = [row["about"] for row in rows if row["about"]["kind"] == "good"]
    categories = Counter(about["category"] for about in good)
    assert categories.keys() == GOOD_CATEGORIES
    assert all(15 <= n <= 22 for n in categories.values()), categories
    for category in GOOD_CATEGORIES:
        levels = {about["difficulty"] for about in good if about["category"] == category}
        assert levels == {1, 2, 3, 4, 5}, category


def test_lengths_are_varied(rows: list[dict[str, Any]]) -> None:
    lengths = sorted(len(text.split()) for text in texts(rows, "good"))
    assert 3 <= lengths[0] <= 5 and 80 <= lengths[-1] <= 125
    assert sum(10 <= n <= 50 for n in lengths) > 0.7 * len(lengths)
    assert sum(n < 10 for n in lengths) >= 15


def test_order_is_mixed(rows: list[dict[str, Any]]) -> None:
    """Every quarter of the file has every category, so a run on the first rows is fair."""
    quarter = len(rows) // 4
    for start in range(0, len(rows), quarter):
        part = {row["about"]["category"] for row in rows[start : start + quarter]}
        assert part == GOOD_CATEGORIES | {"other"}, start


def test_only_the_intended_duplicates(rows: list[dict[str, Any]]) -> None:
    every = texts(rows, *KINDS)
    exact = {text: n for text, n in Counter(every).items() if n > 1}
    assert sorted(exact.values()) == [2, 2]
    same = {text: n for text, n in Counter(folded(text) for text in every).items() if n > 1}
    assert sorted(same.values()) == [2] * 5
    assert max(Counter(folded(text) for text in texts(rows, "good")).values()) == 1


def test_near_duplicates_are_near(rows: list[dict[str, Any]]) -> None:
    good = texts(rows, "good")
    nearest = [max(jaccard(text, g) for g in good) for text in texts(rows, "near_duplicate")]
    assert min(nearest) > 0.6
    # Seven or more besides the five equal ones reach the threshold that `select` has by default.
    assert sum(0.7 <= similarity < 1 for similarity in nearest) >= 7


def test_other_rows_are_not_near_each_other(rows: list[dict[str, Any]]) -> None:
    distinct = texts(rows, "good", "control", "off_topic", "noise")
    a, b = max(combinations(distinct, 2), key=lambda pair: jaccard(*pair))
    assert jaccard(a, b) < 0.4, (a, b)


def test_control_rows_hold_control_text_and_others_do_not(rows: list[dict[str, Any]]) -> None:
    mark = re.compile(r"<\|\w+\|>|\[\[[AB]\]\]")
    assert all(mark.search(text) for text in texts(rows, "control"))
    assert not any(mark.search(text) for text in texts(rows, *(KINDS.keys() - {"control"})))


def test_some_text_is_beyond_ascii(lines: list[str]) -> None:
    """Stored as UTF-8 and not as escapes, as a reader of the file would write it."""
    assert sum(not line.isascii() for line in lines) >= 8
    assert not any("\\u" in line for line in lines)
