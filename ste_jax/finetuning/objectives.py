"""What does a fine-tuning minimize?

Shapes: `B` rows, `C` targets of a row, `P` pairs of a row.

An objective scores the targets of packed rows. It takes the totals of the whole step, and gives a
micro-batch's share of the loss and of the measures: the shares of all micro-batches sum up to those
of the step. It adds further fields that it needs to the rows beforehand.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from ste_jax.config import identity
from ste_jax.finetuning.loss import TargetScores
from ste_jax.finetuning.packing import Array, Example, Rows, Unit

Fields = Mapping[str, jax.Array]
"""The fields of some rows, `packing.Rows.fields`."""


class Share(NamedTuple):
    """What some rows add to the loss and the measures of their step."""

    loss: jax.Array
    measures: dict[str, jax.Array]
    """The measures by the names that events and tables give them."""


class Objective(Protocol):
    """What is minimized: a frozen dataclass of its knobs."""

    def add_fields(
        self, rows: Rows, members: Sequence[Sequence[int]], units: Sequence[Any], most: int
    ) -> Rows:
        """The rows with the further fields that the objective needs. `members` are the indices of
        each row's units, `most` is the number of units in the fullest row of the plan."""

    def totals(self, batch: Fields) -> dict[str, jax.Array]:
        """The totals of a step that shares are divided by; each field of `batch` is
        [micro-batches,B,...]."""

    def share(self, scores: TargetScores, batch: Fields, totals: Fields) -> Share:
        """The loss and the measures of one micro-batch, as its share of the step's."""


@dataclass(frozen=True)
class Sft:
    """The weighted mean negative log-likelihood of the targets. A unit is an `Example`.

    The mean is over the sum of the weights' sizes. With a weight below 0 the loss rises with the
    target's likelihood. A step without a target has the loss 0.
    """

    def add_fields(
        self, rows: Rows, members: Sequence[Sequence[int]], units: Sequence[Any], most: int
    ) -> Rows:
        """Nothing is needed."""
        return rows

    def totals(self, batch: Fields) -> dict[str, jax.Array]:
        """The sum of the weights' sizes, and the number of weights."""
        size = jnp.sum(jnp.abs(batch["weights"]))
        targets = jnp.sum(_is_target(batch))
        return {
            "weight": jnp.where(size == 0, 1.0, size),
            "targets": jnp.where(targets == 0, 1, targets),
        }

    def share(self, scores: TargetScores, batch: Fields, totals: Fields) -> Share:
        """The loss, and `token_accuracy`: the share of targets that have the highest logit."""
        weights, counted = batch["weights"], _is_target(batch)
        right = jnp.sum(counted & scores.right, dtype=jnp.float32)
        return Share(
            -jnp.sum(jnp.where(counted, weights * scores.logprob, 0.0)) / totals["weight"],
            {"token_accuracy": right / totals["targets"]},
        )


@dataclass(frozen=True, kw_only=True)
class Preference:
    """Two completions of one prompt, the better one first: a `Unit` of two parts."""

    id: str
    prompt_ids: Sequence[int]
    chosen_ids: Sequence[int]
    rejected_ids: Sequence[int]
    reference: tuple[float, float] | None = None
    """Log-probabilities of both as a whole by the model that training starts from, nats."""

    @property
    def parts(self) -> tuple[Example, ...]:
        """The prompt with the better completion, and the prompt with the worse one."""
        return tuple(
            Example(id=f"{self.id}/{name}", prompt_ids=self.prompt_ids, completion_ids=ids)
            for name, ids in (("chosen", self.chosen_ids), ("rejected", self.rejected_ids))
        )

    @property
    def length(self) -> int:
        """Tokens of both."""
        return 2 * len(self.prompt_ids) + len(self.chosen_ids) + len(self.rejected_ids)


@dataclass(frozen=True, kw_only=True)
class Dpo:
    """Direct preference optimization (Rafailov et al. 2023, arXiv 2305.18290, equation 7), and the
    better completions' likelihood beside it. A unit is a `Preference` with its reference.

    The loss is mean over pairs of `-log sigmoid(beta * margin)`, where the margin is by how much
    more than the reference's the model's log-odds speak for the better completion, plus `nll_scale`
    times the mean negative log-likelihood of the better completions' tokens.
    """

    beta: float
    nll_scale: float

    def add_fields(
        self, rows: Rows, members: Sequence[Sequence[int]], units: Sequence[Any], most: int
    ) -> Rows:
        """Adds `reference` [R,P,2], and `pair` [R,P], which is 1 where there is a pair."""
        count = rows.tokens.shape[0]
        reference: Array = np.zeros((count, most, 2), np.float32)
        pair: Array = np.zeros((count, most), np.float32)
        for row, indices in enumerate(members):
            for place, index in enumerate(indices):
                if units[index].reference is None:
                    raise ValueError(f"{units[index].id} has no reference")
                reference[row, place] = units[index].reference
                pair[row, place] = 1.0
        return dataclasses.replace(rows, extra={"reference": reference, "pair": pair})

    def totals(self, batch: Fields) -> dict[str, jax.Array]:
        """The number of pairs, and the number of tokens of their better completions."""
        return {"pairs": jnp.sum(batch["pair"]), "chosen": jnp.sum(_is_chosen(batch))}

    def share(self, scores: TargetScores, batch: Fields, totals: Fields) -> Share:
        """The loss, and the measures `preference_accuracy` (the share of pairs with a margin above
        0), `margin` (the mean of beta times the margin), and `nll` and `token_accuracy` of the
        better completions."""
        reference, pair = batch["reference"], batch["pair"]
        moved = completion_logprobs(scores, batch, pair.shape[1]) - reference
        margin = self.beta * (moved[..., 0] - moved[..., 1])
        chosen = _is_chosen(batch)
        nll = -jnp.sum(jnp.where(chosen, scores.logprob, 0.0)) / totals["chosen"]
        right = jnp.sum(chosen & scores.right, dtype=jnp.float32)
        preferred = jnp.sum(pair * jax.nn.softplus(-margin)) / totals["pairs"]
        return Share(
            preferred + self.nll_scale * nll,
            {
                "dpo_loss": preferred,
                "nll": nll,
                "margin": jnp.sum(pair * margin) / totals["pairs"],
                "preference_accuracy": jnp.sum(pair * (margin > 0)) / totals["pairs"],
                "token_accuracy": right / totals["chosen"],
            },
        )


def completion_logprobs(scores: TargetScores, batch: Fields, pairs: int) -> jax.Array:
    """Log-probability of each completion of each pair [B,P,2] as a whole, nats."""
    completion = _segment_of_targets(batch) - 1
    places = jax.lax.broadcasted_iota(jnp.int32, (1, 1, 2 * pairs), 2)
    mine = (completion[..., None] == places) & _is_target(batch)[..., None]
    # A masked sum and not a product: those of float32 are rounded on TPU.
    sums = jnp.sum(jnp.where(mine, scores.logprob[..., None], 0.0), axis=-2)
    return sums.reshape(*sums.shape[:-1], pairs, 2)


def _is_target(batch: Fields) -> jax.Array:
    """Whether there is a target at each place, [...,C]."""
    return batch["weights"] != 0


def _segment_of_targets(batch: Fields) -> jax.Array:
    """Which segment of its row, from 1, each target belongs to, [...,C]."""
    return jnp.take_along_axis(batch["segment_ids"], batch["target_at"], axis=-1)


def _is_chosen(batch: Fields) -> jax.Array:
    """Whether each target is a token of a better completion (an odd segment), [...,C]."""
    return _is_target(batch) & (_segment_of_targets(batch) % 2 == 1)


def aim_of(objective: Objective) -> list[Any]:
    """What a fingerprint holds of an objective: its class's name in lower case, and its knobs."""
    return [type(objective).__name__.lower(), identity.of(objective)]


def units_of(units: Sequence[Unit]) -> list[list[Any]]:
    """What a fingerprint holds of a fine-tuning's units: JSON-able values, ordered by id."""
    rows = []
    for unit in sorted(units, key=lambda unit: unit.id):
        row: list[Any] = [unit.id]
        for part in unit.parts:
            row += [[int(t) for t in part.prompt_ids], [int(t) for t in part.completion_ids]]
            row.append(None if part.weights is None else [float(w) for w in part.weights])
        reference = getattr(unit, "reference", None)
        rows.append(row if reference is None else [*row, list(reference)])
    return rows
