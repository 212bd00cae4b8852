"""What was the seed trained on? On generated chats in which it plays every role of the recipe.

The prompts are the shipped templates, rendered by the same code as in a run, and the replies are
what the same parsers read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from ste_jax.generation import Message
from ste_jax.pico.answers import draw_answer, stated, write_answer, wrong_solution
from ste_jax.pico.kinds import CATEGORIES, KINDS, NAMES, Solution
from ste_jax.pico.noise import draw_noise
from ste_jax.pico.traces import compared, write_check, write_trace
from ste_jax.pico.world import Task, Tasks, changes
from ste_jax.prompts.parse import INSTRUCTION_MARK, RESPONSE_MARK
from ste_jax.prompts.render import PLACES, load_template
from ste_jax.tasks.pairwise import FIRST, PAIRWISE, SECOND, mark

ALL_CATEGORIES = (*CATEGORIES, "other")


@dataclass(frozen=True)
class Chat:
    """Turns of a chat; `learnt` are the indices of the assistant's turns that are learnt."""

    role: str
    messages: tuple[Message, ...]
    learnt: tuple[int, ...]


def user(text: str) -> Message:
    """A turn of the user."""
    return Message(role="user", content=text)


def assistant(text: str) -> Message:
    """A turn of the assistant."""
    return Message(role="assistant", content=text)


def ask(role: str, **places: str) -> tuple[Message, ...]:
    """A role's prompt, from the shipped template."""
    template = PAIRWISE.load_template("") if role == "judge" else load_template(role, PLACES[role])
    return template.messages((), **places)


def _replied(role: str, asked: tuple[Message, ...], reply: str) -> Chat:
    return Chat(role, (*asked, assistant(reply)), (len(asked),))


def respond(draw: Random, tasks: Tasks) -> Chat:
    """Some instructions, one after another, and their answers."""
    turns: list[Message] = []
    for _ in range(draw.choice((1, 1, 2, 3))):
        task = tasks.draw(draw)
        turns += [user(task.instruction), assistant(draw_answer(task.solution, draw))]
    return Chat("respond", tuple(turns), tuple(range(1, len(turns), 2)))


_CALCULATED = {kind.name for kind in KINDS if kind.solve(kind.draw(Random(0), 1)).steps}


def calculate(draw: Random, tasks: Tasks) -> Chat:
    """Steps of answers, one after another."""
    steps: list[str] = []
    wanted = draw.randint(3, 8)
    calculated = Tasks(tasks.share, [kind for kind in tasks.kinds if kind.name in _CALCULATED])
    while len(steps) < wanted:
        steps += calculated.draw(draw).solution.steps
    asked = ", ".join(step.partition(" = ")[0] for step in steps)
    turns = (user(f"Calculate {asked}."), assistant(f"{', '.join(steps)}."))
    return Chat("calculate", turns, (1,))


def compare(draw: Random, tasks: Tasks) -> Chat:
    """A chat that compares several pairs of results: are the two the same?"""
    pairs = []
    for _ in range(draw.randint(2, 5)):
        if draw.random() < 0.5:
            own = str(_number(draw))
            said = own if draw.random() < 0.5 else _other_number(own, draw)
        else:
            task = tasks.draw(draw)
            own = task.solution.answer
            said = right_or_wrong(task, draw).answer
        pairs.append((said, own))
    asked = " and ".join(f"{said} with {own}" for said, own in pairs)
    reply = " and ".join(compared(said, own) for said, own in pairs)
    return Chat("compare", (user(f"Compare {asked}."), assistant(f"{reply}.")), (1,))


def _number(draw: Random) -> int:
    """A random number of one, two or three digits."""
    digits = draw.randint(1, 3)
    return draw.randint(10 ** (digits - 1), 10**digits - 1)


def _other_number(number: str, draw: Random) -> str:
    """Another number, which most often differs in one digit."""
    while True:
        other = str(_number(draw))
        if draw.random() < 0.7:
            at = draw.randrange(len(number))
            other = number[:at] + draw.choice("123456789") + number[at + 1 :]
        if other != number:
            return other


def ask_to_check(task: Task, answer: str) -> tuple[Message, ...]:
    """The turns of a task, an answer to it, and the request to check the answer."""
    return user(task.instruction), assistant(answer), user("Check this answer.")


def check(draw: Random, tasks: Tasks) -> Chat:
    """A chat that checks answers, right or wrong: it solves each task and compares results."""
    turns: list[Message] = []
    learnt = []
    for _ in range(draw.choice((1, 1, 2))):
        task = tasks.draw(draw)
        answer = draw_answer(right_or_wrong(task, draw), draw)
        comparison = compared(stated(answer), task.solution.answer)
        turns += ask_to_check(task, answer)
        turns.append(assistant(f"{write_answer(task.solution, 0)}\nIt says {comparison}."))
        learnt += [len(turns) - 1]
    return Chat("check", tuple(turns), tuple(learnt))


def review(draw: Random, tasks: Tasks) -> Chat:
    """A chat that checks several people's answers to one task, right or wrong, one by one."""
    task = tasks.draw(draw)
    solutions = [right_or_wrong(task, draw) for _ in range(draw.choice((2, 2, 3)))]
    asked, reply = _checked(task, solutions, draw.sample(NAMES, len(solutions)), draw)
    return Chat("review", (user(asked), assistant(reply)), (1,))


def dictated(draw: Random, tasks: Tasks) -> Chat:
    """A chat that shows how a verdict is written: two answers, both right or both wrong, are
    checked, then the letter that the user names is given. So no letter contradicts the check."""
    task = tasks.draw(draw)
    right = draw.random() < 0.5
    solutions = [task.solution if right else wrong_or_similar(task, draw) for _ in range(2)]
    asked, reply = _checked(task, solutions, (FIRST, SECOND), draw)
    letter = draw.choice((FIRST, SECOND))
    turns = (user(f"{asked}\nWrite {letter}."), assistant(f"{reply}\n{mark(letter)}"))
    return Chat("dictated", turns, (1,))


def _checked(
    task: Task, solutions: Sequence[Solution], names: Sequence[str], draw: Random
) -> tuple[str, str]:
    """The request to check some people's answers to a task, and the reply."""
    answers = [
        (name, draw_answer(solution, draw)) for name, solution in zip(names, solutions, strict=True)
    ]
    shown = [f"{name} answers: {answer}" for name, answer in answers]
    asked = "\n".join([task.instruction, *shown, "Check these answers."])
    return asked, write_check(task, answers)


def right_or_wrong(task: Task, draw: Random) -> Solution:
    """The right solution of a task or a wrong one, each in half of the cases."""
    return task.solution if draw.random() < 0.5 else wrong_or_similar(task, draw)


def wrong_or_similar(task: Task, draw: Random, near: float = 0.5) -> Solution:
    """A wrong solution of a task: a near miss, or the right solution of a similar task."""
    if draw.random() < near:
        return wrong_solution(task, draw)
    return similar(task, draw).solution


def similar(task: Task, draw: Random) -> Task:
    """A similar task of the same share."""
    return next(new for new in changes(task, draw) if new.share == task.share)


def modify(draw: Random, tasks: Tasks) -> Chat:
    """A chat that writes a similar but different instruction, and its answer."""
    task = tasks.draw(draw)
    new = similar(task, draw)
    asked = ask("modify", instruction=task.instruction, answer=draw_answer(task.solution, draw))
    reply = (
        f"{INSTRUCTION_MARK}\n{new.instruction}\n\n"
        f"{RESPONSE_MARK}\n{draw_answer(new.solution, draw)}"
    )
    return _replied("modify", asked, reply)


def classify(draw: Random, tasks: Tasks) -> Chat:
    """A chat that gives an instruction's category and difficulty."""
    if draw.random() < 0.2:
        text, category, level = draw_noise(draw), "other", 1
    else:
        task = tasks.draw(draw)
        text, category, level = task.instruction, task.category, 1 + task.level
    asked = ask("classify", instruction=text, categories=", ".join(ALL_CATEGORIES))
    return _replied("classify", asked, f"Category: {category}\nDifficulty: {level}")


def draw_answers(draw: Random, task: Task, near: float = 0.5) -> tuple[str, str]:
    """A right answer, and one that is wrong: a near miss, or right for a similar task."""
    wrong = wrong_or_similar(task, draw, near)
    return draw_answer(task.solution, draw), draw_answer(wrong, draw)


def judge(draw: Random, tasks: Tasks) -> Chat:
    """A chat that judges two answers: it checks and compares them."""
    right_first, wrong_first = judge_both_orders(draw, tasks)
    return right_first if draw.random() < 0.5 else wrong_first


def judge_both_orders(draw: Random, tasks: Tasks) -> tuple[Chat, Chat]:
    """Two chats that judge the same two answers, one in each order."""
    task = tasks.draw(draw)
    right, wrong = draw_answers(draw, task)
    return judged(task, right, wrong), judged(task, wrong, right)


def judged(task: Task, a: str, b: str) -> Chat:
    """A chat with the judgment of two answers that is right in every step."""
    asked = ask("judge", instruction=task.instruction, answer_a=a, answer_b=b)
    return _replied("judge", asked, write_trace(task, a, b))


Maker = Callable[[Random, Tasks], Chat]

MAKERS: Mapping[str, Maker] = {
    "respond": respond,
    "calculate": calculate,
    "compare": compare,
    "check": check,
    "review": review,
    "modify": modify,
    "classify": classify,
    "judge": judge,
    "dictated": dictated,
}


def draw_chats(
    draw: Random,
    count: int,
    mix: Mapping[str, float],
    tasks: Tasks,
    makers: Mapping[str, Maker] = MAKERS,
) -> list[Chat]:
    """Random chats, each role with its weight."""
    roles = draw.choices(list(mix), list(mix.values()), k=count)
    return [makers[role](draw, tasks) for role in roles]


def all_texts(draw: Random, count: int) -> Sequence[str]:
    """Texts to make a tokenizer from, which hold every word of the world."""
    texts = [phrasing for kind in KINDS for phrasing in kind.phrasings]
    for chat in draw_chats(draw, count, dict.fromkeys(MAKERS, 1.0), Tasks("known")):
        texts += [turn["content"] for turn in chat.messages]
    return texts
