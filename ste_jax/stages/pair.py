"""How does an instruction become two answers of which one is known to be better?

The model answers the instruction (chosen), writes a similar but different instruction, and the
answer to that one, which misses what was asked, is the rejected answer to the first (RECIPE,
"Pair").

Both answers have the same cap, that of the `respond` role, counted on the answer alone: else the
longer one would be the better one, and a judge would learn to count."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from ste_jax.config.schema import PairKnobs
from ste_jax.generation import Completion, Generator
from ste_jax.prompts.parse import INSTRUCTION_MARK, Modified, parse_modified
from ste_jax.prompts.sentences import last_full_sentence
from ste_jax.prompts.thoughts import said, whole
from ste_jax.records import DroppedPair, Instruction, Pair, make_pair
from ste_jax.stages.coroutines import Story, drive
from ste_jax.stages.near_duplicates import jaccard, words
from ste_jax.stages.roles import Role, history_of, last_user_text, unasked

VERSION = 2

Count = Callable[[str], int]
"""How many tokens a text has for the run's own model."""


def pair(
    rows: Iterable[Instruction],
    generator: Generator,
    respond: Role,
    modify: Role,
    knobs: PairKnobs,
    *,
    in_flight: int,
    count_tokens: Count = lambda text: 0,
    poll: Callable[[], None] = lambda: None,
) -> Iterator[tuple[Instruction, Pair | DroppedPair]]:
    """A pair for every instruction, or why there is none, as they finish. Without `count_tokens` an
    answer is too long only where its generator cut it off."""

    def tell(row: Instruction) -> Story[Pair | DroppedPair]:
        found = yield from _pair(row, respond, modify, knobs, count_tokens)
        for role in (respond, modify):
            generator.release(f"{row.id}/{role.name}")
        return found

    yield from drive(rows, tell, generator, in_flight=in_flight, poll=poll)


def _pair(
    row: Instruction, respond: Role, modify: Role, knobs: PairKnobs, count_tokens: Count
) -> Story[Pair | DroppedPair]:
    """The story of one row: answer, modified instruction, answer to that one."""

    def drop(reason: str, text: str = "") -> DroppedPair:
        return DroppedPair(id=row.id, reason=reason, text=text)

    cap = respond.sampling.max_new_tokens

    def answered(found: Completion) -> tuple[str, str]:
        """What a completion answers, and what is wrong with it."""
        parts = said(found)
        if parts.open:
            return "", "cut_off_in_thoughts"
        return _read(parts.said, found.finish_reason == "length", cap, knobs, count_tokens)

    instruction, history = last_user_text(row.messages), history_of(row.messages)
    ((answer,),) = yield (respond.request(row.id, {"instruction": instruction}, history),)
    failure = unasked(answer)
    if failure:
        return drop(f"answer_{failure}", answer.error)
    chosen, failure = answered(answer)
    if failure:
        return drop(f"answer_{failure}", answer.text)

    values = {"instruction": instruction, "answer": chosen}
    ((reply,),) = yield (modify.request(row.id, values, history),)
    failure = unasked(reply)
    if failure:
        return drop(f"modify_{failure}", reply.error)
    together = knobs.rejected_from == "modify"
    cut_off = reply.finish_reason == "length"
    # Of a reply that was cut off, an answer that has come to the cap can be read all the same.
    modified, unparsed = parse_modified(
        whole(reply, _begun(modify)), with_response=together, lone=reply.thinks
    )
    if cut_off and not (modified and modified.response) and unparsed != "cut_off_in_thoughts":
        modified, unparsed = None, "cut_off"
    if modified is None:
        return drop(f"modify_{unparsed}", reply.text)
    failure = _likeness(instruction, modified, modify, knobs)
    if failure:
        return drop(failure, modified.instruction)

    if together:
        rejected = modified.response or ""
        if cut_off and not _beyond(rejected, cap, count_tokens):
            return drop("modify_cut_off", reply.text)  # the instruction took the answer's room
        rejected, failure = _read(rejected, False, cap, knobs, count_tokens)
        if failure:
            return drop(f"rejected_{failure}", reply.text)
    else:
        ((other,),) = yield (
            respond.request(f"{row.id}/modified", {"instruction": modified.instruction}, history),
        )
        failure = unasked(other)
        if failure:
            return drop(f"rejected_{failure}", other.error)
        rejected, failure = answered(other)
        if failure:
            return drop(f"rejected_{failure}", other.text)
    if rejected == chosen:
        return drop("same_answers", chosen)
    return make_pair(
        row,
        chosen=chosen,
        rejected=rejected,
        modified_instruction=modified.instruction,
        source="constructed",
    )


def _begun(modify: Role) -> str:
    """What of the forced start belongs to the reply: a mark does, a lead-in in words does not."""
    start = modify.template.start
    return start if INSTRUCTION_MARK.lower() in start.lower() else ""


def _read(
    text: str, cut_off: bool, cap: int, knobs: PairKnobs, count_tokens: Count
) -> tuple[str, str]:
    """An answer and what is wrong with it. One that is longer than the cap, or was cut off there,
    ends with its last full sentence, if it has one. Both answers have one kind of line break: a
    difference there would tell which is which."""
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
    """Why the modified instruction is not one: the same again, or copied from an example."""
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
