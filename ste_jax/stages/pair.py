"""How does an instruction become two answers of which one is known to be better?

The model answers the instruction (chosen), writes a similar but different instruction, and the
answer to that one, which misses what was asked, is the rejected answer to the first (RECIPE,
"Pair")."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from ste_jax.config import PairKnobs
from ste_jax.generators.protocol import Completion, Generator
from ste_jax.prompts.parse import INSTRUCTION_MARK, Modified, parse_modified
from ste_jax.prompts.sentences import last_full_sentence
from ste_jax.records import DroppedPair, Instruction, Pair, make_pair
from ste_jax.stages.asking import Role, history_of, last_user_text
from ste_jax.stages.drive import Story, drive
from ste_jax.stages.near_duplicates import jaccard, words

VERSION = 1


def pair(
    rows: Iterable[Instruction],
    generator: Generator,
    respond: Role,
    modify: Role,
    knobs: PairKnobs,
    *,
    in_flight: int,
    poll: Callable[[], None] = lambda: None,
) -> Iterator[tuple[Instruction, Pair | DroppedPair]]:
    """A pair for every instruction, or why there is none, as they finish."""

    def tell(row: Instruction) -> Story[Pair | DroppedPair]:
        found = yield from _pair(row, respond, modify, knobs)
        for role in (respond, modify):
            generator.release(f"{row.id}/{role.name}")
        return found

    yield from drive(rows, tell, generator, in_flight=in_flight, poll=poll)


def _pair(
    row: Instruction, respond: Role, modify: Role, knobs: PairKnobs
) -> Story[Pair | DroppedPair]:
    """The story of one row: answer, modified instruction, answer to that one."""

    def drop(reason: str, text: str = "") -> DroppedPair:
        return DroppedPair(id=row.id, reason=reason, text=text)

    instruction, history = last_user_text(row.messages), history_of(row.messages)
    ((answer,),) = yield (respond.request(row.id, {"instruction": instruction}, history),)
    chosen = _answer_text(answer)
    failure = _answer_failure(answer, knobs)
    if failure:
        return drop(f"answer_{failure}", answer.error or answer.text)

    values = {"instruction": instruction, "answer": chosen}
    ((reply,),) = yield (modify.request(row.id, values, history),)
    if reply.finish_reason == "error":
        return drop("modify_error", reply.error)
    together = knobs.rejected_from == "modify"
    modified, unparsed = parse_modified(
        reply.text,
        with_response=together,
        started=_begun(modify),
        finish_reason=reply.finish_reason,
    )
    if modified is None:
        return drop(f"modify_{unparsed}", reply.text)
    failure = _likeness(instruction, modified, modify, knobs)
    if failure:
        return drop(failure, modified.instruction)

    if together:
        rejected = modified.response or ""
        if _too_short(rejected, knobs):
            return drop("rejected_empty", reply.text)
    else:
        ((other,),) = yield (
            respond.request(f"{row.id}/modified", {"instruction": modified.instruction}, history),
        )
        failure = _answer_failure(other, knobs)
        if failure:
            return drop(f"rejected_{failure}", other.error or other.text)
        rejected = _answer_text(other)
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


def _answer_text(answer: Completion) -> str:
    """The answer; one that was cut off ends with its last full sentence, if it has one."""
    end = last_full_sentence(answer.text) if answer.finish_reason == "length" else 0
    return (answer.text[:end] if end else answer.text).strip()


def _answer_failure(answer: Completion, knobs: PairKnobs) -> str:
    if answer.finish_reason == "error":
        return "error"
    if _too_short(answer.text, knobs):
        return "empty"
    if answer.finish_reason == "length" and knobs.drop_cut_off:
        return "cut_off"
    return ""


def _too_short(answer: str, knobs: PairKnobs) -> bool:
    return len(answer.strip()) < max(1, knobs.min_answer_chars)


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
