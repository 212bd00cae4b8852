"""How long may the texts of a run be, and which buckets hold them?

What a config leaves open (a cap of 0, no buckets) is worked out here from the model's context,
once, when a run begins. What can never fit is refused, with the knob to change and a value that
will do.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ste_jax.config.schema import Config
from ste_jax.system.errors import RequestError
from ste_jax.tasks import task_named

MOST = 4096
"""The most new tokens of an answer and of a judgment, as in the released recipe."""
INSTRUCTION = 1024
"""How many tokens a modified instruction and the marks may take, beside the answer to it."""
CLASSIFY = 64
SHORTEST = 512
ROLES = ("classify", "respond", "modify", "judge")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of a run's texts for its model, in tokens."""

    context: int
    """The model's positions, for a prompt and the text drawn after it."""
    templates: Mapping[str, int]
    """Role -> its prompt with almost empty places."""
    marks: int
    """The marks of a modified instruction and its answer."""
    force_text: int
    labelled: int = 0
    """The judge's longest prompt for a labelled set."""


def usual_cap(context: int) -> int:
    """The usual cap on the new tokens of an answer or a judgment: a quarter of a small context,
    since a judge's prompt holds two answers and is followed by a judgment."""
    return max(1, min(MOST, context // 4))


def check_cap(tokens: int, context: int) -> None:
    """Raises `RequestError` where a command asks for more new tokens than the context can hold."""
    if tokens >= context:
        raise RequestError(
            f"--max-new-tokens={tokens} leaves no room for a prompt in the model's context of "
            f"{context}: lower it, to {usual_cap(context)} for instance"
        )


def doubling(longest: int, chunk: int = 1, first: int = SHORTEST) -> tuple[int, ...]:
    """Buckets that double until one holds `longest`, in multiples of `chunk`; the last is as small
    as can be."""
    sizes = [chunk]
    while sizes[-1] < first:
        sizes[-1] *= 2
    while sizes[-1] < longest:
        sizes.append(2 * sizes[-1])
    sizes[-1] = max(1, math.ceil(min(longest, sizes[-1]) / chunk)) * chunk
    return tuple(sizes)


def fit(config: Config, sizes: Sizes, begun: Mapping[str, Any] | None = None) -> Config:
    """The config with nothing left open. `begun` is the manifest of a run that goes on: the caps
    and buckets that were worked out when it began are kept.

    Raises:
      RequestError: something can never fit; names the knob and a value that will do.
    """
    shapes = (begun or {}).get("shapes", {})
    # A run begun before caps were worked out has those that its buckets allowed.
    old = shapes if begun and "caps" not in begun else {}
    caps = _caps(_with_buckets(config, old), sizes, (begun or {}).get("caps", {}))
    config = _with_buckets(_with_caps(config, caps), shapes)
    knobs = config.decoding
    new = knobs.new_buckets or tuple(sorted(set(_asked_here(config).values())))
    prompts = knobs.prompt_buckets or doubling(
        min(_longest_prompt(config, sizes), sizes.context), knobs.prefill_chunk
    )
    config = _with_buckets(config, {"new_buckets": new, "prompt_buckets": prompts})
    _check(config, sizes)
    return config


def open_caps(asked: Config, fitted: Config) -> dict[str, int]:
    """The caps that a config left open and that are kept when its run goes on. The cap of `modify`
    is left out, since it follows from that of `respond`."""
    return {
        role: getattr(fitted.roles, role).sampling.max_new_tokens
        for role in ("respond", "judge")
        if not getattr(asked.roles, role).sampling.max_new_tokens
    }


def _caps(config: Config, sizes: Sizes, kept: Mapping[str, int]) -> dict[str, int]:
    """The most new tokens of every role."""
    given = {role: getattr(config.roles, role).sampling.max_new_tokens for role in ROLES}
    largest = max(config.decoding.new_buckets, default=sizes.context)
    prompt = max(config.decoding.prompt_buckets, default=sizes.context)
    of_pair = sizes.context if config.pair.generator else largest
    room = _room_of_instruction(sizes)
    answer = min(usual_cap(min(prompt, sizes.context)), of_pair)
    modify = room
    if config.pair.rejected_from == "modify":
        whole = given["modify"] or of_pair
        answer = min(answer, whole - min(room, whole // 2))
        modify = (given["respond"] or kept.get("respond") or answer) + room
    usual = {
        "classify": min(CLASSIFY, largest),
        "respond": answer,
        "modify": min(modify, of_pair),
        "judge": min(usual_cap(sizes.context), largest),
    }
    return {role: given[role] or kept.get(role) or max(1, usual[role]) for role in ROLES}


def _with_caps(config: Config, caps: Mapping[str, int]) -> Config:
    roles = config.roles
    for name, tokens in caps.items():
        role = getattr(roles, name)
        sampling = dataclasses.replace(role.sampling, max_new_tokens=tokens)
        roles = dataclasses.replace(roles, **{name: dataclasses.replace(role, sampling=sampling)})
    return dataclasses.replace(config, roles=roles)


def _with_buckets(config: Config, shapes: Mapping[str, Any]) -> Config:
    """The config with the buckets of `shapes` where it has none of its own."""
    lacking: dict[str, Any] = {
        name: tuple(shapes[name])
        for name in ("prompt_buckets", "new_buckets")
        if name in shapes and not getattr(config.decoding, name)
    }
    return dataclasses.replace(config, decoding=dataclasses.replace(config.decoding, **lacking))


def _asked_here(config: Config) -> dict[str, int]:
    """The caps of the roles that the run's own model plays."""
    elsewhere = set()
    if config.select.generator:
        elsewhere.add("classify")
    if config.pair.generator:
        elsewhere |= {"respond", "modify"}
    caps = {
        role: getattr(config.roles, role).sampling.max_new_tokens
        for role in ROLES
        if role not in elsewhere
    }
    if config.judge.force_verdict:
        caps["force"] = task_named(config.judge.task).forcing.new_tokens
    return caps


def _longest_prompt(config: Config, sizes: Sizes) -> int:
    """The longest prompt of all roles, in tokens. A character of an instruction counts as a token:
    more are rare."""
    instruction, roles = config.pool.max_chars, config.roles
    answer = roles.respond.sampling.max_new_tokens
    held = {
        "classify": instruction,
        "respond": instruction,
        "modify": instruction + answer,
        "judge": instruction + task_named(config.judge.task).answers * answer,
    }
    if config.pair.rejected_from == "respond":
        held["respond"] = max(instruction, roles.modify.sampling.max_new_tokens)
    whole = {role: sizes.templates[role] + tokens for role, tokens in held.items()}
    whole["judge"] = max(whole["judge"], sizes.labelled)
    if config.judge.force_verdict:
        whole["judge"] += roles.judge.sampling.max_new_tokens + sizes.force_text
    here = _asked_here(config)
    return max(tokens for role, tokens in whole.items() if role in here)


def _check(config: Config, sizes: Sizes) -> None:
    knobs, caps = config.decoding, _asked_here(config)
    longest, largest = knobs.prompt_buckets[-1], knobs.new_buckets[-1]
    _check_rejected(config, sizes)
    for role, tokens in caps.items():
        what = f"roles.{role}.sampling.max_new_tokens={tokens}"
        if role == "force":
            what = f"judge.force_verdict takes {tokens} new tokens, which"
        if tokens > largest:
            raise RequestError(
                f"{what} is more than the largest of decoding.new_buckets, {largest}: lower it, or "
                f"add a bucket of {tokens}"
            )
        if role == "force":
            continue
        template = sizes.templates[role]
        if template > longest:
            chunk = knobs.prefill_chunk
            raise RequestError(
                f"roles.{role}.template takes {template} tokens by itself, more than the largest "
                f"of decoding.prompt_buckets, {longest}: add a bucket of "
                f"{doubling(2 * template, chunk)[-1]}, or shorten the template"
            )
        if template + tokens > sizes.context:
            left = sizes.context - template
            why = f"{what} and the {template} tokens of roles.{role}.template"
            todo = (
                f"lower it, to {max(1, min(usual_cap(sizes.context), left // 2))} for instance"
                if left > 1
                else "shorten the template"
            )
            raise RequestError(
                f"{why} are more than the model's context of {sizes.context}: {todo}"
            )
    length = config.finetune.sequence_length
    if sizes.templates["judge"] >= length:
        raise RequestError(
            f"finetune.sequence_length={length} is less than the {sizes.templates['judge']} tokens "
            f"of roles.judge.template by itself: raise it to "
            f"{doubling(2 * sizes.templates['judge'])[-1]} or more, or shorten the template"
        )


def _room_of_instruction(sizes: Sizes) -> int:
    """How many tokens a modified instruction and the marks get, beside the answer to it."""
    return max(1, 2 * sizes.marks, min(INSTRUCTION, sizes.context // 8))


def _check_rejected(config: Config, sizes: Sizes) -> None:
    """A rejected answer must have the room that a chosen one has."""
    answer = config.roles.respond.sampling.max_new_tokens
    whole = config.roles.modify.sampling.max_new_tokens
    if config.pair.rejected_from != "modify" or whole > answer + sizes.marks:
        return
    room, most = _room_of_instruction(sizes), sizes.context - sizes.templates["modify"]
    if not config.pair.generator:
        most = min(most, config.decoding.new_buckets[-1])
    if answer + room <= most:
        todo = f"raise it to {answer + room}, or lower roles.respond.sampling.max_new_tokens"
    else:
        least = min(answer, max(1, most - room))
        todo = f"lower roles.respond.sampling.max_new_tokens to {least}"
        todo += f", and set it to {most}" if most != whole else ""
    raise RequestError(
        f"roles.modify.sampling.max_new_tokens={whole} must hold a modified instruction and an "
        f"answer of up to roles.respond.sampling.max_new_tokens={answer} tokens, or the shorter "
        f"answer of a pair would be the rejected one: {todo}"
    )
