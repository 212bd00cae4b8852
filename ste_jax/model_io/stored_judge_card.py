"""Where does a model keep the card that says how it is asked as a judge?

A checkpoint has it in its provenance, a Hugging Face directory in a file of its own."""

from __future__ import annotations

from ste_jax.checkpoints.card import CARD, read_card
from ste_jax.model_io.sources import Source
from ste_jax.stages.judge_card import FILE, JudgeCard, from_dict
from ste_jax.system import notation
from ste_jax.system.errors import RequestError


def stored_judge_card(found: Source) -> JudgeCard | None:
    """How a model is asked as a judge; None if it does not say.

    Raises:
      RequestError: it cannot be read, or says what this version does not know; names file and key.
    """
    if found.kind == "checkpoint":
        values = read_card(found.path)["provenance"].get("judge")
        return from_dict(values, str(found.path / CARD)) if values else None
    if found.kind != "hf" or not (found.path / FILE).exists():
        return None
    try:
        values = notation.from_json((found.path / FILE).read_bytes())
    except ValueError as error:
        raise RequestError(f"{found.path / FILE} cannot be read as JSON: {error}") from error
    return from_dict(values, str(found.path / FILE))
