"""How is a judge measured on pairs with known labels (`ste evaluate`), and measured again from its
stored judgments (`ste score`)?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from etils import epath

from ste_jax.commands.judge_options import (
    JudgeOptions,
    longest_asked,
    make_judge,
    named_options,
    open_judge,
)
from ste_jax.config import from_plain, identity
from ste_jax.config.identity import Identity, fingerprint
from ste_jax.config.schema import JudgeKnobs, RunKnobs
from ste_jax.evaluation.judged import judging_stage, judging_work
from ste_jax.evaluation.measure import Measures, check_pairs, measure_judged, why_unasked
from ste_jax.evaluation.readers import read_pairs
from ste_jax.generation import Generator, Usage
from ste_jax.model_io.open_model import look_at
from ste_jax.parallel.processes import Processes
from ste_jax.records import Judgment, Pair, Prompt, shard_of
from ste_jax.run import marks
from ste_jax.run.best import locate_and_say
from ste_jax.run.layout import JudgedDir
from ste_jax.run.sharded import run_sharded
from ste_jax.run.sharded_work import ShardedWork
from ste_jax.run.tables import Table
from ste_jax.stages import judge
from ste_jax.stages.roles import role_fingerprint
from ste_jax.system import files, shipped
from ste_jax.system.errors import RequestError, WorkError
from ste_jax.tasks import Task, task_named

SHARDS = 8
_OURS = "benchmark.json"


def evaluate_benchmark(
    options: JudgeOptions,
    benchmark: str,
    data: str,
    out: str,
    asked: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Measure a judge on labelled pairs; `out` gets pairs, judgments and `evaluation.json`.

    Run again to resume; what decides the judgments must be the same. `asked` is what is measured,
    by the names of `Measures`, where that is not the usual.

    Raises:
      RequestError: bad data, or `out` holds something else, another evaluation, or is at work.
      WorkError: not one of the pairs could be asked.
    """
    root, measures = epath.Path(out), _read_measures(asked or {}, "ste evaluate")
    pairs = list(read_pairs(benchmark, shipped.path_of(data), measures.by))
    found = locate_and_say(options.model)
    judging = make_judge(found, options)
    check_pairs(judging.task, pairs, measures, data)
    prompts = {pair.id: judging.task.prompts(pair, judging.role.template) for pair in pairs}
    shape, tokenizer = look_at(found)
    every = [prompt for them in prompts.values() for prompt in them]
    longest = longest_asked(tokenizer, shape.max_position, judging, every)
    made_under = _identity(options, judging, longest, named_options(found, options, judging))
    ours: dict[str, Any] = {
        "benchmark": benchmark,
        "data": data,
        "model": options.model,
        "judge": made_under,
        "prompts": fingerprint("prompts", 1, sorted(prompt.id for prompt in every)),
        **({"task": judging.task.name} if judging.knobs.task != JudgeKnobs().task else {}),
        **({"measures": dict(asked)} if asked else {}),
    }
    if root.exists() and not root.is_dir():
        raise RequestError(f"{root} is a file; --out names a directory")
    judged = JudgedDir(root, SHARDS)
    with files.held_at(root):
        _check_out(root, ours, made_under)
        files.sweep_partials(root)
        if files.read_twice(root / _OURS) != ours:
            files.write_twice(root / _OURS, ours)
        _write_asked(judged, pairs, prompts)
        stage = judging_stage(judged, judging.task, made_under, root / "evaluation.json")
        open_ = partial(open_judge, found, options, judging, longest)
        _have_judged(stage, judging_work(judging, options.votes), open_)
        asked_of = {
            "benchmark": benchmark,
            "model": options.model,
            "judge": judging.model,
            **({} if found.iteration is None else {"iteration": found.iteration}),
        }
        return _write_evaluation(judged, judging.task, asked_of, measures)


def _have_judged(
    stage: ShardedWork,
    work: Callable[[Iterator[Any], Generator], Iterator[Any]],
    open_generator: Callable[[], Generator],
) -> None:
    usage = Usage()

    def working(rows: Iterator[Any]) -> Iterator[Any]:
        nonlocal usage
        generator = open_generator()
        usage = generator.usage
        yield from work(rows, generator)

    run_sharded(
        stage,
        working,
        Processes(),
        keep_every=RunKnobs().keep_every,
        tokens_in_hand=lambda: usage.tokens_in_hand,
        figures=lambda: usage.figures(),
    )


def _identity(
    options: JudgeOptions, judging: judge.Judge, longest: int, named: Mapping[str, Any]
) -> Identity:
    """What a fingerprint holds of the judge: all that decides its judgments, except the prompts.
    `named` is kept beside it."""
    asked = [
        options.votes,
        *options.identity(longest),
        judge.VERSION,
        role_fingerprint(judging.role),
        identity.of(judging.knobs),
        *judging.task.identity(),
    ]
    return fingerprint("evaluate", 1, asked, model=judging.model, named=named)


def _read_measures(asked: Mapping[str, Any], where: str) -> Measures:
    measures: Measures = from_plain.build(Measures, asked, where)
    return measures


def _check_out(root: epath.Path, ours: Mapping[str, Any], made_under: Identity) -> None:
    """Refuse a directory that holds anything else than the beginning of this evaluation."""
    there = files.read_twice(root / _OURS)
    if there is None and _looks_like(root, ours):
        return
    if there is None:
        # a partial file that a killed first write has left is nobody's work
        lying = [each.name for each in root.iterdir()] if root.exists() else []
        if any(".partial-" not in name for name in lying if not name.startswith(_OURS)):
            raise RequestError(f"{root} holds something else; name another --out")
        return
    # Earlier versions noted neither; their judge is the one in the judgments' mark.
    judged = marks.marked(root / "evaluate.mark.json")
    there = {**ours, "judge": judged or ours["judge"], **there}
    if all(there[key] == ours[key] for key in ("benchmark", "prompts", "judge")):
        return
    others = ", and ".join(_others(there, ours, judged.made_of, made_under.made_of))
    raise RequestError(
        f"{root} holds an evaluation of {there['model']} on {there['data']}; now {others}: name "
        "another --out (what lies there is kept)"
    )


def _others(
    there: Mapping[str, Any],
    ours: Mapping[str, Any],
    old: Mapping[str, Any],
    new: Mapping[str, Any],
) -> list[str]:
    """What is another in this evaluation than in the one that lies there. `old` and `new` are what
    the judges' fingerprints were made of."""
    had = old.get("knobs", {})
    changed = [
        f"{option} is {value}, not {had[option]}"
        for option, value in new["knobs"].items()
        if option.startswith("--") and option in had and had[option] != value
    ]
    found = [f"the benchmark is {ours['benchmark']}"] * (there["benchmark"] != ours["benchmark"])
    if old.get("model", new["model"]) != new["model"]:
        found.append("another model is asked")
    found += changed
    if there["prompts"] != ours["prompts"] and "--template" not in " ".join(changed):
        found.append("the pairs are others" if had else "the pairs or the template are others")
    return found or ["the judge is another, or is asked with other settings"]


def _looks_like(root: epath.Path, ours: Mapping[str, Any]) -> bool:
    """Whether the directory holds this evaluation, although its description is lost."""
    if marks.marked(root / "evaluate.mark.json") != ours["judge"]:
        return False
    ids = sorted(row.id for row in JudgedDir(root, SHARDS).prompts.rows())
    return bool(fingerprint("prompts", 1, ids) == ours["prompts"])


def _pairs(root: epath.Path) -> Table[Pair]:
    """The pairs that the judge is asked about; earlier versions kept none."""
    return Table(root / "pairs", Pair, SHARDS)


def _write_asked(
    judged: JudgedDir, pairs: Sequence[Pair], prompts: Mapping[str, Sequence[Prompt]]
) -> None:
    """Write the pairs and their prompts, in the shards of their instructions."""
    by_shard: dict[int, list[Pair]] = {shard: [] for shard in range(SHARDS)}
    for pair in pairs:
        by_shard[shard_of(pair.instruction_id, SHARDS)].append(pair)
    for shard, of in by_shard.items():
        _pairs(judged.root).write(shard, of)
        judged.prompts.write(shard, [prompt for pair in of for prompt in prompts[pair.id]])


def score_again(out: str, asked: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Measure again from the judgments that `ste evaluate --out` has stored. `asked` sets fields of
    `Measures`; the others stay as they were.

    Raises:
      RequestError: nothing is stored there, or nothing that could be measured so, or a command is
        at work on it.
    """
    root = epath.Path(out)
    begun = any((root / f"{_OURS}{end}").exists() for end in ("", ".copy"))
    if not begun or not (root / "evaluation.json").exists():
        raise RequestError(f"{out} holds no evaluation; run `ste evaluate --out {out}` first")
    with files.held_at(root):
        old = files.read_json(root / "evaluation.json")
        begun_as = files.read_twice(root / _OURS) or {}
        task = task_named(begun_as.get("task", JudgeKnobs().task))
        measures = _read_measures({**begun_as.get("measures", {}), **(asked or {})}, out)
        if (measures.by or measures.traces) and not _pairs(root).complete():
            raise RequestError(
                f"{out} keeps no pairs, since an earlier version began it; give the same to `ste "
                "evaluate` again, which asks nothing twice"
            )
        check_pairs(task, _pairs(root).rows(), measures, out)
        keys = ("benchmark", "model", "judge", "iteration")
        asked_of = {key: old[key] for key in keys if key in old}
        return _write_evaluation(JudgedDir(root, SHARDS), task, asked_of, measures)


def _write_evaluation(
    judged: JudgedDir, task: Task, asked_of: Mapping[str, Any], measures: Measures
) -> dict[str, Any]:
    why = why_unasked(judged)
    if why:
        number = sum(1 for _ in judged.judgments.rows())
        raise WorkError(
            f"{judged.root}: not one of the {number} judgments could be asked for, so there is "
            f"nothing to measure; the first: {why}"
        )
    found = measure_judged(task, judged, _pairs(judged.root).rows(), measures)
    result = {"what": "agreement with the benchmark's labels", **asked_of, **found}
    files.write_json(judged.root / "evaluation.json", result)
    return result


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What an evaluation asks of whom."""

    task: Task
    data: str
    """The pairs, as the user called them."""
    options: Mapping[str, Any]
    """How the judge is asked, as `named_options`; empty where an earlier version asked it."""


def asked_in(out: str) -> Asked:
    """What is asked in the evaluation that lies in `out`."""
    root = epath.Path(out)
    begun_as = files.read_twice(root / _OURS) or {}
    return Asked(
        task=task_named(begun_as.get("task", JudgeKnobs().task)),
        data=begun_as.get("data", "pairs"),
        options=marks.marked(root / "evaluate.mark.json").made_of.get("knobs", {}),
    )


def judgments_in(out: str) -> Iterator[Judgment]:
    """The judgments of the evaluation that lies in `out`."""
    return JudgedDir(epath.Path(out), SHARDS).judgments.rows()
