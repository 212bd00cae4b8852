"""What does every step of a run need at hand?

The config, the run's directory, the processes, the log, and a generator for the model that is asked
at the moment: loaded when it is first needed, so that a run with nothing left to do loads none.
"""

from __future__ import annotations

import dataclasses
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import yaml
from etils import epath

from ste_jax import __version__
from ste_jax.checkpoints import checkpoint
from ste_jax.config import fitting
from ste_jax.config.from_plain import build, to_dict
from ste_jax.config.schema import Config
from ste_jax.config.shape_check import check_knobs
from ste_jax.decoding.generator import LocalGenerator
from ste_jax.errors import RequestError, SteError
from ste_jax.evaluation.readers import read_pairs
from ste_jax.finetuning.lora import check_lora
from ste_jax.finetuning.phase_knobs import stage_knobs
from ste_jax.finetuning.train_step import check_batch
from ste_jax.generation import Generator, Usage
from ste_jax.model_io.open_model import look_at, open_generator
from ste_jax.model_io.sources import resolve
from ste_jax.parallel.processes import Processes
from ste_jax.parallel.sharding import make_mesh
from ste_jax.prompts.parse import RESPONSE_MARK
from ste_jax.prompts.render import PLACES, load_template
from ste_jax.run.best import locate
from ste_jax.run.layout import NO_SHAPES, MetricsLog, RunDir, fingerprint
from ste_jax.run.tracking import check_tracking
from ste_jax.stages.judge import FORCED_TOKENS, build_prompts
from ste_jax.stages.roles import arguments_of
from ste_jax.system import files, shipped
from ste_jax.tokenization.tokenizer import Tokenizer


@dataclass
class Context:
    """A run in hand."""

    config: Config
    run: RunDir
    processes: Processes
    log: MetricsLog
    _asked: tuple[str, LocalGenerator] | None = field(default=None, init=False)

    def generator(self, checkpoint: epath.Path) -> LocalGenerator:
        """The model of a checkpoint, read back from Orbax onto this process's devices.

        One model is held at a time.
        """
        if self._asked is None or self._asked[0] != str(checkpoint):
            self.forget_model()
            self._asked = (
                str(checkpoint),
                open_generator(resolve(str(checkpoint)), self.config.decoding),
            )
        return self._asked[1]

    def forget_model(self) -> None:
        """Let the memory of the model go."""
        self._asked = None

    def in_flight(self, endpoint: str = "") -> int:
        """Rows open at once: enough that a free slot, here or there, always finds work."""
        if endpoint:
            return 2 * self.config.endpoints[endpoint].concurrency
        knobs = self.config.decoding
        return 4 * max(knobs.groups, knobs.singles)

    def meter(self, stage: str, iteration: int, generator: Generator) -> Callable[[int], None]:
        """A function to call after each piece of work, with its rows: logs what the piece cost."""
        before = dataclasses.replace(generator.usage)
        started = time.monotonic()

        def note(rows: int) -> None:
            nonlocal before, started
            now = dataclasses.replace(generator.usage)
            self.log(
                "work",
                stage=stage,
                iteration=iteration,
                rows=rows,
                seconds=round(time.monotonic() - started, 3),
                **_difference(now, before),
            )
            before, started = now, time.monotonic()

        return note


def _difference(now: Usage, before: Usage) -> dict[str, Any]:
    """What was done between two looks at a generator's counters, without their own clock."""
    kept = ["prompt_tokens", "cached_prompt_tokens", "new_tokens", "samples", "flops"]
    kept += ["slot_steps", "busy_slot_steps"]
    found = {name: getattr(now, name) - getattr(before, name) for name in kept}
    return {**found, "prefill_seconds": round(now.prefill_seconds - before.prefill_seconds, 3)}


def open_run(
    config: Config,
    asked: Config,
    root: epath.Path,
    processes: Processes,
    *,
    new_shapes: bool = False,
) -> Context:
    """Begin a run, or take one up where it was left.

    What is fixed at the beginning (the number of shards, the shapes of the decoding programs)
    lies in the run's manifest. `config` is the one that was `asked` for with nothing left open (see
    `fit_config`).

    Raises:
      RequestError: the directory holds something that is not a run, or a run of another number of
        shards or, without `new_shapes`, of other shapes.
    """
    run = RunDir(root)

    def begin() -> None:
        manifest = _manifest(config, run, new_shapes)
        manifest["caps"] = {**manifest["caps"], **fitting.open_caps(asked, config)}
        files.sweep_partials(root)
        files.write_twice(run.manifest, manifest)
        text = yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)
        files.write_whole(run.config, text.encode())

    processes.from_first("open", begin)
    name = "metrics.jsonl" if processes.first else f"metrics-{processes.index:05d}.jsonl"
    return Context(
        config=config,
        run=run,
        processes=processes,
        log=MetricsLog(root / name),
    )


def check_early(config: Config, processes: Processes) -> None:
    """Refuse, before anything is begun, what a step would refuse only after hours of others.

    Raises:
      RequestError: a mesh that the devices do not make up, a batch that cannot be divided over it,
        a template that cannot be read, or processes that disagree.
    """
    make_mesh(config.decoding.mesh, jax.local_devices())
    mesh = make_mesh(config.finetune.mesh)
    for stage in config.finetune.stages:
        where = "finetune" if stage == "sft" else f"finetune.{stage}"
        check_batch(stage_knobs(config.finetune, stage), mesh, where)
    check_lora(config.finetune.lora)
    check_tracking(config.track)
    _agree(config, processes)


def fit_config(
    config: Config, root: epath.Path, processes: Processes, *, new_shapes: bool = False
) -> Config:
    """The config with nothing left open (see `ste_jax.config.fitting`), the same for all processes.

    Raises:
      RequestError: the config asks for what can never fit.
    """
    told = processes.from_first("fit", lambda: to_dict(_fitted(config, RunDir(root), new_shapes)))
    fitted: Config = build(Config, told, str(RunDir(root).config))
    check_knobs(fitted.decoding)
    return fitted


def _fitted(config: Config, run: RunDir, new_shapes: bool) -> Config:
    """The config with what it leaves open worked out for its model; process 0 alone."""
    begun = run.read_manifest() if run.begun() else None
    if begun and new_shapes:
        begun = {**begun, "shapes": {}}
    try:
        found = locate(config.model)
    except SteError:
        if begun is None or not checkpoint.is_checkpoint(run.iteration(0).checkpoint):
            raise
        found = locate(str(run.iteration(0).checkpoint))
    shape, tokenizer = look_at(found)
    lengths = {}
    for name in fitting.ROLES:
        role = getattr(config.roles, name)
        template = load_template(role.template, name)
        empty = template.messages((), **dict.fromkeys(PLACES[name], ""))
        lengths[name] = len(tokenizer.prompt_ids(empty, template.start, arguments_of(role)))
    sizes = fitting.Sizes(
        context=shape.max_position,
        templates=lengths,
        marks=len(tokenizer.encode(f"\n{RESPONSE_MARK}\n")),
        forced=FORCED_TOKENS,
        force_text=len(tokenizer.encode(config.judge.force_text)),
        labelled=0 if begun and begun["shapes"] else _longest_labelled(config, tokenizer),
    )
    return fitting.fit(config, sizes, begun)


def _longest_labelled(config: Config, tokenizer: Tokenizer) -> int:
    """The tokens of the judge's longest prompt of a labelled set, where buckets follow from it."""
    if config.decoding.prompt_buckets:
        return 0
    role = config.roles.judge
    template, arguments = load_template(role.template, "judge"), arguments_of(role)
    prompts = (
        prompt.messages
        for knobs in config.evaluate.sets
        for pair in read_pairs(knobs.benchmark, shipped.path_of(knobs.data), knobs.by)
        for prompt in build_prompts(pair, template)[:1]
    )
    lengths = (len(tokenizer.prompt_ids(each, template.start, arguments)) for each in prompts)
    return max(lengths, default=0)


def _templates(config: Config) -> list[Any]:
    roles = ("classify", "respond", "modify", "judge")
    names = {role: getattr(config.roles, role).template for role in roles}
    return [load_template(name, role).fingerprint() for role, name in names.items()]


def _agree(config: Config, processes: Processes) -> None:
    """All processes must work under the same config: their shards are one table.

    Raises:
      RequestError: they do not, or a template cannot be read.
    """
    asked = fingerprint("config", 1, to_dict(config), inputs=_templates(config))
    told = processes.gather("config", asked)
    if len(set(told)) > 1:
        other = next(index for index, each in enumerate(told) if each != told[0])
        raise RequestError(
            f"process {other} was started with another config or other templates than process 0"
        )


def _manifest(config: Config, run: RunDir, new_shapes: bool) -> dict[str, Any]:
    knobs = to_dict(config.decoding)
    shapes = {key: value for key, value in knobs.items() if key not in NO_SHAPES}
    fresh = {
        "name": config.name,
        "iterations": config.iterations,
        "shards": config.pool.shards,
        "shapes": shapes,
        "caps": {},
        "ste_jax": __version__,
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
    }
    if not run.begun():
        # what a killed first write leaves under a partial name is not somebody's work
        if run.root.exists() and any(".partial-" not in each.name for each in run.root.iterdir()):
            raise RequestError(
                f"{run.root} holds something else than a run; name another directory"
            )
        return fresh
    old = run.read_manifest()
    if old["shards"] != config.pool.shards:
        raise RequestError(
            f"{run.root} was begun with pool.shards={old['shards']}, which is fixed; "
            f"set it back or begin a new run"
        )
    changed = [key for key, value in shapes.items() if old["shapes"].get(key) != value]
    if changed and not new_shapes:
        key, began = changed[0], old["shapes"].get(changed[0])
        raise RequestError(
            f"{run.root} was begun with decoding.{key}={began}, not {shapes[key]}: other shapes "
            f"round otherwise. Set it back, or let what is still to do take the new ones with "
            f"--new-shapes"
        )
    return {**fresh, **old, "shapes": shapes, "iterations": config.iterations}
