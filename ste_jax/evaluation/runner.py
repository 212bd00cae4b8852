"""How is a judge asked from the command line: about two answers, or about a whole benchmark?

A judge trained by a run remembers the prompt it was trained under (its checkpoint's card); options
given by hand go before that.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from etils import epath

from ste_jax import checkpoints, files, judge_card, preemption, shipped
from ste_jax.decoding_options import DecodingOptions
from ste_jax.distributed import Processes
from ste_jax.errors import RequestError
from ste_jax.evaluation.metrics import measure
from ste_jax.evaluation.readers import read_pairs
from ste_jax.generators.local import LocalGenerator
from ste_jax.generators.protocol import Message
from ste_jax.judge_card import JudgeCard
from ste_jax.models.sources import Source
from ste_jax.opening import locate, open_generator, source_fingerprint
from ste_jax.prompts.render import load_template
from ste_jax.records import Instruction, Judgment, Pair, Prompt, instruction_id, make_pair, shard_of
from ste_jax.rundir import Table, fingerprint
from ste_jax.stages import judge
from ste_jax.stages.asking import Role, role_fingerprint, sample_key, to_sampling
from ste_jax.strict import to_dict
from ste_jax.workplan import ShardedStage, run_sharded

SHARDS = 8
_OURS = "benchmark.json"


@dataclass(frozen=True, kw_only=True)
class JudgeOptions(DecodingOptions):
    """What the command line says of a judge; None: as its checkpoint remembers, else the default.

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
    """How the model is to be asked: as its checkpoint remembers, but for what the options say."""
    provenance = {}
    if found.kind == "checkpoint":
        provenance = checkpoints.read_card(found.path)["provenance"]
    card = judge_card.from_provenance(provenance)
    if options.template is not None:
        card = dataclasses.replace(card, template=load_template(options.template, "judge"))
    given = {
        key: getattr(options, key)
        for key in ("max_new_tokens", "temperature", "top_p", "top_k", "min_p")
        if getattr(options, key) is not None
    }
    if options.votes == 1:
        given.setdefault("temperature", 0.0)
    card = dataclasses.replace(card, sampling=dataclasses.replace(card.sampling, **given))
    if options.votes > 1 and card.sampling.temperature == 0:
        raise RequestError(
            f"{options.votes} votes at temperature 0 are one and the same text; give a "
            f"--temperature above 0 or --votes 1"
        )
    if options.force_verdict is not None:
        knobs = dataclasses.replace(card.knobs, force_verdict=options.force_verdict)
        card = dataclasses.replace(card, knobs=knobs)
    return card


def make_judge(found: Source, options: JudgeOptions) -> judge.Judge:
    """The judge that the options describe."""
    card = card_of(found, options)
    role = Role(
        name="judge",
        template=card.template,
        sampling=to_sampling(card.sampling),
        key=sample_key(options.seed, "evaluate", 0),
    )
    if found.kind == "checkpoint":
        model = str(checkpoints.read_card(found.path)["provenance"]["fingerprint"])
    else:
        model = source_fingerprint(found)
    return judge.Judge(role=role, knobs=card.knobs, model=model, iteration=0)


def open_judge(found: Source, options: JudgeOptions) -> LocalGenerator:
    """The judge's model, with decoding shapes that fit the options."""
    tokens = card_of(found, options).sampling.max_new_tokens
    few = judge.FORCED_TOKENS
    buckets = (tokens,) if tokens <= few else (few, tokens)
    return open_generator(str(found.path), options.knobs(buckets))


def judge_two(options: JudgeOptions, instruction: str, a: str, b: str) -> str:
    """Judge two answers to an instruction in both orders; returns what to print."""
    for name, text in (("--instruction", instruction), ("--a", a), ("--b", b)):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RequestError(f"{name} is not a text in UTF-8") from error
    if a == b:
        raise RequestError("--a and --b are the same text; there is nothing to judge")
    found = locate(options.model)
    judging, generator = make_judge(found, options), open_judge(found, options)
    pair = _pair(instruction, a, b)
    prompts = judge.build_prompts(pair, judging.role.template)
    lines: list[str] = []
    votes = {"a": 0, "b": 0, "tie": 0, "none": 0}
    judged = judge.judge_all(prompts, generator, judging, options.votes, in_flight=2)
    for prompt, judgments in sorted(judged, key=lambda each: each[0].order):
        shown = "first" if prompt.order == "ab" else "second"
        for judgment in judgments:
            meant = _meant(judgment, prompt)
            votes[meant] += 1
            lines += [f"--- answer a shown {shown}, sample {judgment.sample} ---", judgment.text]
            lines.append(f"=> {_told(meant)}{' (forced)' if judgment.forced else ''}\n")
    total = sum(votes.values())
    lines.append(
        f"votes: a {votes['a']}, b {votes['b']}, tie {votes['tie']}, no verdict {votes['none']} "
        f"of {total}"
    )
    return "\n".join(lines)


def _pair(instruction: str, a: str, b: str) -> Pair:
    messages = (Message(role="user", content=instruction),)
    row = Instruction(id=instruction_id(messages), messages=messages, source="command line")
    return make_pair(row, chosen=a, rejected=b, modified_instruction="", source="command line")


def _meant(judgment: Judgment, prompt: Prompt) -> str:
    """Which answer the verdict names, whatever letter it was shown under."""
    if judgment.verdict is None or judgment.verdict == "tie":
        return judgment.verdict or "none"
    return "a" if judgment.verdict == prompt.label else "b"


def _told(meant: str) -> str:
    return {"a": "answer a is better", "b": "answer b is better", "tie": "a tie"}.get(
        meant, "no verdict"
    )


def evaluate_benchmark(
    options: JudgeOptions, benchmark: str, data: str, out: str
) -> dict[str, Any]:
    """Measure a judge on labelled pairs; judgments and `evaluation.json` lie in `out`.

    Run again to resume.

    Raises:
      RequestError: bad data, or `out` holds something else.
    """
    root = epath.Path(out)
    pairs = list(read_pairs(benchmark, shipped.path_of(data)))
    found = locate(options.model)
    judging = make_judge(found, options)
    if root.exists() and not root.is_dir():
        raise RequestError(f"{out} is a file; --out names a directory")
    if root.exists() and not (root / _OURS).exists() and any(True for _ in root.iterdir()):
        raise RequestError(f"{out} holds something else; name another --out")
    files.sweep_partials(root)
    files.write_json(root / _OURS, {"benchmark": benchmark, "data": data, "model": options.model})
    prompts = Table(root / "prompts", Prompt, SHARDS)
    judgments = Table(root / "judgments", Judgment, SHARDS)
    by_shard: dict[int, list[Prompt]] = {shard: [] for shard in range(SHARDS)}
    for pair in pairs:
        made = judge.build_prompts(pair, judging.role.template)
        by_shard[shard_of(pair.instruction_id, SHARDS)] += made
    for shard, rows in by_shard.items():
        prompts.write(shard, rows)
    asked = [
        options.votes,
        *options.identity(),
        judge.VERSION,
        role_fingerprint(judging.role),
        to_dict(judging.knobs),
    ]
    stage = ShardedStage(
        name="evaluate",
        print_=fingerprint("evaluate", 1, asked, model=judging.model),
        home=root,
        inputs=prompts.read,
        outputs=(judgments,),
        input_of=lambda table, row: row.prompt_id,
        derived=(root / "evaluation.json",),
    )

    def work(rows: Iterator[Prompt]) -> Iterator[Any]:
        generator = open_judge(found, options)
        for row, made in judge.judge_all(
            rows,
            generator,
            judging,
            options.votes,
            in_flight=4 * options.groups * options.group_size,
            poll=preemption.poll,
        ):
            yield row, (made,)

    run_sharded(stage, work, Processes())
    return _write_evaluation(root, benchmark, options.model, judging.model)


def score_again(out: str) -> dict[str, Any]:
    """The metrics of `ste evaluate --out` again, from what is stored there.

    Raises:
      RequestError: nothing is stored there.
    """
    root = epath.Path(out)
    if not (root / _OURS).exists() or not (root / "evaluation.json").exists():
        raise RequestError(f"{out} holds no evaluation; run `ste evaluate --out {out}` first")
    old = files.read_json(root / "evaluation.json")
    return _write_evaluation(root, old["benchmark"], old["model"], old["judge"])


def _write_evaluation(root: epath.Path, benchmark: str, model: str, judge_: str) -> dict[str, Any]:
    found = measure(
        Table(root / "prompts", Prompt, SHARDS).rows(),
        Table(root / "judgments", Judgment, SHARDS).rows(),
        bootstrap=2000,
    )
    result = {
        "what": "agreement with the benchmark's labels",
        "benchmark": benchmark,
        "model": model,
        "judge": judge_,
        **found,
    }
    files.write_json(root / "evaluation.json", result)
    return result


def told(result: Mapping[str, Any]) -> str:
    """An evaluation as text to print."""
    return json.dumps(result, indent=2, ensure_ascii=False)
