"""How do rows of a run become token ids to train on?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ste_jax.finetuning import packing
from ste_jax.finetuning.knobs import TrainingKnobs
from ste_jax.finetuning.objectives import Preference
from ste_jax.finetuning.packing import Example, Unit
from ste_jax.records import TrainingExample
from ste_jax.system.errors import WorkError
from ste_jax.tokenization.assistant_turn import turn_ids
from ste_jax.tokenization.tokenizer import NO_ARGUMENTS, Tokenizer


def make_examples(
    rows: Sequence[TrainingExample],
    tokenizer: Tokenizer,
    arguments: Mapping[str, Any] = NO_ARGUMENTS,
) -> list[Example]:
    """The units of SFT: the ids of each prompt, made with the same `arguments` of the chat template
    as when the judge was asked, and the ids that were sampled, which are not tokenized again.

    A judgment that was ended from outside (a forced verdict, a stop string) gets the end-of-turn
    token that the model did not print itself, so that the next judge learns to stop there. One
    from an endpoint has no ids: its text is encoded, with its thoughts as this model writes them.
    """
    prompts = tokenizer.prompt_ids_batch((row.messages for row in rows), arguments)
    return [
        Example(
            id=row.id,
            prompt_ids=prompt_ids,
            completion_ids=_ended(_ids(row, "chosen", tokenizer, arguments), tokenizer),
        )
        for row, prompt_ids in zip(rows, prompts, strict=True)
    ]


def make_preferences(
    rows: Sequence[TrainingExample],
    tokenizer: Tokenizer,
    arguments: Mapping[str, Any] = NO_ARGUMENTS,
) -> list[Preference]:
    """The units of DPO: the ids of each prompt, and of a correct and a failed judgment of it, made
    as in `make_examples`. A failed judgment that was cut off stays cut off: nothing is learnt of
    how it would have ended."""
    prompts = tokenizer.prompt_ids_batch((row.messages for row in rows), arguments)
    return [
        Preference(
            id=row.id,
            prompt_ids=prompt_ids,
            chosen_ids=_ended(_ids(row, "chosen", tokenizer, arguments), tokenizer),
            rejected_ids=_rejected_ids(row, tokenizer, arguments),
        )
        for row, prompt_ids in zip(rows, prompts, strict=True)
    ]


def _ids(
    row: TrainingExample,
    which: Literal["chosen", "rejected"],
    tokenizer: Tokenizer,
    arguments: Mapping[str, Any],
) -> tuple[int, ...]:
    if which == "chosen":
        text, ids = row.completion, row.completion_ids
    else:
        text, ids = row.rejected or "", row.rejected_ids or ()
    if ids:
        return tuple(ids)
    return tuple(turn_ids(tokenizer, text, tokenizer.opened_thoughts(row.messages, arguments)))


def _rejected_ids(
    row: TrainingExample, tokenizer: Tokenizer, arguments: Mapping[str, Any]
) -> tuple[int, ...]:
    ids = _ids(row, "rejected", tokenizer, arguments)
    return ids if row.rejected_cut_off else _ended(ids, tokenizer)


def _ended(ids: tuple[int, ...], tokenizer: Tokenizer) -> tuple[int, ...]:
    return ids if ids and ids[-1] in tokenizer.eos_ids else (*ids, tokenizer.end_of_turn_id)


def check_verdicts(
    phase: str,
    iteration: int,
    rows: Sequence[TrainingExample],
    units: Sequence[Unit],
    knobs: TrainingKnobs,
) -> None:
    """Refuses to train where all rows that fit have the same verdict. For tasks with several.

    Raises:
      WorkError: names the knob.
    """
    letters = {row.id: row.label for row in rows}
    cut, _ = packing.cut_to_fit(units, knobs)
    too_long = {unit.id for unit in cut if unit.length > knobs.sequence_length}
    left = {letter for id, letter in letters.items() if id not in too_long}
    if len(left) == 1:
        raise WorkError(
            f"{phase}: {len(too_long)} of iteration {iteration}'s {len(units)} rows are longer "
            f"than {knobs.group}.sequence_length={knobs.sequence_length}, and all the others have "
            f"the verdict {left.pop()}; raise it"
        )
