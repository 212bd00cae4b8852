"""How is the judge asked that a user named, by `ste judge`, by `ste evaluate` or from Python?

A judge trained by a run remembers the prompt it was trained under (`stages.judge_card`), as a
checkpoint and as a Hugging Face directory; a model that remembers nothing is asked as a run asks
its seed. Options given by hand go before either.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ste_jax.checkpoints.card import read_card
from ste_jax.commands.options import DecodingOptions
from ste_jax.config.fitting import check_cap, usual_cap
from ste_jax.config.load import load_config
from ste_jax.decoding.generator import LocalGenerator
from ste_jax.model_io.open_model import longest_prompt, look_at, open_generator, source_fingerprint
from ste_jax.model_io.sources import Source, resolve
from ste_jax.model_io.stored_judge_card import stored_judge_card
from ste_jax.records import Prompt
from ste_jax.stages import judge, judge_card
from ste_jax.stages.judge_card import JudgeCard
from ste_jax.stages.roles import Role, sample_key, to_sampling
from ste_jax.system.errors import RequestError
from ste_jax.tokenization.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class JudgeOptions(DecodingOptions):
    """The options that a user gives for a judge; for None see `card_of`.

    A single vote is greedy where no temperature is given."""

    model: str
    template: str | None = None
    force_verdict: bool | None = None
    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int = 0
    votes: int = 1


def card_of(found: Source, options: JudgeOptions) -> JudgeCard:
    """How the model is asked: as its own card says, else as its run asks, else as a run asks its
    seed. Options override each of these."""
    card = _remembered(found, options.model) or judge_card.default()
    if options.template is not None:
        card = dataclasses.replace(card, template=card.task.load_template(options.template))
    given = {
        key: getattr(options, key)
        for key in ("max_new_tokens", "temperature", "top_p", "top_k", "min_p")
        if getattr(options, key) is not None
    }
    if options.votes == 1:
        given.setdefault("temperature", 0.0)
    context = look_at(found)[0].max_position
    if not card.sampling.max_new_tokens:
        given.setdefault("max_new_tokens", usual_cap(context))
    card = dataclasses.replace(card, sampling=dataclasses.replace(card.sampling, **given))
    check_cap(card.sampling.max_new_tokens, context)
    if options.votes > 1 and card.sampling.temperature == 0:
        raise RequestError(
            f"{options.votes} votes at temperature 0 are one and the same text; give a "
            f"temperature above 0, or ask for one vote"
        )
    if options.force_verdict is not None:
        knobs = dataclasses.replace(card.knobs, force_verdict=options.force_verdict)
        card = dataclasses.replace(card, knobs=knobs)
    return card


def named_options(found: Source, options: JudgeOptions, judging: judge.Judge) -> dict[str, Any]:
    """How a judge is asked, by the names of the options that say so. `usual prompt` tells whether
    its template was neither given nor remembered."""
    sampling, usual = judging.role.sampling, options.template is None
    drawn = ("max_new_tokens", "temperature", "top_p", "top_k", "min_p")
    others = ("seed", "votes", "dtype", "weights", "groups", "group_size")
    values = {name: getattr(sampling, name) for name in drawn}
    values |= {name: getattr(options, name) for name in others}
    return {
        "--template": judging.role.template.name,
        "--force-verdict": judging.knobs.force_verdict,
        **{"--" + name.replace("_", "-"): value for name, value in values.items()},
        "usual prompt": usual and _remembered(found, options.model) is None,
    }


def _remembered(found: Source, model: str) -> JudgeCard | None:
    """How a judge that was trained is asked; None for a model that was not trained as one."""
    return stored_judge_card(found) or _card_of_run(model)


def _card_of_run(model: str) -> JudgeCard | None:
    """How the named run asks its judges; None if the name is no run's."""
    if not os.path.isdir(model) or resolve(model).kind != "run":
        return None
    return judge_card.of_config(load_config(os.path.join(model, "config.yaml")))


def make_judge(found: Source, options: JudgeOptions) -> judge.Judge:
    """The judge that the options describe."""
    card = card_of(found, options)
    role = Role(
        name="judge",
        template=card.template,
        sampling=to_sampling(card.sampling),
        key=sample_key(options.seed, "evaluate", 0),
        template_arguments=card.template_arguments,
    )
    if found.kind == "checkpoint":
        model = str(read_card(found.path)["provenance"]["fingerprint"])
    else:
        model = source_fingerprint(found)
    return judge.Judge(role=role, knobs=card.knobs, model=model, iteration=0)


def open_judge(
    found: Source, options: JudgeOptions, judging: judge.Judge, longest: int
) -> LocalGenerator:
    """The judge's model, with decoding shapes that fit the options and the longest prompt."""
    tokens, few = judging.role.sampling.max_new_tokens, judging.task.forcing.new_tokens
    buckets = (tokens,) if tokens <= few else (few, tokens)
    return open_generator(found, options.knobs(buckets, longest))


def longest_asked(
    tokenizer: Tokenizer, context: int, judging: judge.Judge, prompts: Iterable[Prompt]
) -> int:
    """How many tokens the longest of the judge's prompts has, with the judgment where a verdict is
    forced; at most the model's context."""
    role = judging.role
    chats = (prompt.messages for prompt in prompts)
    longest = longest_prompt(tokenizer, chats, role.template.start, role.template_arguments)
    if judging.knobs.force_verdict:
        longest += role.sampling.max_new_tokens + len(tokenizer.encode(judging.knobs.force_text))
    return min(longest, context)
