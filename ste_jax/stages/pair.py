"""How does an instruction become two answers of which one is known to be better?

The model answers the instruction (chosen). It then writes a similar but different instruction; the
answer to that one, which misses what was asked, is the rejected answer to the first (Wang et al.
2024, arXiv 2408.02666).

Both answers have the same cap on their length, that of the `respond` role, counted on the answer
alone: otherwise the better answer would be the longer one, and a judge would learn to count."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from ste_jax.config.schema import PairKnobs
from ste_jax.generation import Completion, Generator
from ste_jax.prompts.parse import INSTRUCTION_MARK, Modified, parse_modified
from ste_jax.prompts.sentences import last_full_sentence
from ste_jax.prompts.thoughts import said, whole
from ste_jax.records import DroppedPair, Instruction, Pair, make_pair
from ste_jax.stages.coroutines import Conversation, drive
from ste_jax.stages.near_duplicates import jaccard, words
from ste_jax.stages.roles import Role, history_of, last_user_text, unasked

VERSION = 2

Count = Callable[[str], int]
"""Gives the number of tokens that a text has for the run's own model."""


def pair(
    rows: Iterable[Instruction],
    generator: Generator,
    respond: Role,
    modify: Role,
    knobs: PairKnobs,
    *,
    count_tokens: Count = lambda text: 0,
) -> Iterator[tuple[Instruction, Pair | DroppedPair]]:
    """Yields every instruction with its pair, or with the reason why there is none, as they finish.

    Without `count_tokens` an answer is too long only where its generator cut it off."""

    def converse(row: Instruction) -> Conversation[Pair | DroppedPair]:
        found = yield from _pair(row, respond, modify, knobs, count_tokens)
        for role in (respond, modify):
            generator.release(f"{row.id}/{role.name}")
        return found

    yield from drive(rows, converse, generator)


def _pair(
    row: Instruction, respond: Role, modify: Role, knobs: PairKnobs, count_tokens: Count
) -> Conversation[Pair | DroppedPair]:
    """The conversation of one row: it asks for the answer, for the modified instruction, and for
    the answer to that one."""
    instruction, history = last_user_text(row.messages), history_of(row.messages)
    cap = respond.sampling.max_new_tokens

    def answer(id: str, instruction: str, which: str) -> Conversation[str]:
        ((found,),) = yield (respond.request(id, {"instruction": instruction}, history),)
        failure = unasked(found)
        if failure:
            raise _Dropped(f"{which}_{failure}", found.error)
        parts = said(found)
        if parts.open:
            raise _Dropped(f"{which}_cut_off_in_thoughts", found.text)
        cut_off = found.finish_reason == "length"
        text, failure = _read(parts.said, cut_off, cap, knobs, count_tokens)
        if failure:
            raise _Dropped(f"{which}_{failure}", found.text)
        return text

    try:
        chosen = yield from answer(row.id, instruction, "answer")
        values = {"instruction": instruction, "answer": chosen}
        ((reply,),) = yield (modify.request(row.id, values, history),)
        modified = _modified(reply, instruction, modify, knobs)
        if knobs.rejected_from == "modify":
            rejected = _own_answer(modified, reply, cap, knobs, count_tokens)
        else:
            rejected = yield from answer(f"{row.id}/modified", modified.instruction, "rejected")
        if rejected == chosen:
            raise _Dropped("same_answers", chosen)
    except _Dropped as dropped:
        return DroppedPair(id=row.id, reason=dropped.reason, text=dropped.text)
    return make_pair(
        row,
        chosen=chosen,
        rejected=rejected,
        modified_instruction=modified.instruction,
        source="constructed",
    )


class _Dropped(Exception):
    """There is no pair. Holds the reason, and the text that shows it."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(reason)
        self.reason, self.text = reason, text


def _modified(reply: Completion, instruction: str, modify: Role, knobs: PairKnobs) -> Modified:
    """The modified instruction of a reply, and the answer to it where it holds one."""
    failure = unasked(reply)
    if failure:
        raise _Dropped(f"modify_{failure}", reply.error)
    modified, unparsed = parse_modified(
        whole(reply, _begun(modify)),
        with_response=knobs.rejected_from == "modify",
        lone=reply.thinks,
    )
    # A reply that was cut off can still hold an answer that reached the cap.
    cut_off = reply.finish_reason == "length" and not (modified and modified.response)
    if cut_off and unparsed != "cut_off_in_thoughts":
        modified, unparsed = None, "cut_off"
    if modified is None:
        raise _Dropped(f"modify_{unparsed}", reply.text)
    failure = _likeness(instruction, modified, modify, knobs)
    if failure:
        raise _Dropped(failure, modified.instruction)
    return modified


def _own_answer(
    modified: Modified, reply: Completion, cap: int, knobs: PairKnobs, count_tokens: Count
) -> str:
    """The answer to the modified instruction that the same reply holds."""
    text = modified.response or ""
    if reply.finish_reason == "length" and not _beyond(text, cap, count_tokens):
        raise _Dropped("modify_cut_off", reply.text)  # the instruction took the answer's room
    text, failure = _read(text, False, cap, knobs, count_tokens)
    if failure:
        raise _Dropped(f"rejected_{failure}", reply.text)
    return text


def _begun(modify: Role) -> str:
    """The part of the forced start that belongs to the reply: a mark does, other words do not."""
    start = modify.template.start
    return start if INSTRUCTION_MARK.lower() in start.lower() else ""


def _read(
    text: str, cut_off: bool, cap: int, knobs: PairKnobs, count_tokens: Count
) -> tuple[str, str]:
    """An answer, and what is wrong with it, if anything. An answer that is longer than the cap, or
    was cut off there, ends with its last full sentence, if it has one. Line breaks are made alike:
    a difference would show which answer is which."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").strip()
    if len(text) < max(1, knobs.min_answer_chars):
        return text, "empty"
    beyond = _beyond(text, cap, count_tokens)
    if not (cut_off or beyond):
        return text, ""
    if knobs.drop_cut_off:
        return text, "cut_off"
    kept = _up_to(text, cap, count_tokens) if beyond else text
    end = last_full_sentence(kept)
    return (kept[:end] if end else kept).strip(), ""


def _beyond(text: str, cap: int, count_tokens: Count) -> bool:
    """Whether an answer would have been cut off at the cap, which holds its end-of-turn token."""
    return count_tokens(text.strip()) >= cap


def _up_to(text: str, cap: int, count_tokens: Count) -> str:
    """The longest beginning of a text that is within the cap."""
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if _beyond(text[:middle], cap, count_tokens):
            high = middle - 1
        else:
            low = middle
    return text[:low]


def _likeness(instruction: str, modified: Modified, modify: Role, knobs: PairKnobs) -> str:
    """Why the modified instruction cannot be used: it is the same as the first, or copied from an
    example; empty if it can."""
    new = words(modified.instruction)
    if jaccard(new, words(instruction)) > knobs.max_similarity:
        return "modified_is_same"
    for example in modify.template.examples:
        shown, _ = parse_modified(
            example["reply"],
            with_response=knobs.rejected_from == "modify",
            started=_begun(modify),
        )
        for text in (example["instruction"], shown.instruction if shown else ""):
            if jaccard(new, words(text)) > knobs.max_example_similarity:
                return "modified_copies_example"
    return ""
