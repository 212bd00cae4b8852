"""Are samples what the model says, and the same whatever else is drawn?"""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ste_jax.decoding import attend as attend_module
from ste_jax.decoding import engine as engine_module
from ste_jax.decoding.attend import past_blocks
from ste_jax.decoding.engine import Engine, blocks_read
from ste_jax.decoding.rows import Prompt
from ste_jax.decoding.shapes import DoesNotFit
from ste_jax.models.decoder import Decoder
from ste_jax.models.parameters import parameters_of, with_parameters
from ste_jax.system import preemption
from ste_jax.system.errors import Preempted
from tests.decoding import small
from tests.decoding.small import collect, prompt, request
from tests.decoding.test_sampling import assert_drawn_from, target

LENGTHS = (1, 2, 8, 9, 10, 17, 32)


@functools.cache
def shared() -> Engine:
    """One engine for many tests: what went before must not matter either."""
    return small.engine()


def sampled(id: str, samples: Any = (0,), **more: Any) -> Any:
    return request(id, samples, **{"temperature": 0.9, "top_p": 0.9, "max_new_tokens": 24, **more})


def test_greedy_is_what_computing_everything_again_gives() -> None:
    model, engine = small.small_model(), shared()
    for length in LENGTHS:
        for eos in (True, False):
            one = request(f"{length}{eos}", max_new_tokens=7 + length % 3, ignore_eos=not eos)
            engine.submit(one, prompt(length, length))
    found = collect(engine.completions())
    for length in LENGTHS:
        tokens = prompt(length, length).tokens
        for eos in (True, False):
            got = found[f"{length}{eos}", 0]
            want = small.naive_greedy(model, tokens, 7 + length % 3, eos)
            assert list(got.token_ids) == want
            assert got.finish_reason == ("stop" if eos and want[-1] in small.EOS else "length")
            assert got.text == small.Letters().decode(want)
            logprobs = small.full_logprobs(model, [*tokens, *want])[length - 1 : -1]
            picked = logprobs[np.arange(len(want)), want]
            np.testing.assert_allclose(got.logprobs, picked, atol=1e-5)
            assert got.prompt_tokens == length


def test_a_sample_is_the_same_alone_in_a_crowd_in_another_order_and_in_waves() -> None:
    prompts = {f"row{i}": prompt(i, 3 + 4 * i) for i in range(7)}

    def run(engine: Engine, names: list[str], waves: list[tuple[int, ...]]) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        for samples in waves:
            for name in names:
                engine.submit(sampled(name, samples), prompts[name])
            found |= collect(engine.completions())
        return found

    together = run(small.engine(), list(prompts), [(0, 1, 2, 3, 4)])
    assert len({one.token_ids for one in together.values()}) > 30  # the samples do differ
    assert any(one.finish_reason == "stop" for one in together.values())
    alone = run(shared(), ["row4"], [(3,)])
    assert alone["row4", 3] == together["row4", 3]
    waves = run(shared(), list(prompts)[::-1], [(4,), (1, 0), (2, 3)])
    assert waves == together


@pytest.mark.parametrize(
    ("windows", "as_list"),
    [
        pytest.param(False, True, id="plain-list"),
        pytest.param(True, False, id="windows-stacked"),
        pytest.param(False, False, id="plain-stacked", marks=pytest.mark.slow),
        pytest.param(True, True, id="windows-list", marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("optimized")
def test_a_sample_is_the_same_however_far_others_have_come(
    windows: bool, as_list: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small.windowed_model() if windows else small.small_model()
    long, short = prompt(1, 12), prompt(2, 9)

    def run(new: dict[str, int], **knobs: Any) -> dict[Any, Any]:
        engine = small.engine(model, **knobs)
        for name, tokens in (("long", long), ("short", short)):
            if name in new:
                # The short ones are more than there are slots: others start as these end.
                samples = range(12 if name == "short" else 2)
                one = sampled(name, samples, max_new_tokens=new[name], ignore_eos=True)
                engine.submit(one, tokens)
        return collect(engine.completions())

    whole = run({"long": 23, "short": 6})
    monkeypatch.setattr(engine_module, "layers_as_list", lambda: as_list)
    monkeypatch.setattr(attend_module, "PAST_BLOCK", 7)  # blocks of 7, 7, 7 and 3
    together = run({"long": 23, "short": 6})
    alone = run({"short": 6}) | run({"long": 23})
    assert together == alone
    for key, one in whole.items():
        assert together[key].token_ids == one.token_ids
        np.testing.assert_allclose(together[key].logprobs, one.logprobs, atol=1e-5)


def test_blocks_are_read_as_far_as_a_row_comes() -> None:
    assert past_blocks(24) == [24]
    assert past_blocks(1100) == [256, 256, 256, 256, 76]
    assert past_blocks(5000) == [768, 768, 768, 768, 768, 768, 392]
    wanted = {1: 1, 256: 1, 257: 2, 512: 2, 513: 4, 1024: 4, 1025: 5, 1100: 5}
    assert {tokens: blocks_read(tokens, past_blocks(1100)) for tokens in wanted} == wanted


def test_samples_asked_for_while_others_come() -> None:
    engine = shared()
    expected = {}
    for i in range(4):
        engine.submit(sampled(f"late{i}", (0, 1)), prompt(i, 12))
    expected = collect(engine.completions())
    engine.submit(sampled("late0", (0, 1)), prompt(0, 12))
    found, asked = {}, 1
    for completion in engine.completions():
        found[completion.request_id, completion.sample] = completion
        if asked < 4:
            engine.submit(sampled(f"late{asked}", (0, 1)), prompt(asked, 12))
            asked += 1
    assert found == expected


def test_rows_of_several_lanes_take_turns_and_come_back() -> None:
    engine = small.engine(new_buckets=(6, 24))
    tokens = prompt(2, 14)
    waves = []
    for sample in range(2):
        engine.submit(sampled("long", (sample,)), tokens)
        engine.submit(sampled("short", (sample,), max_new_tokens=6), tokens)
        waves.append(collect(engine.completions()))
    shared().submit(sampled("long", (0, 1)), tokens)
    shared().submit(sampled("short", (0, 1), max_new_tokens=6), tokens)
    expected = collect(shared().completions())
    for i, wave in enumerate(waves):
        assert wave["long", i] == expected["long", i]
        # Other shapes round otherwise, but hardly ever so that another token is drawn.
        assert wave["short", i].token_ids == expected["short", i].token_ids


def test_a_request_to_stop_is_heard_between_rounds() -> None:
    engine = shared()
    engine.submit(sampled("x", (0, 1)), prompt(1, 12))
    expected = collect(engine.completions())
    engine.submit(sampled("x", (0, 1)), prompt(1, 12))
    preemption.request()
    try:
        with pytest.raises(Preempted):
            collect(engine.completions())
    finally:
        preemption._flag.clear()
    assert collect(engine.completions()) == expected


def test_key_id_sample_and_nothing_else_tell_samples_apart() -> None:
    engine = shared()
    engine.submit(sampled("x", (0, 1)), prompt(1, 12))
    engine.submit(sampled("y"), prompt(1, 12))
    first = collect(engine.completions())
    engine.submit(sampled("x", key=1), prompt(1, 12))
    other = collect(engine.completions())
    texts = [*(one.token_ids for one in first.values()), other["x", 0].token_ids]
    assert len(set(texts)) == 4


@functools.cache
def wide() -> Engine:
    return small.engine(groups=8, steps_per_round=2)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"),
    [
        (0.9, 0, 1.0, 0.0),
        (1.3, 0, 0.7, 0.0),
        (1.6, 9, 1.0, 0.0),
        (1.2, 0, 1.0, 0.15),
        (1.5, 14, 0.8, 0.0),
        (1.7, 25, 0.9, 0.1),
    ],
)
def test_tokens_are_distributed_as_the_model_and_the_filters_say(
    temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    engine, tokens, number = wide(), prompt(3, 11), 2000
    how = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    asked = sampled("x", range(number), max_new_tokens=2, ignore_eos=True, **how)
    engine.submit(asked, tokens)
    drawn = [one.token_ids for one in engine.completions()]
    assert len(drawn) == number
    assert_distributed([first for first, _ in drawn], tokens.tokens, how)
    # And the second token of those that have the same first one.
    (common, _), *_ = Counter(first for first, _ in drawn).most_common()
    then = [second for first, second in drawn if first == common]
    assert len(then) > 100
    assert_distributed(then, (*tokens.tokens, common), how)


def assert_distributed(drawn: list[int], before: tuple[int, ...], how: dict[str, Any]) -> None:
    share = target(small.full_logits(small.small_model(), before)[-1], **how)
    assert assert_drawn_from(share, np.bincount(drawn, minlength=len(share)), 5) > 1


def test_rows_that_cannot_be_drawn_fail_alone() -> None:
    engine, good = shared(), prompt(0, 5)
    wrong = {
        "empty": (sampled("empty"), Prompt(())),
        "long": (sampled("long"), prompt(0, 33)),
        "none": (sampled("none", max_new_tokens=0), good),
        "many": (sampled("many", max_new_tokens=25), good),
        "unasked": (sampled("unasked", ()), good),
        "negative": (sampled("negative", (-1,)), good),
    }
    for one, its_prompt in wrong.values():
        engine.submit(one, its_prompt)
    engine.submit(sampled("good", (0, 1)), good)
    found = collect(engine.completions())
    assert {key for key, one in found.items() if one.finish_reason != "error"} == {
        ("good", 0),
        ("good", 1),
    }
    errors = {name: one.error for (name, _), one in found.items() if one.error}
    assert errors.keys() == wrong.keys()
    assert "33 tokens" in errors["long"] and "prompt_buckets" in errors["long"]
    assert errors["negative"] == "samples=[-1]: indices from 0 on are needed"
    assert [name for (name, _), one in found.items() if one.too_long] == ["long"]


def test_more_than_the_models_positions_fails() -> None:
    engine = small.engine(new_buckets=(48,))
    engine.submit(sampled("x", max_new_tokens=40), prompt(0, 25))
    (one,) = engine.completions()
    assert one.too_long and "more than the model's 64 positions" in one.error


POISON = 7


def poisoned() -> Decoder:
    """The small model, but a token's embedding is not a number."""
    model = small.small_model()
    values = parameters_of(model)
    values["embed"] = values["embed"].at[POISON].set(jnp.nan)
    return with_parameters(model, values)


def test_logits_that_are_not_finite_fail_their_row_and_leave_nothing_behind() -> None:
    engine = small.engine(poisoned(), groups=1)
    clean = [
        Prompt(tuple(t for t in prompt(i, 20).tokens if t != POISON and t > 2)) for i in range(3)
    ]
    poison = [
        Prompt((5, 6, POISON, *clean[0].tokens)),
        Prompt((*clean[0].tokens, POISON)),
    ]
    for i, tokens in enumerate([clean[0], poison[0], clean[1], poison[1], clean[2]]):
        engine.submit(request(f"{i}", (0, 1), max_new_tokens=24), tokens)
    found = collect(engine.completions())
    for (name, _), one in found.items():
        assert (one.finish_reason == "error") == (name in "13")
        if name in "13":
            assert one.error == "the model's logits are not finite at new token 0"
    # As far as the clean ones do not say the poisoned word, they are the sound model's.
    for name, tokens in zip("024", clean, strict=True):
        want = small.naive_greedy(small.small_model(), tokens.tokens, 24, eos=True)
        assert POISON not in want
        assert list(found[name, 0].token_ids) == want


def test_stop_strings_end_a_row_and_free_its_slot() -> None:
    model, engine = small.small_model(), shared()
    tokens = prompt(5, 17)
    whole = small.naive_greedy(model, tokens.tokens, 24, eos=False)
    text = small.Letters().decode(whole)
    stop = text[5:8]
    end = text.index(stop) + 3
    for i in range(5):
        one = request(f"{i}", max_new_tokens=24, ignore_eos=True, stop=("no such text", stop))
        engine.submit(one, tokens)
    for one in engine.completions():
        assert (one.text, one.finish_reason) == (text[:end], "stop")
        assert small.Letters().decode(one.token_ids) == text[:end]
        assert len(one.logprobs) == len(one.token_ids) < 24


def test_shared_beginnings_and_second_waves_are_not_computed_again() -> None:
    engine = small.engine(groups=1)
    head = prompt(1, 16).tokens
    prompts = {name: Prompt((*head, *prompt(i, 12).tokens)) for i, name in enumerate("abc")}
    for name, tokens in prompts.items():
        engine.submit(request(name), tokens)
    collect(engine.completions())
    # The last token of a prompt is fed by its rows: 27 are prefilled, 16 of them the same.
    assert engine.usage.prompt_tokens == 3 * 27
    assert engine.usage.cached_prompt_tokens == 2 * 16
    engine.submit(request("a", (1,)), prompts["a"])
    collect(engine.completions())
    assert engine.usage.cached_prompt_tokens == 2 * 16 + 27
    engine.release("a")
    engine.release("never seen")
    engine.submit(request("b", (1,)), prompts["b"])
    collect(engine.completions())
    assert engine.usage.cached_prompt_tokens == 2 * 16 + 2 * 27
    engine.submit(request("a", (2,)), prompts["a"])
    collect(engine.completions())
    assert engine.usage.cached_prompt_tokens == 2 * 16 + 2 * 27 + 16


def test_a_store_without_room_changes_nothing_but_the_work() -> None:
    small_store = small.engine(cache_tokens=0)
    for name in ("u", "v", "u2"):
        for engine in (small_store, shared()):
            engine.submit(sampled("same"), prompt(ord(name[0]), 30))
        assert collect(small_store.completions()) == collect(shared().completions())
    assert small_store.usage.cached_prompt_tokens < 3 * 29


def test_no_step_is_computed_after_the_last_row_has_met_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One round has room for every token that may be asked for, and ends with its longest row."""
    computed = []
    logits = Decoder.logits

    def counted(self: Decoder, hidden: Any) -> Any:
        jax.debug.callback(lambda: computed.append(1))
        return logits(self, hidden)

    monkeypatch.setattr(Decoder, "logits", counted)
    engine = small.engine(steps_per_round=24)
    engine.submit(sampled("0", (0, 1, 2)), prompt(8, 9))
    done = list(engine.completions())
    jax.effects_barrier()
    longest = max(len(one.token_ids) for one in done)
    assert {one.finish_reason for one in done} == {"stop"} and 1 < longest < 24
    assert len(computed) == longest


def test_usage_adds_up() -> None:
    engine = small.engine()
    for i in range(5):
        engine.submit(sampled(f"{i}", (0, 1, 2, 3), ignore_eos=True), prompt(i, 9))
    assert engine.usage.tokens_per_second == engine.usage.slot_occupancy == 0.0
    done = list(engine.completions())
    usage = engine.usage
    assert (usage.requests, usage.samples, len(done)) == (5, 20, 20)
    assert usage.new_tokens == usage.busy_slot_steps == sum(len(one.token_ids) for one in done)
    per_token = small.small_model().config.flops_per_token
    assert usage.flops == per_token * (usage.new_tokens + 5 * 8)
    assert 0 < usage.prefill_seconds < usage.seconds
    assert usage.slot_steps % 8 == 0
    assert 0.5 < usage.slot_occupancy <= 1.0
    assert 0.0 < usage.prefill_share < 1.0
    assert usage.tokens_per_second == usage.new_tokens / usage.seconds


def test_scores_are_those_of_the_whole_sequence() -> None:
    model, engine = small.small_model(), shared()
    for length in (1, 9, 32):
        start = prompt(length, length)
        completions = [prompt(100 + i, 1 + (i * 5) % 24).tokens for i in range(11)] + [()]
        scores = engine.score("s", start, completions)
        assert scores[-1] == ()
        for completion, score in zip(completions, scores, strict=True):
            logprobs = small.full_logprobs(model, [*start.tokens, *completion])[length - 1 : -1]
            picked = logprobs[np.arange(len(completion)), list(completion)]
            np.testing.assert_allclose(score, picked, atol=1e-5)


def test_a_score_does_not_depend_on_what_is_scored_beside_it() -> None:
    engine, start = shared(), prompt(1, 20)
    completions = [prompt(200 + i, 3 + i % 4).tokens for i in range(10)]
    together = engine.score("s", start, completions)
    assert engine.score("t", start, completions[::-1]) == together[::-1]
    assert engine.score("u", start, completions[4:5]) == together[4:5]


@pytest.mark.parametrize(("length", "longest"), [(0, 1), (33, 1), (5, 25)])
def test_what_is_too_long_to_be_scored_is_told(length: int, longest: int) -> None:
    with pytest.raises(DoesNotFit):
        shared().score("s", prompt(0, length), [(5,), (6,) * longest])
