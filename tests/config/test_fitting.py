"""What a config leaves open is worked out from the model; what can never fit is refused."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st

from ste_jax.config import from_plain
from ste_jax.config.fitting import ROLES, Sizes, doubling, fit, open_caps
from ste_jax.config.load import load_config
from ste_jax.config.schema import Config
from ste_jax.parallel.processes import Processes
from ste_jax.pipeline.context import open_run
from ste_jax.pipeline.preflight import fit_config
from ste_jax.system import files
from ste_jax.system.errors import RequestError
from tests import tiny

TEMPLATES = {"classify": 120, "respond": 20, "modify": 200, "judge": 300}


def sizes(context: int = 131072, **templates: int) -> Sizes:
    return Sizes(context=context, templates={**TEMPLATES, **templates}, marks=5, force_text=6)


def config(**groups: Any) -> Config:
    found: Config = from_plain.build(Config, {"model": "m", **groups}, "test")
    return found


def caps(found: Config) -> dict[str, int]:
    return {role: getattr(found.roles, role).sampling.max_new_tokens for role in ROLES}


def role(tokens: int) -> dict[str, Any]:
    return {"sampling": {"max_new_tokens": tokens}}


def test_a_large_context_gives_the_caps_of_the_released_recipe() -> None:
    found = fit(config(), sizes())
    assert caps(found) == {"classify": 64, "respond": 4096, "modify": 5120, "judge": 4096}
    assert found.decoding.new_buckets == (64, 4096, 5120)
    # 300 tokens of the template, 8,000 characters of an instruction, two answers: 16,492.
    assert found.decoding.prompt_buckets == (512, 1024, 2048, 4096, 8192, 16384, 16512)


def test_a_small_context_gives_a_quarter_of_it() -> None:
    found = fit(config(), sizes(2048))
    assert caps(found) == {"classify": 64, "respond": 512, "modify": 768, "judge": 512}
    assert found.decoding.prompt_buckets == (512, 1024, 2048)


def test_given_buckets_bound_the_caps() -> None:
    """As they were: a run that was begun with these buckets goes on as it began."""
    old = {"prompt_buckets": [512, 1024, 2048], "new_buckets": [128, 1024]}
    wanted = {"classify": 64, "respond": 512, "modify": 1024, "judge": 1024}
    assert caps(fit(config(decoding=old), sizes())) == wanted
    resumed = fit(config(), sizes(), {"shapes": old})
    assert caps(resumed) == wanted
    assert resumed.decoding.prompt_buckets == (512, 1024, 2048)


def test_a_given_cap_of_the_answer_gives_the_reply_that_holds_one_more_room() -> None:
    assert caps(fit(config(roles={"respond": role(300)}), sizes()))["modify"] == 1324
    alone = config(roles={"respond": role(300)}, pair={"rejected_from": "respond"})
    assert caps(fit(alone, sizes()))["modify"] == 1024


def test_what_was_worked_out_stays_when_the_run_goes_on() -> None:
    asked = config(pool={"max_chars": 100})
    first = fit(asked, sizes())
    begun = {
        "shapes": from_plain.to_dict(first.decoding),
        "caps": open_caps(asked, first),
    }
    assert begun["caps"] == {"respond": 4096, "judge": 4096}
    assert fit(asked, sizes(), begun) == first
    assert fit(first, sizes(), begun) == first  # as `config.yaml` has it
    # What a later version would work out otherwise does not reach a run that was begun.
    assert caps(fit(asked, sizes(), {**begun, "caps": {"respond": 2000, "judge": 900}})) == {
        "classify": 64,
        "respond": 2000,
        "modify": 3024,
        "judge": 900,
    }


def test_a_forced_verdict_has_its_place() -> None:
    found = fit(config(judge={"force_verdict": True}, roles={"judge": role(100)}), sizes(2048))
    assert found.decoding.new_buckets == (4, 64, 100, 512, 768)


def test_a_labelled_set_has_its_place() -> None:
    asked = config(pool={"max_chars": 100}, roles={"respond": role(100), "judge": role(100)})
    assert fit(asked, sizes()).decoding.prompt_buckets[-1] == 640
    longer = dataclasses.replace(sizes(), labelled=5000)
    assert fit(asked, longer).decoding.prompt_buckets[-1] == 5120


def test_roles_that_others_play_have_no_place_here() -> None:
    elsewhere = config(
        endpoints={"big": {"url": "http://h/v1", "model": "m"}},
        pair={"generator": "big"},
        select={"generator": "big"},
    )
    found = fit(elsewhere, sizes(modify=10**6, classify=10**6))
    assert found.decoding.new_buckets == (4096,)


@pytest.mark.parametrize(
    ("groups", "of", "told"),
    [
        (
            {"roles": {"judge": role(200)}, "decoding": {"new_buckets": [64, 128]},
             "pair": {"rejected_from": "respond"}},
            {},
            "roles.judge.sampling.max_new_tokens=200 is more than the largest of "
            "decoding.new_buckets, 128: lower it, or add a bucket of 200",
        ),
        (
            {"judge": {"force_verdict": True}, "decoding": {"new_buckets": [2]},
             "roles": {"classify": role(2)},
             "pair": {"rejected_from": "respond"}},
            {},
            "judge.force_verdict takes 4 new tokens",
        ),
        (
            {"decoding": {"prompt_buckets": [256]}},
            {},
            "roles.judge.template takes 300 tokens by itself, more than the largest of "
            "decoding.prompt_buckets, 256: add a bucket of 640",
        ),
        (
            {"roles": {"judge": role(4000)}},
            {"context": 4096},
            "roles.judge.sampling.max_new_tokens=4000 and the 300 tokens of roles.judge.template "
            "are more than the model's context of 4096: lower it, to 1024 for instance",
        ),
        (
            {"roles": {"judge": role(10)}},
            {"context": 1300, "judge": 1300},
            "are more than the model's context of 1300: shorten the template",
        ),
        (
            {"roles": {"respond": role(512), "modify": role(512)}},
            {},
            "roles.modify.sampling.max_new_tokens=512 must hold a modified instruction and an "
            "answer of up to roles.respond.sampling.max_new_tokens=512 tokens",
        ),
        (
            {"finetune": {"sequence_length": 256}},
            {},
            "finetune.sequence_length=256 is less than the 300 tokens of roles.judge.template",
        ),
    ],
)  # fmt: skip
def test_what_can_never_fit_is_refused(
    groups: dict[str, Any], of: dict[str, int], told: str
) -> None:
    with pytest.raises(RequestError, match=re.escape(told)):
        fit(config(**groups), sizes(**of))


@settings(deadline=None, max_examples=200, derandomize=True)
@given(
    context=st.integers(1200, 300_000),
    max_chars=st.integers(1, 100_000),
    respond=st.sampled_from([0, 1, 100, 300]),
    chunk=st.sampled_from([1, 32, 96, 128]),
    together=st.booleans(),
    force=st.booleans(),
)
def test_what_is_worked_out_fits(
    context: int, max_chars: int, respond: int, chunk: int, together: bool, force: bool
) -> None:
    found = fit(
        config(
            pool={"max_chars": max_chars},
            roles={"respond": role(respond)},
            pair={"rejected_from": "modify" if together else "respond"},
            judge={"force_verdict": force},
            decoding={"prefill_chunk": chunk},
        ),
        sizes(context),
    )
    new, prompts = found.decoding.new_buckets, found.decoding.prompt_buckets
    asked = caps(found)
    assert max(asked.values()) == new[-1]
    assert list(prompts) == sorted(set(prompts)) and not any(size % chunk for size in prompts)
    longest = TEMPLATES["judge"] + max_chars + 2 * asked["respond"]
    assert prompts[-1] >= min(longest, context)
    if together:  # a rejected answer has the room that a chosen one has
        assert asked["modify"] > asked["respond"]
    for name in ROLES:
        assert 1 <= asked[name] <= context - TEMPLATES[name]


@pytest.mark.parametrize(
    ("longest", "chunk", "buckets"),
    [(1, 1, (1,)), (300, 128, (384,)), (513, 128, (512, 640)), (2048, 128, (512, 1024, 2048))],
)
def test_buckets_double(longest: int, chunk: int, buckets: tuple[int, ...]) -> None:
    assert doubling(longest, chunk) == buckets


# ---------------------------------------------------------------------------------------------
# A run


def left_open(root: Path) -> Config:
    """The tiny run's config, its caps and buckets left open."""
    values = tiny.config(root)
    for name in ("respond", "modify", "judge"):
        del values["roles"][name]["sampling"]["max_new_tokens"]
    del values["decoding"]["prompt_buckets"], values["decoding"]["new_buckets"]
    found: Config = from_plain.build(Config, values, "test")
    return found


@pytest.mark.parametrize("context", [128, 160, 256, 512])
def test_small_contexts_with_nothing_set_fit(context: int) -> None:
    small = Sizes(context=context, templates=dict.fromkeys(ROLES, 20), marks=16, force_text=6)
    found = fit(config(), small)
    assert caps(found)["modify"] > caps(found)["respond"] + small.marks


@pytest.mark.parametrize(
    ("asked", "context"),
    [
        ({"respond": role(512), "modify": role(500)}, 8192),
        ({"respond": role(8000), "modify": role(8000)}, 8192),
        ({"respond": role(4096), "modify": role(4096)}, 5000),
    ],
)
def test_advice_can_be_followed(asked: dict[str, Any], context: int) -> None:
    """Of a reply without room for an answer as long as the chosen one."""
    with pytest.raises(RequestError, match="must hold a modified instruction") as error:
        fit(config(roles=asked), sizes(context))
    told = str(error.value).partition(": ")[2]
    lower = re.search(r"lower roles.respond.sampling.max_new_tokens to (\d+)", told)
    higher = re.search(r"(?:raise|set) it to (\d+)", told)
    if lower:
        asked["respond"] = role(int(lower[1]))
    if higher:
        asked["modify"] = role(int(higher[1]))
    assert lower or higher
    fit(config(roles=asked), sizes(context))


def opened(asked: Config, root: epath.Path, new_shapes: bool = False) -> Config:
    fitted = fit_config(asked, root, Processes(), new_shapes=new_shapes)
    return open_run(fitted, asked, root, Processes(), new_shapes=new_shapes).config


@pytest.mark.parametrize("name", ["pico", "smollm2-135m", "smollm2-135m-large", "paper"])
def test_what_is_shipped_fits(name: str) -> None:
    asked = load_config(name)
    found = fit(asked, sizes(131072 if name == "paper" else 8192, judge=100, modify=100))
    assert caps(found) == {**caps(asked), "classify": caps(found)["classify"]}
    assert found.decoding == asked.decoding


def test_a_run_keeps_what_was_worked_out_when_it_began(tmp_path: Path) -> None:
    asked, root = left_open(tmp_path), epath.Path(tmp_path / "run")
    first = opened(asked, root)
    # A context of 512: a quarter of it, and an eighth for the instruction.
    assert caps(first) == {"classify": 6, "respond": 128, "modify": 192, "judge": 128}
    assert first.decoding.new_buckets == (4, 6, 128, 192)
    assert first.decoding.prompt_buckets == (512,)
    manifest = files.read_twice(root / "manifest.json") or {}
    assert manifest["caps"] == {"respond": 128, "judge": 128}
    assert manifest["shapes"]["new_buckets"] == [4, 6, 128, 192]
    assert load_config(str(root / "config.yaml")) == first
    assert opened(asked, root) == first
    assert opened(load_config(str(root / "config.yaml")), root) == first
    assert files.read_twice(root / "manifest.json") == manifest
    # Without the model's files it goes on with the seed that it has taken in; here there is none.
    gone = dataclasses.replace(asked, model=str(tmp_path / "gone"))
    with pytest.raises(RequestError, match="gone"):
        opened(gone, root)


def test_a_run_begun_before_buckets_were_worked_out_keeps_its_own(tmp_path: Path) -> None:
    asked, root = left_open(tmp_path), epath.Path(tmp_path / "run")
    opened(asked, root)
    manifest = files.read_twice(root / "manifest.json") or {}
    manifest["shapes"] |= {"prompt_buckets": [256], "new_buckets": [8, 100]}
    del manifest["caps"]
    files.write_twice(root / "manifest.json", manifest)
    found = opened(asked, root)
    assert found.decoding.prompt_buckets == (256,) and found.decoding.new_buckets == (8, 100)
    assert caps(found) == {"classify": 6, "respond": 50, "modify": 100, "judge": 100}
    fresh = opened(asked, root, new_shapes=True)
    assert fresh.decoding.prompt_buckets == (512,)
