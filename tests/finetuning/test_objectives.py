"""DPO's loss is that of its paper, however its pairs are packed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from ste_jax.config.schema import MeshKnobs
from ste_jax.finetuning.knobs import TrainingKnobs
from ste_jax.finetuning.objectives import Dpo, Preference, Sft, aim_of, units_of
from ste_jax.finetuning.packing import Rows, fill, pack, plan, targets_per_row
from ste_jax.finetuning.reference import reference_scores
from ste_jax.finetuning.train_step import (
    StepMetrics,
    TrainState,
    abstract_state,
    initial_state,
    make_train_step,
    put_batch,
)
from ste_jax.models.attention import causal
from ste_jax.models.decoder import Decoder
from ste_jax.models.parameters import parameters_of
from ste_jax.parallel.sharding import make_mesh
from ste_jax.system.errors import Preempted
from tests.finetuning.small import CONFIG, KNOBS, ONE, example, small_model
from tests.finetuning.test_train_step import assert_same_gradient, first_moments

DPO = Dpo(beta=0.3, nll_scale=1.5)
KNOBS_HERE = dataclasses.replace(KNOBS, sequence_length=64)


def preference(number: int, reference: tuple[float, float] | None = None) -> Preference:
    one, other = example(number), example(number, seed=1)
    return Preference(
        id=f"p{number}",
        prompt_ids=one.prompt_ids,
        chosen_ids=one.completion_ids,
        rejected_ids=other.completion_ids,
        reference=reference,
    )


PAIRS = [preference(n, (-3.0 - n, -4.0 + n / 2)) for n in range(6)]


def train(
    lists: list[list[int]],
    count: int,
    knobs: TrainingKnobs = KNOBS_HERE,
    mesh: Any = ONE,
    pairs: list[Preference] = PAIRS,
    model: Decoder | None = None,
) -> tuple[TrainState, StepMetrics]:
    """A step on rows of these pairs."""
    model = model or small_model()
    kinds: dict[str, Any] = {"param_dtype": jnp.float32}
    abstract = abstract_state(CONFIG, knobs, 10, mesh, **kinds)
    state = initial_state(parameters_of(model), abstract, knobs, 10)
    step = make_train_step(CONFIG, knobs, 10, mesh, dtype=jnp.float32, **kinds, objective=DPO)
    rows = rows_of(lists, count, pairs)
    state, metrics = step(state, put_batch(rows, knobs.accumulate, mesh), {})
    return state, jax.device_get(metrics)


def rows_of(lists: list[list[int]], count: int, pairs: list[Preference]) -> Rows:
    rows = fill(
        lists,
        pairs,
        count=count,
        sequence_length=64,
        targets_per_row=targets_per_row(lists, pairs),
    )
    return DPO.add_fields(rows, lists, pairs, max(map(len, lists)))


GRAPH, WEIGHTS = nnx.split(small_model())
PACKED = pack([pair.length for pair in PAIRS], 64)
assert max(map(len, PACKED)) > 1


@jax.jit
def logits_of(weights: Any, tokens: Any) -> Any:
    """Of one sequence, whatever stands behind it."""
    places = jnp.arange(tokens.shape[1])[None]
    model = nnx.merge(GRAPH, weights)
    hidden, _ = model(tokens, places, causal(jnp.ones_like(tokens), places))
    return model.logits(hidden)[0]


def logprob_of(weights: Any, prompt: Sequence[int], completion: Sequence[int]) -> Any:
    """Of a completion as a whole."""
    ids = [*prompt, *completion]
    padded = jnp.asarray([ids + [0] * (32 - len(ids))])
    logprobs = jax.nn.log_softmax(logits_of(weights, padded))[len(prompt) - 1 :]
    return sum(logprobs[place, token] for place, token in enumerate(completion))


def by_hand(weights: Any) -> tuple[Any, dict[str, Any]]:
    """The loss of all pairs by the formula of the paper, each sequence by itself."""
    preferred, nll, tokens, margins = [], [], 0, []
    for pair in PAIRS:
        both = (pair.chosen_ids, pair.rejected_ids)
        sums = [logprob_of(weights, pair.prompt_ids, completion) for completion in both]
        assert pair.reference is not None
        policy, reference = sums[0] - sums[1], pair.reference[0] - pair.reference[1]
        margins.append(DPO.beta * (policy - reference))
        preferred.append(-jnp.log(jax.nn.sigmoid(margins[-1])))
        nll.append(-sums[0])
        tokens += len(pair.chosen_ids)
    dpo, likelihood = jnp.mean(jnp.stack(preferred)), jnp.sum(jnp.stack(nll)) / tokens
    told = {"dpo_loss": dpo, "nll": likelihood, "margin": jnp.mean(jnp.stack(margins))}
    told["preference_accuracy"] = jnp.mean(jnp.stack(margins) > 0)
    return dpo + DPO.nll_scale * likelihood, told


def test_loss_and_gradient_are_those_of_the_formula() -> None:
    (loss, told), gradient = jax.value_and_grad(by_hand, has_aux=True)(WEIGHTS)
    state, metrics = train(PACKED, 4)
    assert float(metrics.loss) == pytest.approx(float(loss), rel=1e-5)
    for name, value in told.items():
        assert float(metrics.measures[name]) == pytest.approx(float(value), rel=1e-5), name
    wanted = parameters_of(nnx.merge(GRAPH, gradient))
    norm = math.sqrt(sum(float(jnp.sum(value**2)) for value in wanted.values()))
    assert float(metrics.grad_norm) == pytest.approx(norm, rel=1e-4)
    clipped = min(1.0, KNOBS.clip_norm / norm)
    for path, moment in first_moments(state).items():
        want = 0.1 * clipped * np.asarray(wanted[path])
        np.testing.assert_allclose(moment, want, atol=1e-6, rtol=1e-3, err_msg=path)


def test_the_formula_is_torchs_too() -> None:
    """The same loss of the same log-probabilities, written in torch."""
    draw = np.random.default_rng(0)
    policy, reference = draw.normal(size=(2, 5, 2)).astype(np.float32) * 5
    theirs = -torch.nn.functional.logsigmoid(
        DPO.beta * (torch.tensor(policy - reference)[:, 0] - torch.tensor(policy - reference)[:, 1])
    ).mean()
    from ste_jax.finetuning.loss import TargetScores

    # Each completion is one token: its log-probability is the sequence's.
    batch = {
        "segment_ids": jnp.arange(1, 11)[None],
        "target_at": jnp.arange(10)[None],
        "weights": jnp.ones((1, 10)),
        "reference": jnp.asarray(reference)[None],
        "pair": jnp.ones((1, 5)),
    }
    scores = TargetScores(jnp.asarray(policy).reshape(1, 10), jnp.zeros((1, 10), bool))
    ours = DPO.share(scores, batch, DPO.totals(batch)).measures["dpo_loss"]
    assert float(ours) == pytest.approx(float(theirs), rel=1e-6)


def test_pairs_train_alike_packed_or_alone_in_parts_and_on_eight_devices() -> None:
    state, metrics = train(PACKED, 4)
    want = metrics, first_moments(state)
    alone = [[index] for index in range(len(PAIRS))]
    knobs = dataclasses.replace(KNOBS_HERE, batch_rows=8, accumulate=2, remat="layer")
    state, metrics = train([*alone, [], []], 8, knobs)
    assert_same_gradient(state, metrics, want)
    mesh = make_mesh(MeshKnobs(data=2, fsdp=2, tensor=2), jax.devices()[:8])
    state, metrics = train([*alone, [], []], 8, knobs, mesh)
    assert_same_gradient(state, metrics, want)


def scores_of(
    model: Decoder, shards: dict[int, list[Preference]], knobs: TrainingKnobs = KNOBS_HERE
) -> dict[str, tuple[float, float]]:
    """Of the preferences of all shards."""
    found: dict[str, tuple[float, float]] = {}
    for _, scores in reference_scores(model, shards, list(shards), knobs, ONE, lambda: False):
        found |= scores
    return found


def test_a_model_that_is_its_own_reference_has_no_margin() -> None:
    bare = [preference(n) for n in range(6)]
    model = small_model()
    scores = scores_of(model, {0: bare})
    pairs = [dataclasses.replace(pair, reference=scores[pair.id]) for pair in bare]
    _, metrics = train(PACKED, 4, pairs=pairs, model=model)
    assert abs(float(metrics.measures["margin"])) < 1e-5
    assert float(metrics.measures["dpo_loss"]) == pytest.approx(math.log(2), abs=1e-5)


def test_reference_scores_are_sums_over_each_completion() -> None:
    model, knobs = small_model(), dataclasses.replace(KNOBS_HERE, accumulate=2)
    long = dataclasses.replace(preference(1), id="long", chosen_ids=(1,) * 60)
    shards = {0: [preference(n) for n in range(4)], 1: [], 2: [preference(4), long, preference(5)]}
    found = scores_of(model, shards, knobs)
    assert set(found) == {f"p{n}" for n in range(6)}
    for n in range(6):
        pair = preference(n)
        both = zip((pair.chosen_ids, pair.rejected_ids), found[pair.id], strict=True)
        for completion, got in both:
            want = logprob_of(WEIGHTS, pair.prompt_ids, completion)
            assert got == pytest.approx(float(want), rel=1e-5)


def test_a_shards_scores_have_the_same_bits_whichever_shards_are_to_do() -> None:
    model = small_model()
    shards = {0: [preference(n) for n in range(5)], 1: [preference(5), preference(6)]}
    whole = scores_of(model, shards)
    ((shard, rest),) = reference_scores(model, shards, [1], KNOBS_HERE, ONE, lambda: False)
    assert shard == 1
    assert rest == {id: whole[id] for id in ("p5", "p6")}


def test_asked_to_stop_scoring_stops() -> None:
    polls = iter([False, True])
    some = dataclasses.replace(KNOBS_HERE, batch_rows=1)
    shards = {0: [preference(n) for n in range(6)]}
    told: list[int] = []
    with pytest.raises(Preempted):
        list(
            reference_scores(
                small_model(), shards, [0], some, ONE, lambda: next(polls), told.append
            )
        )
    assert len(told) == 1


def test_no_preferences_are_no_work() -> None:
    assert scores_of(small_model(), {0: [], 1: []}) == {}


def test_a_pair_without_a_reference_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="p1 has no reference"):
        rows_of([[0]], 1, [preference(1)])


def test_a_plan_leaves_out_pairs_that_no_row_holds_or_that_lack_a_completion() -> None:
    long = dataclasses.replace(PAIRS[0], id="long", rejected_ids=(1,) * 64)
    empty = dataclasses.replace(PAIRS[0], id="empty", rejected_ids=())
    planned = plan([*PAIRS, long, empty], KNOBS_HERE, seed=0)
    assert (planned.too_long, planned.unweighted) == (("long",), ("empty",))
    assert planned.units_per_row >= 2


def test_what_a_fine_tuning_depends_on_is_told_of_its_units() -> None:
    assert units_of(PAIRS) == units_of(PAIRS[::-1])
    other = dataclasses.replace(PAIRS[0], reference=(0.0, 0.0))
    assert units_of([other]) != units_of(PAIRS[:1])
    assert aim_of(Sft()) == ["sft", {}]
    assert aim_of(DPO) == ["dpo", {"beta": 0.3, "nll_scale": 1.5}]
