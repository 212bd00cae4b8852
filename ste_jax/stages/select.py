"""Which instructions are worth learning from?

A model puts each instruction into a category (and, where a knob needs it, rates its difficulty);
near-duplicates, unwanted categories and easy ones go; quotas keep the rest balanced; and what is
kept is split, by instruction, into held-out, validation and training parts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from ste_jax.config.schema import SelectKnobs
from ste_jax.generation import Completion, Generator, Request, Score, ScoreRequest
from ste_jax.prompts.parse import parse_category, parse_difficulty
from ste_jax.prompts.thoughts import whole
from ste_jax.records import (
    NOT_ASKED,
    Instruction,
    Label,
    LabelScore,
    Selection,
    content_id,
    hash_order,
)
from ste_jax.stages.coroutines import Conversation, drive
from ste_jax.stages.near_duplicates import drop_near_duplicates
from ste_jax.stages.roles import Role, history_of, last_user_text, unasked
from ste_jax.system.errors import RequestError, WorkError

VERSION = 1
DIFFICULTIES = ("1", "2", "3", "4", "5")


def needs_difficulty(knobs: SelectKnobs) -> bool:
    """Whether any knob reads the difficulty; only then is the model asked for it."""
    return knobs.prefer_hard or knobs.min_difficulty > 1


# ---------------------------------------------------------------------------------------------
# Labels


def label(
    rows: Iterable[Instruction],
    generator: Generator,
    role: Role,
    knobs: SelectKnobs,
) -> Iterator[tuple[Instruction, Label, list[LabelScore]]]:
    """Yields every instruction with its label (category and difficulty), as they finish, and with
    the scores of all labels where labels are scored."""
    if knobs.labels == "score":
        if not generator.can_score:
            raise RequestError(
                "select.labels=score needs a generator that scores given completions, and this one "
                "cannot; set select.labels=generate"
            )
        yield from _label_by_score(rows, generator, role, knobs)
        return

    def converse(row: Instruction) -> Conversation[Label]:
        ((completion,),) = yield (_classification(row, role, knobs),)
        return _parsed_label(row, completion, role, knobs)

    for row, found in drive(rows, converse, generator):
        yield row, found, []


def _classification(row: Instruction, role: Role, knobs: SelectKnobs) -> Request:
    return role.request(row.id, _places(last_user_text(row.messages), knobs))


def _places(instruction: str, knobs: SelectKnobs) -> dict[str, str]:
    return {"instruction": instruction, "categories": ", ".join(knobs.categories)}


def _parsed_label(
    row: Instruction, completion: Completion, role: Role, knobs: SelectKnobs
) -> Label:
    text = whole(completion, role.template.start)
    failed = unasked(completion)
    if failed:
        return Label(
            id=row.id, category=None, difficulty=None, failure=failed, text=completion.error
        )
    category, failure = parse_category(text, knobs.categories)
    problem: str | None = failure
    difficulty = None
    if needs_difficulty(knobs):
        difficulty, no_difficulty = parse_difficulty(text)
        problem = problem or no_difficulty
    return Label(id=row.id, category=category, difficulty=difficulty, failure=problem, text=text)


@dataclass(frozen=True)
class _Scale:
    """A set of labels, with the bias of the model: its scores where there is nothing to label."""

    kind: str
    labels: tuple[str, ...]
    bias: tuple[float, ...]


def _label_by_score(
    rows: Iterable[Instruction],
    generator: Generator,
    role: Role,
    knobs: SelectKnobs,
) -> Iterator[tuple[Instruction, Label, list[LabelScore]]]:
    """Scores the categories; then, if a knob needs it, the difficulties, as a continuation of the
    same turn after the category."""
    score = _Scorer(generator, role, knobs)
    start = role.template.start
    categories = score.calibrate("category", knobs.categories, start)
    difficulties = None
    if needs_difficulty(knobs):
        neutral = _difficulty_start(start, knobs.categories[-1])
        difficulties = score.calibrate("difficulty", DIFFICULTIES, neutral)
    for batch in _batches(rows, generator.in_flight):
        found = score.rows(batch, categories, [start] * len(batch))
        names = [_best(scored.scores) for scored in found]
        rated = [_Scored() for _ in batch]
        if difficulties is not None:
            starts = [_difficulty_start(start, name or "") for name in names]
            rated = score.rows(batch, difficulties, starts)
        for row, name, scored, rating in zip(batch, names, found, rated, strict=True):
            level = _best(rating.scores)
            error, long = scored.error or rating.error, scored.too_long or rating.too_long
            done = Label(
                id=row.id,
                category=name,
                difficulty=int(level) if level is not None else None,
                failure=("too_long" if long else "error") if error else None,
                text=error,
            )
            yield row, done, scored.scores + rating.scores


def _difficulty_start(start: str, category: str) -> str:
    return f"{start} {category}\nDifficulty:"


def _best(scores: Sequence[LabelScore]) -> str | None:
    return max(scores, key=lambda each: each.calibrated).label if scores else None


@dataclass(frozen=True)
class _Scored:
    """A row's scores of all labels, or the error why there are none."""

    scores: list[LabelScore] = field(default_factory=list)
    error: str = ""
    too_long: bool = False


@dataclass(frozen=True)
class _Scorer:
    """Log-probabilities of labels as the continuation of the classifying prompt."""

    generator: Generator
    role: Role
    knobs: SelectKnobs

    def calibrate(self, kind: str, labels: Sequence[str], start: str) -> _Scale:
        """Measures the bias: mean log-probabilities under content-free instructions (Zhao et al.
        2021, arXiv 2102.09690)."""
        free = self.knobs.content_free
        requests = [
            self._request(f"content-free-{n}", text, labels, start) for n, text in enumerate(free)
        ]
        sums = [0.0] * len(labels)
        for score in self.generator.score(requests):
            if score.error:
                raise WorkError(f"select: the labels cannot be scored: {score.error}")
            for position, logprobs in enumerate(score.logprobs):
                sums[position] += sum(logprobs)
        return _Scale(kind, tuple(labels), tuple(total / max(1, len(free)) for total in sums))

    def rows(
        self, batch: Sequence[Instruction], scale: _Scale, starts: Sequence[str]
    ) -> list[_Scored]:
        """Each row's scores."""
        requests = [
            self._request(row.id, last_user_text(row.messages), scale.labels, start)
            for row, start in zip(batch, starts, strict=True)
        ]
        return [_scored(score, scale) for score in self.generator.score(requests)]

    def _request(self, id: str, text: str, labels: Sequence[str], start: str) -> ScoreRequest:
        return ScoreRequest(
            id=id,
            messages=self.role.template.messages((), **_places(text, self.knobs)),
            completions=tuple(f" {label}" for label in labels),
            continue_text=start,
            template_arguments=self.role.template_arguments,
        )


def _scored(score: Score, scale: _Scale) -> _Scored:
    if score.error:
        return _Scored(error=score.error, too_long=score.too_long)
    scores = [
        LabelScore(
            id=score.request_id,
            kind=scale.kind,
            label=name,
            logprob=sum(logprobs),
            calibrated=sum(logprobs) - bias,
        )
        for name, bias, logprobs in zip(scale.labels, scale.bias, score.logprobs, strict=True)
    ]
    return _Scored(scores)


def _batches(rows: Iterable[Instruction], size: int) -> Iterator[list[Instruction]]:
    batch: list[Instruction] = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


# ---------------------------------------------------------------------------------------------
# The choice: global, by one process, in memory bounded by ids


def choose(
    instructions: Callable[[], Iterable[Instruction]],
    labels: Iterable[Label],
    knobs: SelectKnobs,
) -> list[Selection]:
    """Says of every instruction whether it is kept and in which part, or why it is dropped; ordered
    by id.

    `instructions` is called three times and read as a stream: texts are not kept in memory.
    """
    by_id = {found.id: found for found in labels}
    fates: dict[str, tuple[str, str]] = {}
    for found in by_id.values():
        fates[found.id] = _eligible(found, knobs)
    standing = {id for id, (fate, _) in fates.items() if fate == "kept"}
    texts = lambda: (  # noqa: E731 - read twice
        (row.id, last_user_text(row.messages)) for row in instructions() if row.id in standing
    )
    contexts = {row.id: context for row in instructions() if (context := _context(row))}
    alike = drop_near_duplicates(texts, knobs.near_duplicate_threshold, contexts)
    for id, original in alike.items():
        fates[id] = ("near_duplicate", original)
    eligible = sorted(id for id, (fate, _) in fates.items() if fate == "kept")
    kept = _fill_quotas([by_id[id] for id in eligible], knobs)
    for id in set(eligible) - set(kept):
        fates[id] = ("over_quota", str(by_id[id].category))
    splits = _split(kept, knobs)
    return [
        Selection(
            id=id,
            fate=fates[id][0],
            detail=fates[id][1],
            category=by_id[id].category,
            difficulty=by_id[id].difficulty,
            split=splits.get(id),
        )
        for id in sorted(fates)
    ]


def _context(row: Instruction) -> str:
    """A hash of the turns before an instruction, empty if there are none: the same words after
    another history are another question."""
    before = [[turn["role"], turn["content"]] for turn in history_of(row.messages)]
    return content_id("context", before) if before else ""


def _eligible(found: Label, knobs: SelectKnobs) -> tuple[str, str]:
    if found.failure in NOT_ASKED:
        return str(found.failure), found.text
    if found.category is None:
        return "no_category", found.failure or ""
    if found.category in knobs.drop_categories:
        return "category_dropped", found.category
    if knobs.keep_categories and found.category not in knobs.keep_categories:
        return "category_dropped", found.category
    if knobs.min_difficulty > 1:
        if found.difficulty is None:
            return "no_difficulty", found.failure or ""
        if found.difficulty < knobs.min_difficulty:
            return "too_easy", str(found.difficulty)
    return "kept", ""


def _fill_quotas(eligible: Sequence[Label], knobs: SelectKnobs) -> list[str]:
    """Take from each category in turn, so that small categories are taken whole and large ones
    shrink."""
    queues: dict[str, list[Label]] = defaultdict(list)
    for found in eligible:
        queues[str(found.category)].append(found)
    for queue in queues.values():
        queue.sort(key=lambda each: _preference(each, knobs), reverse=True)
    wanted = knobs.train + knobs.heldout
    most = max(1, int(knobs.max_category_share * wanted))
    kept: list[str] = []
    taken: Counter[str] = Counter()
    while len(kept) < wanted:
        open_ = [name for name in sorted(queues) if queues[name] and taken[name] < most]
        if not open_:
            break
        for name in open_[: wanted - len(kept)]:
            kept.append(queues[name].pop().id)
            taken[name] += 1
    return kept


def _preference(found: Label, knobs: SelectKnobs) -> tuple[int, int]:
    hardness = (found.difficulty or 0) if knobs.prefer_hard else 0
    return (-hardness, hash_order(found.id, "quota"))


def _split(kept: Sequence[str], knobs: SelectKnobs) -> dict[str, str]:
    """The part of each id: held-out, validation or training, in the proportions of the knobs.

    Where fewer were kept than the knobs ask for, every part shrinks in proportion.
    """
    order = sorted(kept, key=lambda id: hash_order(id, "split"))
    heldout = round(len(order) * knobs.heldout / (knobs.train + knobs.heldout))
    validation = round((len(order) - heldout) * knobs.validation_fraction)
    splits = ["heldout"] * heldout + ["validation"] * validation
    splits += ["train"] * (len(order) - len(splits))
    return dict(zip(order, splits, strict=True))
