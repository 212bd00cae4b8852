"""How does a model answer a file of prompts (`ste generate`)?"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ste_jax.commands.batch import check_place, generate_file, is_answered, read_prompts
from ste_jax.commands.options import DecodingOptions
from ste_jax.config import identity
from ste_jax.config.fitting import check_cap
from ste_jax.generation import Sampling
from ste_jax.model_io.open_model import longest_prompt, look_at, open_generator, source_fingerprint
from ste_jax.records import content_id
from ste_jax.run.best import locate_and_say
from ste_jax.system.errors import WorkError


@dataclass(frozen=True, kw_only=True)
class GenerateOptions(DecodingOptions):
    """The options of `ste generate`."""

    model: str
    prompts: str
    out: str
    samples: int
    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    stop: list[str]
    ignore_eos: bool
    seed: int


def generate(options: GenerateOptions) -> str:
    """Answer the prompts; returns what to print.

    Raises:
      RequestError: the model, the prompts or the place of the output cannot be used.
      WorkError: not one sample could be drawn; the output says why of each.
    """
    check_place(options.out)
    prompts = read_prompts(options.prompts)
    found = locate_and_say(options.model)
    shape, tokenizer = look_at(found)
    check_cap(options.max_new_tokens, shape.max_position)
    longest = longest_prompt(tokenizer, [messages for _, messages in prompts])
    longest = min(longest, shape.max_position)
    sampling = Sampling(
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        min_p=options.min_p,
        stop=tuple(options.stop),
        ignore_eos=options.ignore_eos,
    )
    dtype, shapes, *more = options.identity(longest)
    settings = {
        "model": source_fingerprint(found),
        "prompts": content_id("prompts", prompts),
        "seed": options.seed,
        "dtype": dtype,
        "shapes": [*shapes, *more],
        **identity.of(sampling),
    }
    if is_answered(options.out, settings, options.samples):
        whole = len(prompts) * options.samples
        return f"{options.out}: done already, {whole} samples of {len(prompts)} prompts"
    generator = open_generator(found, options.knobs((options.max_new_tokens,), longest))
    drawn, failed = generate_file(
        generator,
        prompts,
        options.out,
        sampling,
        samples=options.samples,
        seed=options.seed,
        settings=settings,
    )
    usage = dataclasses.asdict(generator.usage)
    speed = usage["new_tokens"] / usage["seconds"] if usage["seconds"] else 0.0
    if failed == len(prompts) * options.samples:
        raise WorkError(f"{options.out}: no sample could be drawn; see the `error` of its rows")
    errors = f", {failed} could not be answered (see their `error`)" if failed else ""
    return (
        f"{options.out}: {drawn} samples drawn now, {usage['new_tokens']} new tokens, "
        f"{speed:.0f} tokens/s{errors}"
    )
