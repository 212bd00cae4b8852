"""How is a judge exported for others, as a Hugging Face directory?

The directory has weights, config, tokenizer with its chat template, generation config, how the
judge is asked (`ste_judge.json`), and a model card (`model_card.py`).
"""

from __future__ import annotations

import json
from pathlib import Path

import jax.numpy as jnp
from safetensors import SafetensorError

from ste_jax.checkpoints.card import CARD, read_card
from ste_jax.commands.model_card import model_card
from ste_jax.config.schema import MeshKnobs
from ste_jax.model_io.hf import describe_config, save_hf
from ste_jax.model_io.load_weights import open_weights
from ste_jax.model_io.open_model import open_model
from ste_jax.model_io.stored_judge_card import stored_judge_card
from ste_jax.models.config import ModelConfig
from ste_jax.reporting.phases import Reports
from ste_jax.run.best import locate_and_say
from ste_jax.stages import judge_card
from ste_jax.system import files, progress
from ste_jax.system.errors import RequestError, WorkError


def export_model(source: str, directory: str, reports: Reports, dtype: str | None = None) -> str:
    """Write the model `source` as a Hugging Face directory; returns what to print.

    Args:
      dtype: what the weights are written in; None: as the checkpoint has them, and bfloat16 for a
        model that is no checkpoint of ours.

    Raises:
      RequestError: the source cannot be read, has no Hugging Face form, or the place is taken, if
        only by another export at work.
      WorkError: it cannot be written; nothing half-written is left.
    """
    final = Path(directory)
    if final.exists():
        raise RequestError(f"{directory} is there already; name another place")
    found = locate_and_say(source)
    card = read_card(found.path) if found.kind == "checkpoint" else None
    # Checked before minutes of reading.
    asked = stored_judge_card(found)
    where = str(found.path / CARD)
    shape = ModelConfig.from_dict(card["model"], where) if card else open_weights(found).config
    describe_config(shape)
    if dtype is None:
        dtype = card["parameters"]["embed"]["dtype"] if card else "bfloat16"
    opened = open_model(found, MeshKnobs(), dtype=dtype, param_dtype=dtype)
    building = final.with_name(f"{final.name}.partial-export")
    with files.held(building):
        for left in building.iterdir():  # of an export that was killed
            files.remove(left)
        try:
            count = opened.model.config.parameter_count()
            size = count * jnp.dtype(dtype).itemsize
            with progress.work(f"export {found.name}", size, "bytes") as shown:
                ids = opened.tokenizer.special_token_ids()
                save_hf(opened.model, building, special_token_ids=ids, progress=shown.add)
            opened.tokenizer.save(building)
            if asked is not None:
                card_text = json.dumps(judge_card.to_dict(asked), indent=2, ensure_ascii=False)
                (building / judge_card.FILE).write_text(card_text + "\n", encoding="utf-8")
            provenance = card["provenance"] if card else {"source": source}
            text = model_card(final.name, found, provenance, reports)
            (building / "README.md").write_text(text, encoding="utf-8")
            building.rename(final)
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise WorkError(
                f"could not write {directory}: {reason}; make room and run again"
            ) from error
        finally:
            files.remove(building)
    return f"{directory}: {count:,} parameters in {dtype}, from {found.name}"
