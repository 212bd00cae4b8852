"""Which knobs do decoding and fine-tuning have, and what do they default to?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ste_jax.config.identity import later
from ste_jax.system.errors import RequestError
from ste_jax.system.ranges import (
    Axis,
    Count,
    Decay,
    OrNone,
    Rate,
    Scale,
    Temperature,
    Weight,
)


@dataclass(frozen=True, kw_only=True)
class MeshKnobs:
    """Sizes of the mesh axes; one of them may be -1: all devices that the others leave."""

    data: Axis = 1
    """Divides the batch; every part has all weights."""
    fsdp: Axis = -1
    """Divides the batch, and the weights along the model's width; they are gathered layer by
    layer."""
    expert: Axis = 1
    """Divides the experts of a mixture, and batch and weights as `fsdp` does."""
    tensor: Axis = 1
    """Divides the weights by heads and by the width within a layer, and the caches by kv heads."""


@dataclass(frozen=True, kw_only=True)
class DecodingKnobs:
    """Shapes of the decoding programs: recorded in a run and kept when it goes on."""

    prompt_buckets: tuple[Count, ...] = ()
    """A prompt of n tokens takes the smallest bucket that holds it. Multiples of `prefill_chunk`.
    Empty: doubling from 512 up to the longest prompt that the caps of the roles and
    `pool.max_chars` allow, or the model's context."""
    new_buckets: tuple[Count, ...] = ()
    """A request for n new tokens takes the smallest bucket that holds them. Empty: the caps of the
    roles."""
    groups: Count = 8
    """Prompts decoded at once."""
    group_size: Count = 2
    """Samples of each prompt decoded at once. On CPU let there be 8 rows or more in all (`groups`
    times this): of fewer, XLA may compute the last bit of a row otherwise in another slot."""
    singles: OrNone = 0
    """Prompts decoded at once where each has one sample only (answers, forced verdicts); 0: as many
    as `groups`. On CPU, 8 or more are best, as above."""
    prefill_chunk: Count = 128
    """Prompts are prefilled in pieces of so many tokens; shared beginnings are computed once."""
    steps_per_round: Count = 8
    """How many tokens are decoded before the host looks at them."""
    cache_tokens: OrNone = 16384
    """How many tokens of prefilled prompt pieces are kept, at the most."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """The type of the weights and caches, and of what is computed."""
    weights: Literal["dtype", "int8"] = "dtype"
    """The type of the matrices. `int8` takes half of bfloat16 in memory and in what a step reads,
    at the price of small errors; sums are still of `dtype`."""
    mesh: MeshKnobs = MeshKnobs()

    def check(self, key: str) -> None:
        """Refuse buckets that do not rise, or that are no multiples of the chunk; none are fine."""
        for name in ("prompt_buckets", "new_buckets"):
            buckets = list(getattr(self, name))
            if buckets != sorted(set(buckets)):
                raise RequestError(f"{key}.{name}={buckets}: rising sizes are needed")
        for bucket in self.prompt_buckets:
            if bucket % self.prefill_chunk:
                raise RequestError(
                    f"{key}.prompt_buckets: {bucket} is not a multiple of {key}.prefill_chunk "
                    f"{self.prefill_chunk}"
                )


@dataclass(frozen=True, kw_only=True)
class LoraKnobs:
    """Small matrices that are trained in the place of large ones (LoRA, arXiv 2106.09685)."""

    rank: OrNone = 0
    """The inner size of the small matrices; 0: all parameters are trained, without LoRA."""
    alpha: Scale = 16.0
    """The product of the small matrices is scaled by `alpha / rank`."""
    matrices: tuple[str, ...] = ("q", "k", "v", "o", "gate", "up", "down")
    """The matrices of a layer that get small ones. A mixture's experts get none."""


@dataclass(frozen=True, kw_only=True)
class DpoKnobs:
    """The second phase of the released judge: DPO (arXiv 2305.18290) with a likelihood term, on a
    correct and a failed judgment of the same prompt.

    The phase trains by these knobs where `finetune` has one of the same meaning, and by those of
    `finetune` else. The defaults are the released ones (`docs/paper.md`), for a large model: a
    small one in few steps hardly moves by them.
    """

    judgments: Literal["sft", "annotate"] = "sft"
    """Whose judgments are paired. `sft`: the judge that SFT gave judges the training prompts
    itself, `annotate.samples` times each. `annotate`: those that SFT chose from, which spares that
    work; needs `annotate.policy: all`."""
    beta: Scale = 0.1
    """How strongly the model is held to the one that the phase starts from."""
    nll_scale: Weight = 1.5
    """Weight of the correct judgments' mean negative log-likelihood per token; 0 switches it
    off."""
    pairs_per_prompt: Count = 4
    """At most so many of all pairs of a correct and a failed judgment of a prompt."""
    negatives: tuple[Literal["incorrect", "unparsed"], ...] = ("incorrect", "unparsed")
    """Which judgments count as failed: `incorrect` has the wrong verdict, `unparsed` has none."""
    more_samples: OrNone = 0
    """For a prompt with correct judgments and none of `negatives`, draw up to so many more, until
    one is of `negatives`; of these, only failed ones are used."""
    more_temperature: Temperature = 1.0
    """The temperature of `more_samples`; all else is as the judge's role says (`top_p` too)."""
    epochs: Scale = 5.0
    """Passes over the pairs of judgments; together with `max_steps` the smaller bounds the
    steps."""
    max_steps: OrNone = 3000
    """0: no bound."""
    sequence_length: OrNone = 0
    """0: that of SFT. A row must hold the prompt twice and both judgments: two sequences of up to
    2,048 tokens each, as in the release, are a row of 4,096."""
    batch_rows: Count = 32
    """Rows, not pairs: where a pair takes more than half of a row, 32 rows are 32 pairs; where
    pairs are short, several share a row."""
    accumulate: Count = 4
    """Micro-batches per step; divides `batch_rows`."""
    learning_rate: Rate = 5.5e-8
    """At the start. It rises from there: see `final_learning_rate_fraction`."""
    final_learning_rate_fraction: Weight = 20.0
    """Above 1: the rate rises, here to 1.1e-6 at the end of `schedule_steps`."""
    schedule_steps: OrNone = 3000
    """After how many optimizer steps the rate has its final value; 0: at the end."""
    warmup_steps: OrNone = 0
    """Steps over which the rate first rises from 0."""
    clip_norm: Weight = 1.0
    """Global-norm clipping; 0 switches it off."""
    validate_every: Count = 100
    """Optimizer steps between measurements of the judge on the validation pairs."""

    def check_used(self, key: str) -> None:
        """Refuse rows that cannot be divided, a schedule that ends in its warm-up, and pairs
        without a failed judgment. It is not called `check`, since nobody minds what the group of a
        phase says that the run does not have."""
        _check_steps(self, key)
        if not self.negatives:
            raise RequestError(f"{key}.negatives must name at least one kind of failed judgment")


@dataclass(frozen=True, kw_only=True)
class FinetuneKnobs:
    """Fine-tuning on the judgments of an iteration."""

    stages: tuple[str, ...] = ("sft",)
    """The phases of fine-tuning, in order: `sft`, or `sft` and `dpo`. Each starts from the model of
    the one before it."""
    start_from: Literal["seed", "previous"] = "seed"
    """From which model each iteration's training starts: the seed, as in the paper, or the judge of
    the iteration before it."""
    epochs: Scale = 1.0
    """Passes over the training examples; together with `max_steps` the smaller bounds the steps."""
    max_steps: OrNone = 0
    """0: no bound."""
    sequence_length: Count = 4096
    """Examples are packed into rows of so many tokens."""
    too_long: Literal["drop", "truncate"] = "drop"
    """What is done with an example that is longer than a row: it is left out, or its end is cut off
    (in `dpo` it is always left out). Both are counted."""
    batch_rows: Count = 8
    """Packed rows per optimizer step."""
    accumulate: Count = 1
    """Micro-batches per step; divides `batch_rows`."""
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    """`adafactor` keeps only the means of rows and columns of a matrix's squared gradients, where
    both are 128 or more (attention's matrices have the sizes of heads). Of AdamW's knobs it reads
    only the rate and the weight decay."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the rate changes, after the warm-up, from `learning_rate` to its final value."""
    learning_rate: Rate = 1e-6
    """The highest rate, after the warm-up. With `lora`, ten times that of a full training or more
    is usual."""
    final_learning_rate_fraction: Weight = 0.1
    """The final rate as a part of `learning_rate`."""
    schedule_steps: OrNone = 0
    """After how many optimizer steps, warm-up included, the rate has its final value; 0: at the end
    of the training."""
    warmup_steps: OrNone = 0
    """Steps over which the rate first rises from 0."""
    beta1: Decay = 0.9
    """How slowly AdamW's mean of gradients changes."""
    beta2: Decay = 0.95
    """How slowly AdamW's mean of squared gradients changes."""
    weight_decay: Rate = 0.1
    """How strongly AdamW draws parameters to 0."""
    clip_norm: Weight = 0.0
    """Global-norm clipping; 0 switches it off."""
    moments_dtype: Literal["float32", "bfloat16"] = "float32"
    """The type of AdamW's two moments."""
    remat: Literal["none", "layer"] = "layer"
    """`layer` computes each layer again in the backward pass, which takes a third more time and far
    less memory."""
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    """The type in which the parameters are kept in training and in checkpoints."""
    rounding: Literal["nearest", "stochastic"] = later("stochastic", before="nearest")
    """How updated parameters become bfloat16 (float32 ones are not rounded). To the nearest, an
    update below 1/512 of a parameter is lost; stochastically it is kept on average."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """The type that is computed in."""
    validate_every: Count = 100
    """Optimizer steps between measurements of the judge on the validation pairs; the last step is
    always followed by one."""
    select: Literal["best", "last"] = "best"
    """Which validation's model is the result: that of the highest accuracy, or the last. `best` may
    be the model that the phase begins with; of equals the latest is the best."""
    save_every: Count = 100
    """Optimizer steps between saves of the training state."""
    keep_states: Count = 2
    """How many of the newest training states are kept: if one is damaged, an older one is used."""
    handover: Literal["auto", "memory", "restore"] = "auto"
    """How the weights in training get to the engine that validates them: in memory, beside the
    training state; or by a checkpoint, while the training state waits on disk. `auto`: in memory,
    unless the devices report too little room for both. With LoRA it is always in memory, since
    there is little state to put aside."""
    lora: LoraKnobs = LoraKnobs()
    dpo: DpoKnobs = DpoKnobs()
    mesh: MeshKnobs = MeshKnobs()

    def check(self, key: str) -> None:
        """Refuse phases that are named twice, rows that cannot be divided, and knobs that
        contradict each other."""
        if not self.stages or len(set(self.stages)) < len(self.stages):
            raise RequestError(f"{key}.stages must name at least one phase, and each once")
        _check_steps(self, key)
        if self.moments_dtype == "bfloat16" and self.beta2 > 0.99:
            raise RequestError(
                f"{key}.beta2={self.beta2} changes the second moment by less than bfloat16 can "
                f"tell; lower it to 0.99 or less, or set {key}.moments_dtype=float32"
            )
        if self.lora.rank and self.handover == "restore":
            raise RequestError(
                f"{key}.handover=restore puts the training state aside, of which there is little "
                f"with {key}.lora; set it to auto"
            )


def _check_steps(knobs: FinetuneKnobs | DpoKnobs, key: str) -> None:
    if knobs.batch_rows % knobs.accumulate:
        raise RequestError(f"{key}.accumulate must divide {key}.batch_rows")
    if knobs.schedule_steps and knobs.schedule_steps <= knobs.warmup_steps:
        raise RequestError(
            f"{key}.schedule_steps={knobs.schedule_steps} must be 0 (the steps that are taken) "
            f"or above {key}.warmup_steps={knobs.warmup_steps}"
        )
