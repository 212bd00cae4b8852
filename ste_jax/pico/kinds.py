"""Which kinds of task does pico's world have, how are they phrased, and what is right?

A kind is declared once: its phrasings are read in both directions (to write an instruction and to
understand one that a model wrote), and `solve` is the checker. Only measuring, and the making of
the seed, may import this package; the recipe learns from constructed labels alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

Values = dict[str, Any]
"""The operands of a task by the names of their places in the phrasings."""

NAMES = ["Mia", "Tom", "Ana", "Ben", "Eva", "Leo", "Ida", "Max", "Zoe", "Sam"]
THINGS = ["apples", "books", "coins", "stones", "cards", "eggs", "shells", "pens"]
MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)


@dataclass(frozen=True)
class Solution:
    """The right steps of a task, and the right answer."""

    answer: str
    steps: tuple[str, ...] = ()


@dataclass(frozen=True)
class Kind:
    """A kind of task, with its phrasings and its checker."""

    name: str
    category: str
    phrasings: tuple[str, ...]
    """Texts with `{place}`s; a place's name up to a digit says what it holds (`number2`)."""
    draw: Callable[[Random, int], Values]
    """Operands of a difficulty from 1 to 3."""
    level: Callable[[Values], int]
    """The difficulty of given operands, from 1 to 3."""
    solve: Callable[[Values], Solution]
    possible: Callable[[Values], bool]
    """Whether given operands have an answer, and are in the range that `draw` draws from."""
    related: str = ""
    """A kind with the same places that asks for something else."""
    symmetric: bool = False
    """Whether the order of its numbers says nothing."""


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


def _numbers_below(*bounds: int) -> Callable[[Values], bool]:
    """A check that `number1`, `number2` .. are at least 1 and below their bounds."""

    def possible(values: Values) -> bool:
        return all(values[f"number{n}"] in range(1, b) for n, b in enumerate(bounds, start=1))

    return possible


def _distinct(values: Values) -> bool:
    numbers = values["numbers"]
    return len(set(numbers)) == len(numbers) in (2, 3) and max(numbers) < 1000


def _sum(values: Values) -> Solution:
    a, b = values["number1"], values["number2"]
    return Solution(str(a + b), (f"{a} + {b} = {a + b}",))


def _difference(values: Values) -> Solution:
    a, b = values["number1"], values["number2"]
    return Solution(str(a - b), (f"{a} - {b} = {a - b}",))


def _three_numbers(draw: Random, level: int) -> Values:
    digits = ((1, 1, 1), (2, 1, 1), (2, 2, 1))[level - 1]
    return {f"number{n}": _between(draw, each) for n, each in enumerate(digits, start=1)}


def _level_of_three(values: Values) -> int:
    return int(1 + sum(value > 9 for value in values.values()))


def _total(values: Values) -> Solution:
    a, b, c = (values[f"number{n}"] for n in (1, 2, 3))
    return Solution(str(a + b + c), (f"{a} + {b} = {a + b}", f"{a + b} + {c} = {a + b + c}"))


def _compared(draw: Random, level: int) -> Values:
    count, digits = ((2, 2), (3, 2), (3, 3))[level - 1]
    return {"numbers": draw.sample(range(10 ** (digits - 1), 10**digits), count)}


def _level_of_compared(values: Values) -> int:
    numbers = values["numbers"]
    return 3 if max(numbers) > 99 else 2 if len(numbers) > 2 else 1


def _middle_numbers(draw: Random, level: int) -> Values:
    low, high = ((1, 9), (10, 99), (100, 999))[level - 1]
    return {"numbers": draw.sample(range(low, high + 1), 3)}


def _level_of_middle(values: Values) -> int:
    return len(str(max(values["numbers"])))


def listed(items: Any) -> str:
    """How a list of numbers is written."""
    return ", ".join(str(item) for item in items)


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


def _day_exists(values: Values) -> bool:
    days = days_in(MONTHS.index(values["month"]))
    return values["number1"] in range(1, 1 + days) and values["number2"] in range(1, 21)


def _later(values: Values) -> Solution:
    month = MONTHS.index(values["month"])
    first, shift, days = values["number1"], values["number2"], days_in(month)
    day = first + shift
    steps = [f"{first} + {shift} = {day}"]
    if day > days:
        steps.append(f"{day} - {days} = {day - days}")
        month, day = (month + 1) % 12, day - days
    return Solution(f"{MONTHS[month]} {day}", tuple(steps))


def _hours(draw: Random, level: int) -> Values:
    hours = draw.randint(2, 12)
    minutes = (draw.randint(1, 9), draw.randint(10, 39), draw.randint(40, 59))[level - 1]
    return {"number1": hours, "number2": minutes}


def _dollars(draw: Random, level: int) -> Values:
    cents = ((1, 9), (10, 49), (50, 99))[level - 1]
    return {"number1": draw.randint(2, 9), "number2": draw.randint(*cents)}


def _level_of_units(*ends: int) -> Callable[[Values], int]:
    """By the units beyond the wholes: up to the first end level 1, up to the second level 2."""
    return lambda values: 1 + sum(values["number2"] > end for end in ends)


def _in_units(size: int) -> Callable[[Values], Solution]:
    """Wholes of so many units, and some units, all in units."""

    def solve(values: Values) -> Solution:
        wholes, units = values["number1"], values["number2"]
        of_wholes = wholes * size
        total = of_wholes + units
        steps = (f"{wholes} * {size} = {of_wholes}", f"{of_wholes} + {units} = {total}")
        return Solution(str(total), steps)

    return solve


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


def _something_left(values: Values) -> bool:
    a, b, c = (values[f"number{n}"] for n in (1, 2, 3))
    return bool(a + b > c) and max(a, b, c) < 100 and min(a, b, c) > 0


def _level_of_story(values: Values) -> int:
    return 3 if values["number2"] > 9 else 2 if values["number1"] > 9 else 1


def _story_end(values: Values) -> Solution:
    a, b, c = (values[f"number{n}"] for n in (1, 2, 3))
    return Solution(str(a + b - c), (f"{a} + {b} = {a + b}", f"{a + b} - {c} = {a + b - c}"))


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
        _numbers_below(100, 100),
        related="difference",
        symmetric=True,
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
        lambda values: 0 < values["number2"] < values["number1"] < 100,
        related="sum",
    ),
    Kind(
        "total",
        "arithmetic",
        (
            "Add up {number1}, {number2} and {number3}.",
            "What do {number1}, {number2} and {number3} make together?",
            "Find the total of {number1}, {number2} and {number3}.",
        ),
        _three_numbers,
        _level_of_three,
        _total,
        _numbers_below(100, 100, 100),
        symmetric=True,
    ),
    Kind(
        "cents",
        "measures",
        (
            "How many cents are {number1} dollars and {number2} cents?",
            "Turn {number1} dollars and {number2} cents into cents.",
            "A book costs {number1} dollars and {number2} cents. How many cents is that?",
        ),
        _dollars,
        _level_of_units(9, 49),
        _in_units(100),
        _numbers_below(10, 100),
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
        _level_of_units(9, 39),
        _in_units(60),
        _numbers_below(13, 60),
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
        _day_exists,
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
        _distinct,
        related="smallest",
        symmetric=True,
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
        _distinct,
        related="largest",
        symmetric=True,
    ),
    Kind(
        "middle",
        "comparing",
        (
            "Which number lies between the others: {numbers}?",
            "Name the middle one of these numbers by size: {numbers}.",
            "Of the numbers {numbers}, which is neither the largest nor the smallest?",
        ),
        _middle_numbers,
        _level_of_middle,
        lambda values: Solution(str(sorted(values["numbers"])[1])),
        lambda values: _distinct(values) and len(values["numbers"]) == 3,
        symmetric=True,
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
        _something_left,
    ),
)

BY_NAME = {kind.name: kind for kind in KINDS}
CATEGORIES = tuple(dict.fromkeys(kind.category for kind in KINDS))
"""The categories of the kinds, without "other", which is for instructions that are no task here."""
