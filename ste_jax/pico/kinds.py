"""Which kinds of task does pico's world have, how are they phrased, and what is right?

A kind is declared once: its phrasings are read in both directions (to write an instruction and to
understand one that a model wrote), and `solve` is the checker. Only measuring, and the making of
the seed, may import this package; the recipe learns from constructed labels alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

Values = dict[str, Any]
"""The operands of a task by the names of their places in the phrasings."""

NAMES = ["Mia", "Tom", "Ana", "Ben", "Eva", "Leo", "Ida", "Max", "Zoe", "Sam"]
THINGS = ["apples", "books", "coins", "stones", "cards", "eggs", "shells", "pens"]
WORDS = (
    *("apple", "chair", "dog", "house", "river", "lamp", "bread", "cloud", "horse", "piano"),
    *("tiger", "bottle", "garden", "window", "mirror", "spoon", "candle", "forest", "bridge"),
)
LETTERS = "abcdefghijklmnoprstuw"
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)


@dataclass(frozen=True)
class Solution:
    """What is right: the steps on the way, and the answer."""

    answer: str
    steps: tuple[str, ...] = ()


@dataclass(frozen=True)
class Kind:
    """A kind of task."""

    name: str
    category: str
    phrasings: tuple[str, ...]
    """Texts with `{place}`s; a place's name up to a digit says what it holds (`number2`)."""
    draw: Callable[[Random, int], Values]
    """Operands of a difficulty from 1 to 3."""
    level: Callable[[Values], int]
    """The difficulty of given operands, from 1 to 3."""
    solve: Callable[[Values], Solution]
    related: str = ""
    """A kind with the same places that asks for something else."""
    few: bool = False
    """Whether it has so few distinct tasks that fresh ones cannot be kept apart from known ones."""


def _between(draw: Random, digits: int) -> int:
    return draw.randint(10 ** (digits - 1), 10**digits - 1)


def _draw_pair(draw: Random, level: int, crosses: Callable[[int, int], bool]) -> tuple[int, int]:
    """Level 1: the second number has one digit; 2: both have two; 3: and their units cross ten."""
    while True:
        a, b = _between(draw, 2), _between(draw, 1 if level == 1 else 2)
        if level == 1 or crosses(a, b) == (level == 3):
            return a, b


def _level_of_pair(high: int, low: int, crosses: Callable[[int, int], bool]) -> int:
    return 1 if low < 10 else 3 if crosses(high, low) else 2


def _carries(a: int, b: int) -> bool:
    return a % 10 + b % 10 > 9


def _borrows(a: int, b: int) -> bool:
    return a % 10 < b % 10


def _sum_numbers(draw: Random, level: int) -> Values:
    pair = _draw_pair(draw, level, _carries)
    a, b = pair if draw.random() < 0.5 else pair[::-1]
    return {"number1": a, "number2": b}


def _level_of_sum(values: Values) -> int:
    return _level_of_pair(max(values.values()), min(values.values()), _carries)


def _difference_numbers(draw: Random, level: int) -> Values:
    while True:
        a, b = _draw_pair(draw, level, _borrows)
        if a > b:
            return {"number1": a, "number2": b}


def _level_of_difference(values: Values) -> int:
    return _level_of_pair(values["number1"], values["number2"], _borrows)


def _sum(values: Values) -> Solution:
    a, b = values["number1"], values["number2"]
    return Solution(str(a + b), (f"{a} + {b} = {a + b}",))


def _difference(values: Values) -> Solution:
    a, b = values["number1"], values["number2"]
    return Solution(str(a - b), (f"{a} - {b} = {a - b}",))


def _number_list(draw: Random, level: int) -> Values:
    count, digits = ((3, 1), (3, 2), (4, 2))[level - 1]
    return {"numbers": draw.sample(range(10 ** (digits - 1), 10**digits), count)}


def _level_of_list(values: Values) -> int:
    numbers = values["numbers"]
    return 3 if len(numbers) > 3 else 2 if max(numbers) > 9 else 1


def _compared(draw: Random, level: int) -> Values:
    count, digits = ((2, 2), (3, 2), (3, 3))[level - 1]
    return {"numbers": draw.sample(range(10 ** (digits - 1), 10**digits), count)}


def _level_of_compared(values: Values) -> int:
    numbers = values["numbers"]
    return 3 if max(numbers) > 99 else 2 if len(numbers) > 2 else 1


def listed(items: Any) -> str:
    """How a list of numbers or words is written."""
    return ", ".join(str(item) for item in items)


def _letter_list(draw: Random, level: int) -> Values:
    return {"letters": draw.sample(LETTERS, (3, 4, 5)[level - 1])}


def _level_of_count(items: Sequence[str], easiest: int) -> int:
    """By how many things there are, `easiest` or fewer being level 1."""
    return min(3, max(1, 1 + len(items) - easiest))


def _counted(draw: Random, level: int) -> Values:
    wanted = draw.choice(LETTERS)
    length, few = (4, 5, 6)[level - 1], draw.sample(LETTERS, 3)
    letters = [draw.choice([wanted, *few]) for _ in range(length)]
    letters[draw.randrange(length)] = wanted
    return {"letter": wanted, "letters": letters}


def _count(values: Values) -> Solution:
    steps, so_far = [], 0
    for letter in values["letters"]:
        so_far += letter == values["letter"]
        steps.append(f"{letter} {so_far}")
    return Solution(str(so_far), tuple(steps))


def _word_with(offset: int) -> Callable[[Random, int], Values]:
    """Some words, and one of them that has another so many places from it."""

    def draw_words(draw: Random, level: int) -> Values:
        words = draw.sample(WORDS, (3, 4, 5)[level - 1])
        places = [at for at in range(len(words)) if at + offset in range(len(words))]
        return {"word": words[draw.choice(places)], "words": words}

    return draw_words


def _word_at(offset: int) -> Callable[[Values], Solution]:
    def solve(values: Values) -> Solution:
        words = values["words"]
        return Solution(words[words.index(values["word"]) + offset])

    return solve


def _level_of_words(values: Values) -> int:
    return _level_of_count(values["words"], 3)


def _day_of_year(draw: Random, level: int) -> Values:
    month = draw.randrange(12)
    days = days_in(month)
    shift = (draw.randint(1, 7), draw.randint(1, 9), draw.randint(10, 20))[level - 1]
    first = draw.randint(1, days - shift) if level == 1 else draw.randint(days - shift + 1, days)
    return {"month": MONTHS[month], "number1": first, "number2": shift}


def _level_of_date(values: Values) -> int:
    days = days_in(MONTHS.index(values["month"]))
    inside = values["number1"] + values["number2"] <= days
    return 1 if inside else 2 if values["number2"] < 10 else 3


def days_in(month: int) -> int:
    """Days of a month, counted from 0."""
    return 28 if month == 1 else 30 if month in (3, 5, 8, 10) else 31


def _later(values: Values) -> Solution:
    month = MONTHS.index(values["month"])
    first, shift, days = values["number1"], values["number2"], days_in(month)
    day = first + shift
    steps = (f"{first} + {shift} = {day}",)
    if day > days:
        steps += (f"{day} - {days} = {day - days}",)
        month, day = (month + 1) % 12, day - days
    return Solution(f"{MONTHS[month]} {day}", steps)


def _hours(draw: Random, level: int) -> Values:
    hours = draw.randint(2, 9)
    minutes = (draw.randint(1, 9), draw.randint(10, 39), draw.randint(40, 59))[level - 1]
    return {"number1": hours, "number2": minutes}


def _level_of_hours(values: Values) -> int:
    minutes = values["number2"]
    return 1 if minutes < 10 else 2 if minutes < 40 else 3


def _minutes(values: Values) -> Solution:
    hours, minutes = values["number1"], values["number2"]
    whole = hours * 60
    return Solution(
        str(whole + minutes),
        (f"{hours} * 60 = {whole}", f"{whole} + {minutes} = {whole + minutes}"),
    )


def _story(draw: Random, level: int) -> Values:
    digits = ((1, 1, 1), (2, 1, 1), (2, 2, 1))[level - 1]
    a, b = _between(draw, digits[0]), _between(draw, digits[1])
    c = draw.randint(1, min(a + b - 1, 10 ** digits[2] - 1))
    return {
        "name": draw.choice(NAMES),
        "thing": draw.choice(THINGS),
        "number1": a,
        "number2": b,
        "number3": c,
    }


def _level_of_story(values: Values) -> int:
    return 3 if values["number2"] > 9 else 2 if values["number1"] > 9 else 1


def _story_end(values: Values) -> Solution:
    a, b, c = (values[f"number{n}"] for n in (1, 2, 3))
    return Solution(str(a + b - c), (f"{a} + {b} = {a + b}", f"{a + b} - {c} = {a + b - c}"))


def _weekday(draw: Random, level: int) -> Values:
    return {
        "day": draw.choice(DAYS),
        "number1": draw.randint(*((1, 2), (3, 4), (5, 6))[level - 1]),
    }


def _level_of_weekday(values: Values) -> int:
    return int(values["number1"] + 1) // 2


def _day_after(values: Values) -> Solution:
    return Solution(DAYS[(DAYS.index(values["day"]) + values["number1"]) % 7])


KINDS = (
    Kind(
        "sum",
        "arithmetic",
        (
            "What is {number1} + {number2}?",
            "Add {number1} and {number2}.",
            "Find the sum of {number1} and {number2}.",
            "How much is {number1} plus {number2}?",
        ),
        _sum_numbers,
        _level_of_sum,
        _sum,
        related="difference",
    ),
    Kind(
        "difference",
        "arithmetic",
        (
            "What is {number1} - {number2}?",
            "How much is {number1} minus {number2}?",
            "Take {number2} away from {number1}.",
            "Subtract {number2} from {number1}.",
        ),
        _difference_numbers,
        _level_of_difference,
        _difference,
        related="sum",
    ),
    Kind(
        "minutes",
        "measures",
        (
            "How many minutes are {number1} hours and {number2} minutes?",
            "Turn {number1} hours and {number2} minutes into minutes.",
            "A film lasts {number1} hours and {number2} minutes. How many minutes is that?",
        ),
        _hours,
        _level_of_hours,
        _minutes,
    ),
    Kind(
        "later",
        "dates",
        (
            "What date is {number2} days after {month} {number1}?",
            "It is {month} {number1}. What date is it {number2} days later?",
            "Count {number2} days on from {month} {number1}. Which date is that?",
        ),
        _day_of_year,
        _level_of_date,
        _later,
    ),
    Kind(
        "weekday",
        "dates",
        (
            "What day is {number1} days after {day}?",
            "Today is {day}. What day is it in {number1} days?",
            "It is {day}. Which day comes {number1} days later?",
        ),
        _weekday,
        _level_of_weekday,
        _day_after,
        few=True,
    ),
    Kind(
        "largest",
        "comparing",
        (
            "Which number is the largest: {numbers}?",
            "Name the largest of these numbers: {numbers}.",
            "Of the numbers {numbers}, which is the biggest?",
        ),
        _compared,
        _level_of_compared,
        lambda values: Solution(str(max(values["numbers"]))),
        related="smallest",
    ),
    Kind(
        "smallest",
        "comparing",
        (
            "Which number is the smallest: {numbers}?",
            "Name the smallest of these numbers: {numbers}.",
            "Of the numbers {numbers}, which is the least?",
        ),
        _compared,
        _level_of_compared,
        lambda values: Solution(str(min(values["numbers"]))),
        related="largest",
    ),
    Kind(
        "rising",
        "sorting",
        (
            "Sort these numbers from small to large: {numbers}.",
            "Put {numbers} in rising order.",
            "Write the numbers {numbers} with the smallest first.",
        ),
        _number_list,
        _level_of_list,
        lambda values: Solution(listed(sorted(values["numbers"]))),
        related="falling",
    ),
    Kind(
        "falling",
        "sorting",
        (
            "Sort these numbers from large to small: {numbers}.",
            "Put {numbers} in falling order.",
            "Write the numbers {numbers} with the largest first.",
        ),
        _number_list,
        _level_of_list,
        lambda values: Solution(listed(sorted(values["numbers"], reverse=True))),
        related="rising",
    ),
    Kind(
        "count",
        "letters",
        (
            "How many times does {letter} stand in {letters}?",
            "Count the letter {letter} in {letters}.",
            "How often do you see the letter {letter} here: {letters}?",
        ),
        _counted,
        lambda values: _level_of_count(values["letters"], 4),
        _count,
    ),
    Kind(
        "backwards",
        "letters",
        (
            "Write {letters} backwards.",
            "Reverse the letters {letters}.",
            "Give the letters {letters} from last to first.",
        ),
        _letter_list,
        lambda values: _level_of_count(values["letters"], 3),
        lambda values: Solution(" ".join(reversed(values["letters"]))),
    ),
    Kind(
        "after",
        "lists",
        (
            "Which word comes after {word} in this list: {words}?",
            "Here is a list: {words}. What follows {word}?",
            "Name the word behind {word} in {words}.",
        ),
        _word_with(1),
        _level_of_words,
        _word_at(1),
        related="before",
    ),
    Kind(
        "before",
        "lists",
        (
            "Which word comes before {word} in this list: {words}?",
            "Here is a list: {words}. What precedes {word}?",
            "Name the word ahead of {word} in {words}.",
        ),
        _word_with(-1),
        _level_of_words,
        _word_at(-1),
        related="after",
    ),
    Kind(
        "story",
        "stories",
        (
            "{name} has {number1} {thing}, finds {number2} and loses {number3}. How many are left?",
            "{name} had {number1} {thing}, got {number2} more and gave {number3} away. "
            "How many remain?",
            "There were {number1} {thing} in a box. {name} put in {number2} and took out "
            "{number3}. How many are in it now?",
        ),
        _story,
        _level_of_story,
        _story_end,
    ),
)

BY_NAME = {kind.name: kind for kind in KINDS}
CATEGORIES = tuple(dict.fromkeys(kind.category for kind in KINDS))
"""Without "other", which is for what is no task of this world."""
