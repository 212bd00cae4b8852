"""How is a judge measured on pairs with known labels (`ste evaluate`), and measured again from its
stored judgments (`ste score`)?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from ste_jax.commands.judge_options import (
    JudgeOptions,
    longest_asked,
    make_judge,
    open_judge,
)
from ste_jax.config import from_plain, identity
from ste_jax.config.identity import Identity, fingerprint
from ste_jax.config.schema import JudgeKnobs
from ste_jax.evaluation.judged import judging_stage, judging_work
from ste_jax.evaluation.measure import Measures, check_pairs, measure_judged, why_unasked
from ste_jax.evaluation.readers import read_pairs
from ste_jax.model_io.open_model import look_at
from ste_jax.parallel.processes import Processes
from ste_jax.records import Pair, Prompt, shard_of
from ste_jax.run import marks
from ste_jax.run.best import locate
from ste_jax.run.layout import JudgedDir
from ste_jax.run.sharded import run_sharded
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
    found = locate(options.model)
    judging = make_judge(found, options)
    check_pairs(judging.task, pairs, measures, data)
    prompts = {pair.id: judging.task.prompts(pair, judging.role.template) for pair in pairs}
    shape, tokenizer = look_at(found)
    every = [prompt for them in prompts.values() for prompt in them]
    longest = longest_asked(tokenizer, shape.max_position, judging, every)
    made_under = _identity(options, judging, longest)
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
        _check_out(root, ours)
        files.sweep_partials(root)
        if files.read_twice(root / _OURS) != ours:
            files.write_twice(root / _OURS, ours)
        _write_asked(judged, pairs, prompts)
        stage = judging_stage(judged, judging.task, made_under, root / "evaluation.json")
        work = judging_work(judging, options.votes)
        run_sharded(
            stage,
            lambda rows: work(rows, open_judge(found, options, judging, longest)),
            Processes(),
        )
        asked_of = {"benchmark": benchmark, "model": options.model, "judge": judging.model}
        return _write_evaluation(judged, judging.task, asked_of, measures)


def _identity(options: JudgeOptions, judging: judge.Judge, longest: int) -> Identity:
    """What a fingerprint holds of the judge: all that decides its judgments, except the prompts."""
    asked = [
        options.votes,
        *options.identity(longest),
        judge.VERSION,
        role_fingerprint(judging.role),
        identity.of(judging.knobs),
        *judging.task.identity(),
    ]
    return fingerprint("evaluate", 1, asked, model=judging.model)


def _read_measures(asked: Mapping[str, Any], where: str) -> Measures:
    measures: Measures = from_plain.build(Measures, asked, where)
    return measures


def _check_out(root: epath.Path, ours: Mapping[str, Any]) -> None:
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
    there = {"judge": marks.marked(root / "evaluate.mark.json") or ours["judge"], **there}
    others = {
        "benchmark": "another benchmark",
        "prompts": "other pairs or another template",
        "judge": "another judge or other settings",
    }
    for key, what in others.items():
        if there.get(key, ours[key]) != ours[key]:
            raise RequestError(
                f"{root} holds an evaluation of {there.get('model')} on {there.get('data')} with "
                f"{what}; name another --out (what lies there is kept)"
            )


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
        asked_of = {key: old[key] for key in ("benchmark", "model", "judge")}
        return _write_evaluation(JudgedDir(root, SHARDS), task, asked_of, measures)


def _write_evaluation(
    judged: JudgedDir, task: Task, asked_of: Mapping[str, str], measures: Measures
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


def as_text(result: Mapping[str, Any]) -> str:
    """An evaluation as text to print."""
    return json.dumps(result, indent=2, ensure_ascii=False)
