"""How likely does a model find both completions of each preference, before it learns from them?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from ste_jax.finetuning import packing
from ste_jax.finetuning.knobs import TrainingKnobs
from ste_jax.finetuning.objectives import Preference
from ste_jax.finetuning.train_step import make_reference, put_batch
from ste_jax.models.decoder import Decoder
from ste_jax.models.parameters import parameters_of
from ste_jax.system.errors import Preempted

Scores = tuple[float, float]
"""Log-probabilities of the better and of the worse completion as a whole, nats."""


def reference_scores(
    model: Decoder,
    shards: Mapping[int, Sequence[Preference]],
    todo: Sequence[int],
    knobs: TrainingKnobs,
    mesh: Mesh,
    stop_requested: Callable[[], bool],
    scored: Callable[[int], object] = lambda pairs: None,
) -> Iterator[tuple[int, dict[str, Scores]]]:
    """Scores the preferences of the shards in `todo`; yields each shard with its scores by id.

    Each shard is packed by itself, and all batches have the shape that the largest of all `shards`
    needs: so the same bits come out whichever shards are still to do. Pairs that fit no row are
    left out. Every process calls it alike and gets all scores. `stop_requested` is asked before
    each batch; `scored` is called after each with the number of its pairs.

    Raises:
      RequestError: a batch's rows cannot be divided over the mesh.
      Preempted: some process was asked to stop.
    """
    fitting = {
        shard: [each for each in of_shard if each.length <= knobs.sequence_length]
        for shard, of_shard in shards.items()
    }
    packed = {
        shard: packing.pack([each.length for each in of_shard], knobs.sequence_length)
        for shard, of_shard in fitting.items()
    }
    targets = max(packing.targets_per_row(rows, fitting[shard]) for shard, rows in packed.items())
    pairs = max((len(row) for rows in packed.values() for row in rows), default=0)
    params, count = parameters_of(model), knobs.batch_rows
    program = make_reference(
        model.config, knobs, mesh, dtype=model.dtype, param_dtype=model.embed.get_value().dtype
    )
    for shard in todo:
        units, rows = fitting[shard], packed[shard]
        scores: dict[str, Scores] = {}
        for start in range(0, len(rows), count):
            members = rows[start : start + count]
            filled = packing.fill(
                members,
                units,
                count=count,
                sequence_length=knobs.sequence_length,
                targets_per_row=targets,
            )
            pair = np.ones((count, pairs), np.float32)
            filled = dataclasses.replace(filled, extra={"pair": pair})
            batch = put_batch(filled, knobs.accumulate, mesh, stop=stop_requested())
            found, stop = jax.device_get(program(params, batch))
            if stop:
                raise Preempted("asked to stop; run the same command again")
            found = found.reshape(count, pairs, 2)
            for row, indices in enumerate(members):
                for place, index in enumerate(indices):
                    chosen, rejected = found[row, place]
                    scores[units[index].id] = (float(chosen), float(rejected))
            scored(sum(map(len, members)))
        yield shard, scores
