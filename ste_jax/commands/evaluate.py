"""How is a judge asked from the command line: about two answers, or about a whole benchmark?

A judge trained by a run remembers the prompt it was trained under (`stages.judge_card`), as a
checkpoint and as a Hugging Face directory; a model that remembers nothing is asked as a run asks
its seed. Options given by hand go before either.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from etils import epath

from ste_jax.checkpoints import checkpoint
from ste_jax.commands.options import DecodingOptions
from ste_jax.config.fitting import check_cap, usual_cap
from ste_jax.config.from_plain import to_dict
from ste_jax.config.load import load_config
from ste_jax.decoding.generator import LocalGenerator
from ste_jax.errors import RequestError, WorkError
from ste_jax.evaluation.metrics import measure
from ste_jax.evaluation.readers import read_pairs
from ste_jax.generation import Message
from ste_jax.model_io.judge_memory import remembered
from ste_jax.model_io.open_model import longest_prompt, look_at, open_generator, source_fingerprint
from ste_jax.model_io.sources import Source, resolve
from ste_jax.parallel.processes import Processes
from ste_jax.prompts.render import load_template
from ste_jax.records import (
    NOT_ASKED,
    Instruction,
    Judgment,
    Pair,
    Prompt,
    instruction_id,
    make_pair,
    shard_of,
)
from ste_jax.run import marks
from ste_jax.run.best import locate
from ste_jax.run.layout import Table, fingerprint
from ste_jax.run.sharded import ShardedStage, run_sharded
from ste_jax.stages import judge, judge_card
from ste_jax.stages.judge_card import JudgeCard
from ste_jax.stages.roles import Role, role_fingerprint, sample_key, to_sampling
from ste_jax.system import files, preemption, shipped

SHARDS = 8
_OURS = "benchmark.json"


@dataclass(frozen=True, kw_only=True)
class JudgeOptions(DecodingOptions):
    """What the command line says of a judge; None: see `card_of`.

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
    """How the model is to be asked: as it remembers, else as its run asks, else as a run asks its
    seed; but for what the options say."""
    card = remembered(found) or _card_of_run(options.model) or judge_card.default()
    if options.template is not None:
        card = dataclasses.replace(card, template=load_template(options.template, "judge"))
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
            f"--temperature above 0 or --votes 1"
        )
    if options.force_verdict is not None:
        knobs = dataclasses.replace(card.knobs, force_verdict=options.force_verdict)
        card = dataclasses.replace(card, knobs=knobs)
    return card


def _card_of_run(model: str) -> JudgeCard | None:
    """How the run that was named asks; None if it was none."""
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
        model = str(checkpoint.read_card(found.path)["provenance"]["fingerprint"])
    else:
        model = source_fingerprint(found)
    return judge.Judge(role=role, knobs=card.knobs, model=model, iteration=0)


def open_judge(
    found: Source, options: JudgeOptions, judging: judge.Judge, longest: int
) -> LocalGenerator:
    """The judge's model, with decoding shapes that fit the options and the longest prompt."""
    tokens, few = judging.role.sampling.max_new_tokens, judge.FORCED_TOKENS
    buckets = (tokens,) if tokens <= few else (few, tokens)
    return open_generator(found, options.knobs(buckets, longest))


def _longest(found: Source, judging: judge.Judge, prompts: Iterable[Prompt]) -> int:
    """Of the judge's prompts, in tokens; of one that is forced to a verdict, with what it said."""
    role = judging.role
    chats = (prompt.messages for prompt in prompts)
    longest = longest_prompt(found, chats, role.template.start, role.template_arguments)
    if not judging.knobs.force_verdict:
        return longest
    shape, tokenizer = look_at(found)
    said = judging.role.sampling.max_new_tokens + len(tokenizer.encode(judging.knobs.force_text))
    return min(longest + said, shape.max_position)


def judge_two(options: JudgeOptions, instruction: str, a: str, b: str) -> str:
    """Judge two answers to an instruction in both orders; returns what to print.

    Raises:
      RequestError: there is nothing to judge.
      WorkError: the judge could be asked in neither order.
    """
    for name, text in (("--instruction", instruction), ("--a", a), ("--b", b)):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RequestError(f"{name} is not a text in UTF-8") from error
    if a == b:
        raise RequestError("--a and --b are the same text; there is nothing to judge")
    found = locate(options.model)
    judging = make_judge(found, options)
    prompts = judge.build_prompts(_pair(instruction, a, b), judging.role.template)
    generator = open_judge(found, options, judging, _longest(found, judging, prompts))
    lines, why = list[str](), ""
    votes = {"a": 0, "b": 0, "tie": 0, "none": 0, "not asked": 0}
    judged = judge.judge_all(prompts, generator, judging, options.votes, in_flight=2)
    for prompt, judgments in sorted(judged, key=lambda each: each[0].order):
        shown = "first" if prompt.order == "ab" else "second"
        for judgment in judgments:
            meant = _meant(judgment, prompt)
            why = judgment.text if meant == "not asked" else why
            votes[meant] += 1
            lines += [f"--- answer a shown {shown}, sample {judgment.sample} ---", judgment.text]
            lines.append(f"=> {_told(meant)}{' (forced)' if judgment.forced else ''}\n")
    total, unasked = sum(votes.values()), votes["not asked"]
    if unasked == total:
        raise WorkError(f"the judge could not be asked: {why}")
    lines.append(
        f"votes: a {votes['a']}, b {votes['b']}, tie {votes['tie']}, no verdict {votes['none']} "
        f"of {total - unasked}" + (f" ({unasked} could not be asked)" if unasked else "")
    )
    return "\n".join(lines)


def _pair(instruction: str, a: str, b: str) -> Pair:
    messages = (Message(role="user", content=instruction),)
    row = Instruction(id=instruction_id(messages), messages=messages, source="command line")
    return make_pair(row, chosen=a, rejected=b, modified_instruction="", source="command line")


def _meant(judgment: Judgment, prompt: Prompt) -> str:
    """Which answer the verdict names, whatever letter it was shown under."""
    if judgment.failure in NOT_ASKED:
        return "not asked"
    if judgment.verdict is None or judgment.verdict == "tie":
        return judgment.verdict or "none"
    return "a" if judgment.verdict == prompt.label else "b"


def _told(meant: str) -> str:
    told = {"a": "answer a is better", "b": "answer b is better", "tie": "a tie"}
    return told.get(meant, "could not be asked" if meant == "not asked" else "no verdict")


def evaluate_benchmark(
    options: JudgeOptions, benchmark: str, data: str, out: str
) -> dict[str, Any]:
    """Measure a judge on labelled pairs; judgments and `evaluation.json` lie in `out`.

    Run again to resume; what decides the judgments must be the same.

    Raises:
      RequestError: bad data, or `out` holds something else, another evaluation, or is at work.
      WorkError: not one of the pairs could be asked.
    """
    root = epath.Path(out)
    pairs = list(read_pairs(benchmark, shipped.path_of(data)))
    found = locate(options.model)
    judging = make_judge(found, options)
    by_shard: dict[int, list[Prompt]] = {shard: [] for shard in range(SHARDS)}
    for pair in pairs:
        made = judge.build_prompts(pair, judging.role.template)
        by_shard[shard_of(pair.instruction_id, SHARDS)] += made
    longest = _longest(found, judging, (row for rows in by_shard.values() for row in rows))
    asked = [
        options.votes,
        *options.identity(longest),
        judge.VERSION,
        role_fingerprint(judging.role),
        to_dict(judging.knobs),
    ]
    ids = sorted(prompt.id for prompts in by_shard.values() for prompt in prompts)
    ours = {
        "benchmark": benchmark,
        "data": data,
        "model": options.model,
        "judge": fingerprint("evaluate", 1, asked, model=judging.model),
        "prompts": fingerprint("prompts", 1, ids),
    }
    if root.exists() and not root.is_dir():
        raise RequestError(f"{root} is a file; --out names a directory")
    with files.held_at(root):
        _check_out(root, ours)
        files.sweep_partials(root)
        if files.read_twice(root / _OURS) != ours:
            files.write_twice(root / _OURS, ours)
        _judge_all(root, found, options, judging, by_shard, longest, ours["judge"])
        return _write_evaluation(root, benchmark, options.model, judging.model)


def _check_out(root: epath.Path, ours: dict[str, str]) -> None:
    """Refuse a place that holds anything else than the beginning of this evaluation."""
    there = files.read_twice(root / _OURS)
    if there is None and _looks_like(root, ours):
        return
    if there is None:
        # what a killed first write leaves under a partial name is not somebody's work
        lying = [each.name for each in root.iterdir()] if root.exists() else []
        if any(".partial-" not in name for name in lying if not name.startswith(_OURS)):
            raise RequestError(f"{root} holds something else; name another --out")
        return
    # Earlier versions noted neither; their judge is the one that the judgments' mark tells.
    there = {"judge": marks.marked(root / "evaluate.json") or ours["judge"], **there}
    told = {
        "benchmark": "another benchmark",
        "prompts": "other pairs or another template",
        "judge": "another judge or other settings",
    }
    for key, what in told.items():
        if there.get(key, ours[key]) != ours[key]:
            raise RequestError(
                f"{root} holds an evaluation of {there.get('model')} on {there.get('data')} with "
                f"{what}; name another --out (what lies there is kept)"
            )


def _looks_like(root: epath.Path, ours: dict[str, str]) -> bool:
    """Whether what lies there is of this evaluation, which has lost what tells of it."""
    if marks.marked(root / "evaluate.json") != ours["judge"]:
        return False
    ids = sorted(row.id for row in Table(root / "prompts", Prompt, SHARDS).rows())
    return fingerprint("prompts", 1, ids) == ours["prompts"]


def _judge_all(
    root: epath.Path,
    found: Source,
    options: JudgeOptions,
    judging: judge.Judge,
    by_shard: Mapping[int, list[Prompt]],
    longest: int,
    print_: str,
) -> None:
    prompts = Table(root / "prompts", Prompt, SHARDS)
    for shard, rows in by_shard.items():
        prompts.write(shard, rows)
    stage = ShardedStage(
        name="evaluate",
        print_=print_,
        home=root,
        inputs=prompts.read,
        outputs=(Table(root / "judgments", Judgment, SHARDS),),
        input_of=lambda table, row: row.prompt_id,
        derived=(root / "evaluation.json",),
    )

    def work(rows: Iterator[Prompt]) -> Iterator[Any]:
        generator = open_judge(found, options, judging, longest)
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


def score_again(out: str) -> dict[str, Any]:
    """The metrics of `ste evaluate --out` again, from what is stored there.

    Raises:
      RequestError: nothing is stored there, or a command is at work on it.
    """
    root = epath.Path(out)
    begun = any((root / f"{_OURS}{end}").exists() for end in ("", ".copy"))
    if not begun or not (root / "evaluation.json").exists():
        raise RequestError(f"{out} holds no evaluation; run `ste evaluate --out {out}` first")
    with files.held_at(root):
        old = files.read_json(root / "evaluation.json")
        return _write_evaluation(root, old["benchmark"], old["model"], old["judge"])


def _write_evaluation(root: epath.Path, benchmark: str, model: str, judge_: str) -> dict[str, Any]:
    prompts = Table(root / "prompts", Prompt, SHARDS).rows()
    judgments = list(Table(root / "judgments", Judgment, SHARDS).rows())
    failed = [each for each in judgments if each.failure in NOT_ASKED]
    if len(failed) == len(judgments) and failed:
        raise WorkError(
            f"{root}: not one of the {len(failed)} judgments could be asked for, so there is "
            f"nothing to measure; the first: {failed[0].text}"
        )
    found = measure(prompts, judgments, bootstrap=2000)
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
