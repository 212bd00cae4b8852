"""How are the prompts of a file answered?

JSONL in (`id` and `prompt` or `messages`), JSONL out, a row per sample. Finished samples are
appended to a work file as they come; a rerun keeps them and asks for the rest; at the end the rows
are put in the order of the prompts and the output appears whole. A file beside it says what it was
made under, so that the same command, given again, knows that it is done."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from ste_jax.generation import Completion, Generator, Message, Request, Sampling
from ste_jax.run.changes import counted
from ste_jax.system import files, hashing, notation, preemption, progress
from ste_jax.system.errors import Preempted, RequestError, WorkError
from ste_jax.system.jsonl import read_jsonl

_FIELDS = ("id", "sample", "text", "n_tokens", "logprob", "finish_reason")


def read_prompts(path: str) -> list[tuple[str, tuple[Message, ...]]]:
    """The id and the messages of every line.

    Raises:
      RequestError: the file cannot be read, or a line is not a prompt; names file and line.
    """
    found: list[tuple[str, tuple[Message, ...]]] = []
    seen: set[str] = set()
    try:
        for line in read_jsonl(path):
            where = f"{path}:{line.number}"
            if line.fault:
                raise RequestError(f"{where}: not JSON: {line.fault}")
            id, messages = _prompt(line.value, where, line.number)
            if id in seen:
                raise RequestError(f"{where}: id {id} stands twice")
            seen.add(id)
            found.append((id, messages))
    except OSError as error:
        raise RequestError(f"prompts file {path} cannot be read: {error}") from error
    if not found:
        raise RequestError(f"prompts file {path} holds no prompt")
    return found


def _prompt(row: Any, where: str, number: int) -> tuple[str, tuple[Message, ...]]:
    if not isinstance(row, dict):
        raise RequestError(f"{where}: not an object with `prompt` or `messages`")
    messages = row.get("messages")
    if messages is None:
        if not isinstance(row.get("prompt"), str):
            raise RequestError(f"{where}: neither `prompt` (a text) nor `messages` (turns)")
        messages = [{"role": "user", "content": row["prompt"]}]
    id = row.get("id")
    if not isinstance(id, str | int | None) or isinstance(id, bool):
        raise RequestError(f"{where}: `id` must be a text or a whole number, not {id!r}")
    return str(number if id is None else id), read_turns(messages, where)


def read_turns(messages: Any, where: str) -> tuple[Message, ...]:
    """The turns of a chat, checked.

    Raises:
      RequestError: it is something else; names `where`.
    """
    turns = messages if isinstance(messages, list | tuple) else []
    good = [turn for turn in turns if isinstance(turn, dict)]
    found = [text for turn in good for text in (turn.get("role"), turn.get("content"))]
    texts = [text for text in found if isinstance(text, str)]
    if not turns or len(texts) < 2 * len(turns):
        raise RequestError(f"{where}: `messages` must be turns with a text as `role` and `content`")
    if notation.has_lone_surrogate("".join(texts)):
        raise RequestError(f"{where}: a text holds half of a surrogate pair")
    return tuple(Message(role=turn["role"], content=turn["content"]) for turn in good)


def check_place(out: str) -> None:
    """Refuse an output that cannot be made, before anything is loaded.

    Raises:
      RequestError: it is there already and nothing says of what, or its directory is not.
    """
    place = Path(out)
    if place.exists() and not _work_file(place).exists() and not _made_file(place).exists():
        raise RequestError(f"{out} is there already; name another --out")
    if not place.parent.is_dir():
        raise RequestError(f"{out} cannot be written: {place.parent} is not a directory")


def is_answered(out: str, settings: dict[str, Any], samples: int) -> bool:
    """Whether the output is there, whole, and was made under these settings.

    Raises:
      RequestError: it was made under others, or changed since.
    """
    place = Path(out)
    if not place.exists() or _work_file(place).exists():
        return False
    made = files.read_twice(_made_file(place))
    if made is None:
        raise RequestError(f"{out} is there already; name another --out")
    if made["output"] != hashing.file_digest(place):
        raise RequestError(f"{out} was changed since it was written; name another --out")
    asked = {**settings, "samples": samples}
    if made["settings"] != asked:
        raise RequestError(
            f"{out} holds samples of other settings ({_others(made['settings'], asked)}); name "
            "another --out"
        )
    return True


def _others(old: dict[str, Any], new: dict[str, Any]) -> str:
    """What is another in the new settings than in the old ones."""
    hashes = {"model": "another model is asked", "prompts": "the prompts are others"}
    differ = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return ", ".join(
        hashes.get(name, f"{name} is {new.get(name)}, not {old.get(name)}") for name in differ
    )


def _work_file(place: Path) -> Path:
    """The file that keeps finished samples until the output is whole."""
    return place.with_name(place.name + ".work")


def _made_file(place: Path) -> epath.Path:
    """The file that says what a whole output was made under."""
    return epath.Path(place.with_name(place.name + ".made.json"))


def generate_file(
    generator: Generator,
    prompts: list[tuple[str, tuple[Message, ...]]],
    out: str,
    sampling: Sampling,
    *,
    samples: int,
    seed: int,
    settings: dict[str, Any],
) -> tuple[int, int]:
    """Answer the prompts into `out`; returns how many samples were drawn now, and how many of all
    ended in an error.

    `settings` is what decides the answers: a work file made under others is refused.

    Raises:
      RequestError: the output is there already, or a work file of other settings is.
      WorkError: the work file cannot be written.
    """
    check_place(out)
    work = _work_file(Path(out))
    with _held(work) as file:
        done = _read_work(work, settings)
        if not work.stat().st_size:
            for _ in range(2):  # so that a damaged line does not cost all the samples
                _append(file, {"settings": settings})
        wanted = [
            (id, messages, [s for s in range(samples) if (id, s) not in done])
            for id, messages in prompts
        ]
        total = sum(len(lacking) for _, _, lacking in wanted)
        for id, messages, lacking in wanted:
            if lacking:
                asked = Request(id=id, messages=messages, sampling=sampling, samples=lacking)
                asked = dataclasses.replace(asked, key=seed, alone=samples == 1)
                generator.submit(asked)
        figures = lambda: generator.usage.figures()  # noqa: E731
        with progress.work("generate", total, "samples", figures=figures) as shown:
            for completion in _polled(generator):
                row = _row(completion)
                done[row["id"], row["sample"]] = row
                _append(file, row)
                generator.usage.settled_tokens += completion.drawn_tokens
                shown.add()
        order = [(id, sample) for id, _ in prompts for sample in range(samples)]
        text = "".join(json.dumps(done[key], ensure_ascii=False) + "\n" for key in order)
        files.write_whole(epath.Path(out), text.encode())
        made = {
            "settings": {**settings, "samples": samples},
            "output": hashing.file_digest(Path(out)),
        }
        files.write_json(_made_file(Path(out)), made)
        work.unlink()
    return total, sum("error" in row for row in done.values())


@contextlib.contextmanager
def _held(work: Path) -> Iterator[Any]:
    """The work file, open at its end and locked: two commands must not write one output.

    Raises:
      RequestError: another command is at work on it.
    """
    with work.open("a", encoding="utf-8") as file:
        files.hold(file.fileno(), work)
        yield file


def _polled(generator: Generator) -> Iterator[Completion]:
    """The completions, until a stop is asked for; then what is lost is said."""
    usage = generator.usage
    try:
        with preemption.in_hand(lambda: usage.new_tokens > 0):
            for completion in generator.completions():
                yield completion
                preemption.poll()
    except Preempted:
        if usage.tokens_in_hand:
            lost = counted(usage.tokens_in_hand, "tokens")
            progress.warn(f"stopped: {lost} of unfinished samples are drawn again")
        raise


def _row(completion: Completion) -> dict[str, Any]:
    logprob = sum(completion.logprobs) if completion.logprobs else None
    values = (
        completion.request_id,
        completion.sample,
        completion.text,
        len(completion.token_ids),
        logprob,
        completion.finish_reason,
    )
    row = dict(zip(_FIELDS, values, strict=True))
    return {**row, "error": completion.error} if completion.error else row


def _append(file: Any, row: dict[str, Any]) -> None:
    try:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    except OSError as error:
        raise WorkError(
            f"could not append to {file.name}: {error.strerror}; make room and run again"
        ) from error


def _read_work(work: Path, settings: dict[str, Any]) -> dict[tuple[str, int], dict[str, Any]]:
    """The samples in a work file; a last line that a kill cut off is removed from the file.

    Raises:
      RequestError: it holds samples of other settings, or something else.
    """
    data = work.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]  # the rest has no end: it was cut off
    there: list[Any] = []
    done: dict[tuple[str, int], dict[str, Any]] = {}
    damaged = 0
    for number, line in enumerate(whole.splitlines(), start=1):
        if not line.strip():
            continue
        row = _work_row(line)
        if row is None:
            damaged = damaged or number
        elif "settings" in row:
            there.append(row["settings"])
        else:
            done[row["id"], row["sample"]] = row
    if whole and not there:
        raise RequestError(
            f"{work} no longer says of which settings its samples are, so nothing can be added to "
            "them; move it away to begin anew"
        )
    for each in there:
        if each != settings:
            raise RequestError(
                f"{work} holds samples of other settings ({_others(each, settings)}); name another "
                "--out, or go on with those settings (what lies there is kept)"
            )
    if damaged:
        raise RequestError(
            f"{work}, line {damaged}, is damaged; take that line out of the file: what the other "
            "lines hold is kept"
        )
    if len(whole) < len(data):
        os.truncate(work, len(whole))
    return done


def _work_row(line: bytes) -> dict[str, Any] | None:
    """A line of a work file: the settings, or a sample; None if it is damaged."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not ("settings" in row or all(name in row for name in _FIELDS)):
        return None
    named = isinstance(row.get("id", ""), str) and isinstance(row.get("sample", 0), int)
    return row if named else None
