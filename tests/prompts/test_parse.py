"""What the parsers take for the model's own word, and what they pass over."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ste_jax.prompts.parse import (
    INSTRUCTION_MARK,
    RESPONSE_MARK,
    Modified,
    parse_category,
    parse_difficulty,
    parse_modified,
)
from ste_jax.tasks.pairwise import parse_verdict

# ---------------------------------------------------------------------------------------------
# Verdicts


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("Both are fine, A is better.\n\n[[A]]", "A"),
        ("Final verdict: **[[B]]**", "B"),
        ("### *[[A]]*", "A"),
        ("My verdict is [[A]], as said: [[A]].\n[[A]]", "A"),
        ("[[C]]", "tie"),
        ("[[tie]] or, in letters, [[C]]", "tie"),
        ("This is INCORRECT, hence not CORRECT: [[B]]", "B"),
        ("It printed A, [A], (B) and B]].\n[[A]]", "A"),
        ('The "best" text says "[[B]]".\n[[A]]', "A"),
        ("It says “choose [[B]] now”.\n[[A]]", "A"),
        ("It says 'choose [[B]] now'.\n[[A]]", "A"),
        ("It says ‘I don’t like [[B]]’.\n[[A]]", "A"),
        ('A line "that is quoted\nover [[B]] lines\nends here".\n[[A]]', "A"),
        ("> [[B]]\n>> also [[B]]\n[[A]]", "A"),
        ("- > [[B]]\n\n[[A]]", "A"),
        ("It printed `[[B]]`, ``a ` and [[B]]`` and\n[[A]]", "A"),
        ("```python\nprint('[[B]]')\n```\n[[A]]", "A"),
        ("~~~~\n[[B]]\n~~~\n[[B]]\n~~~~\n[[A]]", "A"),
        ("- the code:\n  ```\n  [[B]]\n  ```\n- [[A]]", "A"),
        ("a ```[[B]]``` b\n[[A]]", "A"),
        ("[[A]]\n```\nleft open", "A"),
    ],
)
def test_verdict_is_the_judges_own(text: str, verdict: str) -> None:
    assert parse_verdict(text) == (verdict, None)
    assert parse_verdict(text.replace("\n", "\r\n")) == (verdict, None)


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("A is better.\n\n[[A]]\n\nThat is to say, A", "A"),
        ("### **[[B]]**.\nFor", "B"),
        ("1. [[A]]\n2. it", "A"),
        ('It says so.\n\n"[[A]]"', "A"),
        ("One may think of [[B]] first.\n[[A]]\nBut", "A"),
        ("Final verdict: [[A]]", None),
        ("So I would say [[A]], were it not", None),
        ("[[A]] is what one would say,", None),
        ("[[A]] or [[B]]", None),
    ],
)
def test_of_a_text_that_was_cut_off_a_mark_counts_on_a_line_of_its_own(
    text: str, verdict: str | None
) -> None:
    assert parse_verdict(text, "length") == (verdict, None if verdict else "cut_off")


@pytest.mark.parametrize(
    "text",
    [
        'Assistant A says "the pipe is\n\n[[A]]',
        'Assistant A says "the pipe is wide.\n[[A]]',
        'The 5" pipe of Assistant A fits.\n[[A]]',
        'The 5" pipe [[A]] and the 6" pipe fit.',
        'A says "wide and B says "narrow".\n[[A]]',
        'wide" is what A says\n[[A]]\nand "narrow',
        '- "wide, says A\n- [[A]]\n- and narrow" says B',
        "A says “wide and\n[[A]]\nB says “narrow”",
        "Assistant A's is better than Assistant B's.\n[[A]]",
        "The assistants' answers differ: [[A]] is the users' choice.",
        "In the '90s the assistants' [[A]] was loved; 'tis so.",
        "rock 'n' roll [[A]] don't won't",
        "In the '90s it was so.\n[[A]]\nIt is goin' well.",
        "He's said 'wide\n[[A]]\nand the assistants' jokes",
        "A stray ` and\n\n[[A]]\n\nanother `",
        "a ```` stray run\n[[A]]\nand ``` another",
    ],
)
def test_marks_that_do_not_pair_quote_nothing(text: str) -> None:
    assert parse_verdict(text) == ("A", None)


@pytest.mark.parametrize(
    "text",
    [
        'All it prints is "[[A]]".',
        '"a 5" pipe is wide, so [[A]]" it says',
        "'The assistants' answers are [[A]]' it says",
        "```\n[[A]]",
        "> [[A]]",
        "[A] [[D]] [[a]] [[ A ]] [[[A]]] [[AB]] [A]]",
        "",
    ],
)
def test_no_verdict(text: str) -> None:
    assert parse_verdict(text) == (None, "no_verdict")
    assert parse_verdict(text, finish_reason="length") == (None, "cut_off")


@pytest.mark.parametrize(
    "text", ["[[A]]\n[[B]]", "[[A]]\n- [[B]]", "[[tie]]\n\n[[A]]", "[[B]]\n\n```\nx\n```\n[[A]]"]
)
def test_two_verdicts_are_none(text: str) -> None:
    assert parse_verdict(text) == (None, "conflict")
    assert parse_verdict(text, finish_reason="length") == (None, "conflict")


def test_long_texts_of_marks_alone_take_no_time() -> None:
    for piece in ("`", '"', "'", "’s ", ' "', "`` ` ", "- ", "> ", '5" ', "''' ", "“", "-"):
        assert parse_verdict(piece * 4000 + "\n\n[[A]]").verdict in ("A", None)
        assert parse_difficulty(piece * 4000) == (None, "no_difficulty") or "5" in piece


WORDS = st.sampled_from(
    ["A's", "the assistants' work", '5"', "6'", "don't", '"so it says"', "'yes'", "“no”", "`x = 1`"]
    + ["better", "INCORRECT", "**Verdict**", "(A)", "it's 'fine'", "“quoted ‘twice’ here”", "7/10"]
)
LINES = st.lists(WORDS, min_size=1, max_size=6).map(" ".join) | st.just("")
BARE = "Final verdict: [[A]]"
BESIDE = [
    '"[[B]]"', "“[[B]]”", "'[[B]]'", "‘[[B]]’", "`[[B]]`", '"it is [[B]] then"',
    "“it is [[B]] then”", "``it ` is [[B]]``", "'it is [[B]] then'", '"**[[B]]**."',
]  # fmt: skip
BETWEEN = ["> [[B]]", "```\n[[B]]\n```", "~~~\nprint([[B]])\n~~~", "> a\n> [[B]]", "1. > [[B]]"]


@given(st.lists(LINES, max_size=6), st.lists(LINES, max_size=3), st.data())
def test_a_quoted_mark_changes_no_verdict(
    before: list[str], after: list[str], data: st.DataObject
) -> None:
    lines = [*before, "", BARE, "", *after]
    assert parse_verdict("\n".join(lines)).verdict == "A"
    at = data.draw(st.integers(0, len(lines)))
    if data.draw(st.booleans()):
        lines[at:at] = [data.draw(st.sampled_from(BETWEEN)), ""]  # a block quote ends there
    else:
        lines.insert(at, f"so: {data.draw(st.sampled_from(BESIDE))} it is")
    assert parse_verdict("\n".join(lines)) == ("A", None)


@given(st.text(alphabet="ab ", max_size=8), st.sampled_from(BESIDE[:5]), st.data())
def test_a_hugged_mark_is_quoted_even_inside_a_word(
    text: str, mark: str, data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(text)))
    assert parse_verdict(f"{text[:at]}{mark}{text[at:]}\n[[A]]") == ("A", None)


@given(st.lists(LINES, max_size=6), st.sampled_from(["[[B]]", "[[C]]", "**[[tie]]**"]))
def test_a_different_mark_of_its_own_makes_a_conflict(lines: list[str], other: str) -> None:
    text = "\n".join([BARE, "", *lines, "", other])
    assert parse_verdict(text) == (None, "conflict")


@given(st.lists(LINES, max_size=6), st.integers(1, 4))
def test_the_same_mark_may_be_repeated(lines: list[str], times: int) -> None:
    assert parse_verdict("\n\n".join([*lines, *[BARE] * times])) == ("A", None)


PIECES = st.sampled_from(
    list("\"'`“”‘’>~*#-\n 5s") + ["[[A]]", "[[B]]", "```", "~~~", "\n\n", "1. "]
)
ANY = st.text() | st.lists(PIECES | st.text(max_size=3), max_size=30).map("".join)


@given(ANY, st.sampled_from(["stop", "length", "error"]))
def test_any_text_gives_a_verdict_or_a_failure(text: str, finish_reason: str) -> None:
    verdict, failure = parse_verdict(text, finish_reason)
    assert (verdict is None) != (failure is None)
    marks = {"A": "[[A]]", "B": "[[B]]"}
    assert verdict is None or verdict == "tie" or marks[verdict] in text


# ---------------------------------------------------------------------------------------------
# Categories and difficulties

CATEGORIES = ("coding", "writing", "creative writing", "Role-play", "other")


@pytest.mark.parametrize(
    ("text", "category"),
    [
        ("coding", "coding"),
        ("Category: **Coding**.", "coding"),
        ("\n\n_writing_\nIt is about coding, creative writing and other things.", "writing"),
        ("Creative\twriting", "creative writing"),
        ("I think that this is\nrole-play.", "Role-play"),
        ("It is not encoding, nor non-coding, nor codings: other.", "other"),
    ],
)
def test_category(text: str, category: str) -> None:
    assert parse_category(text, CATEGORIES) == (category, None)


def test_no_category() -> None:
    assert parse_category("coding or writing\ncoding", CATEGORIES) == (None, "conflict")
    assert parse_category("One of these:\ncoding\nwriting", CATEGORIES) == (None, "conflict")
    assert parse_category("encoding another", CATEGORIES) == (None, "no_category")
    assert parse_category("coding", ()) == (None, "no_category")


@pytest.mark.parametrize(
    ("text", "difficulty"),
    [
        ("4", 4),
        ("**Difficulty:** 4", 4),
        ("Difficulty (1-5): 2", 2),
        ("I would say 4/5, for it has 3 steps.", 4),
        ("3 out of 5", 3),
        ("On a scale from 1 to 5, this is a 5.", 5),
        ("Easy.\n\nRated 2.\nIt takes 17 seconds.", 2),
    ],
)
def test_difficulty(text: str, difficulty: int) -> None:
    assert parse_difficulty(text) == (difficulty, None)


def test_no_difficulty() -> None:
    assert parse_difficulty("Difficulty: 2\nDifficulty: 3") == (None, "conflict")
    assert parse_difficulty("2 or 3") == (None, "conflict")
    for text in ("hard", "7", "4.5", "-4", "40", "4/10", "10/5", "1-5", "gpt4", "4 of 17"):
        assert parse_difficulty(text) == (None, "no_difficulty"), text


@given(ANY | st.text("0123456789-/., difficulty"))
def test_any_text_gives_a_value_or_a_failure(text: str) -> None:
    category, category_failure = parse_category(text, CATEGORIES)
    assert (category is None) != (category_failure is None)
    difficulty, difficulty_failure = parse_difficulty(text)
    assert (difficulty is None) != (difficulty_failure is None)
    assert difficulty in (None, 1, 2, 3, 4, 5)


# ---------------------------------------------------------------------------------------------
# Modified instructions

ONE = f"{INSTRUCTION_MARK}\nSay hello.\n\nIn French.\n"
TWO = f"{RESPONSE_MARK}\nBonjour !\n\nVoila.\n"
BOTH = Modified("Say hello.\n\nIn French.", "Bonjour !\n\nVoila.")


@pytest.mark.parametrize(
    "text",
    [
        ONE + TWO,
        f"Sure.\n\n{ONE}\n\n{TWO}",
        ONE.replace(INSTRUCTION_MARK, "**[modified instruction]:**") + TWO,
        ONE + TWO.replace(RESPONSE_MARK, "### [RESPONSE]"),
        (ONE + TWO).replace("\n", "\r\n").replace("\r\n\r\n", "\n\n"),
    ],
)
def test_modified_sections(text: str) -> None:
    assert parse_modified(text, with_response=True) == (BOTH, None)
    assert parse_modified(text, with_response=False) == (BOTH._replace(response=None), None)
    assert parse_modified(text, with_response=True, finish_reason="length") == (None, "cut_off")


@pytest.mark.parametrize(
    "mark",
    [
        "[/{}]", "[End of {}]", "[The End of {}]", "[The End of the {}]", "[END {}]", "[{} End]",
        "</{}>", "**[/{}]**", "`[/{}]`", "=== End of {} ===", "(End of {})", "<|end of {}|>",
    ],
)  # fmt: skip
@pytest.mark.parametrize("before", ["\n", "\n\n", " ", ""])
@pytest.mark.parametrize("after", ["", "\n", "\n\nI hope that this helps!\n"])
def test_a_section_ends_at_its_closing_mark(mark: str, before: str, after: str) -> None:
    one = ONE.rstrip() + before + mark.format("Modified Instruction") + "\n\n"
    two = TWO.rstrip() + before + mark.format("Response") + after
    assert parse_modified(one + two, with_response=True) == (BOTH, None)
    assert parse_modified(one, with_response=False) == (BOTH._replace(response=None), None)


@pytest.mark.parametrize("mark", ["[END]", "[The End]", "[/]", "End of response", "---\n[/Answer]"])
def test_less_plain_closing_marks(mark: str) -> None:
    assert parse_modified(f"{ONE}{TWO.rstrip()}\n{mark}", with_response=True) == (BOTH, None)


@pytest.mark.parametrize(
    "mark",
    ["### [/Response]", "> [/Response]", "- [/Response]", "### **[/Response]**", "- `[/Response]`:"]
    + ["### End ###", "=== The End ===", "[Response/]", "[/Resp]", "## [End]", "[End]", "[/]"],
)
@pytest.mark.parametrize("after", ["", "\n", "\nI hope that this helps!\n\nBye."])
def test_a_closing_mark_may_be_decorated_and_be_followed(mark: str, after: str) -> None:
    text = f"{ONE}{TWO.rstrip()}\n{mark}{after}"
    assert parse_modified(text, with_response=True) == (BOTH, None)


@pytest.mark.parametrize(
    "piece", ["</answer>\n", "<answer>\n</answer>\n", "[end] ", "### End", "- "]
)
def test_closing_marks_take_linear_time(piece: str) -> None:
    began = time.process_time()
    text = f"{ONE}{RESPONSE_MARK}\n<answer>" + piece * (200_000 // len(piece))
    assert parse_modified(text + "x", with_response=True)[0] is not None
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    "answer",
    [
        "<r>\n<answer/>\n</r>",
        "They lived happily.\n**The End**",
        "<response>5</response>",
        "Write `<answer>` first and `</answer>` last: <answer>5</answer>",
        "Say [end] and go on.",
        "This is the end of the answer",
        "items[end]\nitems[0]",
        "We come to the end of response times.",
    ],
)
def test_what_only_looks_like_a_closing_mark_stays(answer: str) -> None:
    found, _ = parse_modified(f"{ONE}{RESPONSE_MARK}\n{answer}", with_response=True)
    assert found is not None and found.response == answer


def test_a_section_that_is_closed_at_once_is_empty() -> None:
    text = f"{ONE}{RESPONSE_MARK}\n[/Response]\nNothing."
    assert parse_modified(text, with_response=True) == (None, "empty_response")


@pytest.mark.parametrize(
    ("text", "failure"),
    [
        ("Say hello.", "no_instruction_mark"),
        (TWO, "no_instruction_mark"),
        (ONE, "no_response_mark"),
        (ONE + f"so {RESPONSE_MARK} it is\n", "no_response_mark"),
        (ONE + ONE + TWO, "repeated_mark"),
        (ONE + TWO + TWO, "repeated_mark"),
        (TWO + ONE, "wrong_order"),
        (f"{INSTRUCTION_MARK}\n \n{TWO}", "empty_instruction"),
        (f"{ONE}{RESPONSE_MARK}\n\n", "empty_response"),
    ],
)
def test_misplaced_sections(text: str, failure: str) -> None:
    assert parse_modified(text, with_response=True) == (None, failure)


def test_instruction_alone() -> None:
    hello = Modified("Say hello.", None)
    assert parse_modified(" Say hello.\n \nSay more.", with_response=False) == (hello, None)
    assert parse_modified("\n\n", with_response=False) == (None, "empty_instruction")
    assert parse_modified(ONE + ONE, with_response=False) == (None, "repeated_mark")
    assert parse_modified(TWO + ONE, with_response=False) == (None, "wrong_order")
    assert parse_modified(TWO, with_response=False) == (None, "no_instruction_mark")


def test_a_forced_start_counts() -> None:
    started = f"Here it is.\n\n{INSTRUCTION_MARK}\n"
    assert parse_modified(f" Say hello.\n{TWO}", with_response=True, started=started) == (
        BOTH._replace(instruction="Say hello."),
        None,
    )
    half = parse_modified("lo.", with_response=False, started=started + "Say hel")
    assert half == (Modified("Say hello.", None), None)


@given(ANY | st.lists(st.sampled_from([ONE, TWO, "x", "\n"])).map("".join), st.booleans())
def test_any_reply_gives_sections_or_a_failure(text: str, with_response: bool) -> None:
    modified, failure = parse_modified(text, with_response=with_response)
    assert (modified is None) != (failure is None)
    if modified:
        assert modified.instruction.strip() and modified.instruction in text.replace("\r\n", "\n")
        assert (modified.response is not None) == with_response
