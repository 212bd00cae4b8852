"""`ste generate`: a kill in its midst leaves no trace, and a bad row spoils no other."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ste_jax.cli import main
from ste_jax.commands import batch
from ste_jax.commands import generate as generating
from ste_jax.commands.options import DecodingOptions
from ste_jax.generation import Message, Sampling
from ste_jax.system.errors import RequestError
from tests import running, tiny
from tests.stages.scripted import Scripted


def words(model: Path, prompts: Path, out: Path, *more: str) -> list[str]:
    return ["generate", str(model), "--prompts", str(prompts), "--out", str(out), *more]


def write_prompts(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(out: Path) -> dict[tuple[str, int], dict[str, Any]]:
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    return {(row["id"], row["sample"]): row for row in rows}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_model(tmp_path_factory.mktemp("generate") / "model")


SETTINGS = ["--samples", "3", "--max-new-tokens", "20", "--temperature", "1.0"]
SETTINGS += ["--groups", "2", "--group-size", "2", "--seed", "3"]


@pytest.mark.parametrize(
    ("place", "done"),
    # 10 samples and half of one; those of one round.
    [("append:13", range(10, 11)), pytest.param("round:3", range(1, 29), marks=pytest.mark.slow)],
)
def test_killed_in_its_midst_and_run_again_it_writes_the_same_bytes(
    place: str, done: range, model: Path, tmp_path: Path
) -> None:
    chats = [{"id": f"{i}", "prompt": " " + " ".join(tiny.WORDS[i : i + 4])} for i in range(10)]
    prompts = write_prompts(tmp_path / "in.jsonl", *chats)
    undisturbed, out = tmp_path / "undisturbed.jsonl", tmp_path / "out.jsonl"
    work = tmp_path / "out.jsonl.work"
    beside = running.start(words(model, prompts, undisturbed, *SETTINGS))

    asked = words(model, prompts, out, *SETTINGS)
    assert running.run(asked, place=place) == -signal.SIGKILL
    *whole, last = work.read_text().split("\n")
    assert len(whole) - 2 in done  # the first lines are the settings
    assert bool(last) == place.startswith("append")
    assert not out.exists()
    assert running.run(asked) == 0
    output, _ = beside.communicate(timeout=300)
    assert beside.returncode == 0, output
    assert out.read_bytes() == undisturbed.read_bytes()
    assert not work.exists()
    rows = rows_of(out)
    assert len(rows) == 30 and len({row["text"] for row in rows.values()}) > 20


def test_rows_that_cannot_be_answered_fail_alone(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    tiny.write_model(broken)
    tensors = load_file(broken / "model.safetensors")
    poison = tiny.vocabulary().index("▁zebra")
    tensors["model.embed_tokens.weight"][poison] = np.nan
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    prompts = write_prompts(
        tmp_path / "in.jsonl",
        {"id": "first", "prompt": " apple bread"},
        {"id": "poisoned", "prompt": " apple zebra"},
        {"id": "beyond the context", "prompt": " apple" * 508},
        {"id": "beyond the buckets", "prompt": " apple" * 5000},
        {"id": "strange", "messages": [{"role": "no word", "content": " apple"}]},
        {"id": "empty", "prompt": ""},
        {"id": "last", "prompt": " chair dance"},
    )
    out, sound = tmp_path / "out.jsonl", tmp_path / "sound.jsonl"
    settings = ["--max-new-tokens", "8", "--temperature", "0", "--groups", "2"]
    assert main(words(broken, prompts, out, *settings)) == 0
    assert "4 could not be answered (see their `error`)" in capsys.readouterr().out
    rows = {id: row for (id, _), row in rows_of(out).items()}
    errors = {id: row["error"] for id, row in rows.items() if row["finish_reason"] == "error"}
    assert errors.keys() == {"poisoned", "beyond the context", "beyond the buckets", "strange"}
    assert errors["poisoned"] == "the model's logits are not finite at new token 0"
    assert "more than the model's 512 positions" in errors["beyond the context"]
    assert "50" in errors["beyond the buckets"] and "4096" in errors["beyond the buckets"]
    assert "'no word'" in errors["strange"]
    # The others have what they would have had without them.
    assert main(words(model, prompts, sound, *settings)) == 0
    expected = {id: row for (id, _), row in rows_of(sound).items()}
    for id in ("first", "empty", "last"):
        assert rows[id] == expected[id] and rows[id]["n_tokens"] > 0


def test_a_file_without_a_good_row_fails(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = write_prompts(tmp_path / "in.jsonl", {"prompt": " apple" * 600})
    assert main(words(model, prompts, tmp_path / "out.jsonl", "--max-new-tokens", "8")) == 1
    assert "no sample could be drawn" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--samples", "--max-new-tokens", "--groups"])
def test_none_of_them_may_be_0(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words(tmp_path, tmp_path, tmp_path, option, "0"))
    assert stopped.value.code == 2
    assert f"{option}: 0 is not a whole number from 1 to" in capsys.readouterr().err


def test_a_stop_string_over_several_tokens(model: Path, tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "in.jsonl", {"id": "x", "prompt": " apple bread"})
    settings = ["--max-new-tokens", "12", "--temperature", "1.5", "--ignore-eos"]
    assert main(words(model, prompts, tmp_path / "whole", *settings)) == 0
    whole = rows_of(tmp_path / "whole")["x", 0]["text"]
    border = whole.index(" ", 4)
    stop = whole[border - 2 : border + 3]  # the end of a word and the beginning of the next
    assert main(words(model, prompts, tmp_path / "cut", *settings, "--stop", stop)) == 0
    row = rows_of(tmp_path / "cut")["x", 0]
    assert row["text"] == whole[: whole.index(stop) + len(stop)]
    assert row["finish_reason"] == "stop" and 1 < row["n_tokens"] < 12


def test_shapes_of_decoding_from_the_command_line(model: Path, tmp_path: Path) -> None:
    plain = DecodingOptions()
    assert plain.knobs((8,)).prompt_buckets == (512, 1024, 2048, 4096)
    assert plain.identity() == ["float32", [8, 2]]
    larger = DecodingOptions(max_prompt_tokens=5000, weights="int8")
    assert larger.knobs((8,)).prompt_buckets[-1] == 8192 and larger.knobs((8,)).weights == "int8"
    assert larger.identity() == ["float32", [8, 2], "int8", 8192]
    assert DecodingOptions(max_prompt_tokens=100).knobs((8,)).prompt_buckets == (512,)

    prompts = write_prompts(
        tmp_path / "in.jsonl",
        {"id": "long", "prompt": " apple" * 600},
        {"id": "short", "prompt": " apple"},
    )
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    few = ["--max-new-tokens", "8"]
    assert main(words(model, prompts, first, *few, "--max-prompt-tokens", "512")) == 0
    assert "--max-prompt-tokens" in rows_of(first)["long", 0]["error"]
    assert main(words(model, prompts, second, *few, "--weights", "int8")) == 0
    rows = rows_of(second)
    assert "positions" in rows["long", 0]["error"] and rows["short", 0]["n_tokens"] > 0


def test_of_two_commands_that_write_one_output_one_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = write_prompts(tmp_path / "prompts.jsonl", {"id": "1", "prompt": " apple"})
    out = tmp_path / "out.jsonl"
    asked = words(model, prompts, out, "--max-new-tokens", "4")
    with batch._held(tmp_path / "out.jsonl.work"):
        assert main(asked) == 2
        assert "another `ste` command is at work" in capsys.readouterr().err
    assert main(asked) == 0 and len(rows_of(out)) == 1


def test_a_finished_file_says_so_and_one_made_otherwise_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = write_prompts(tmp_path / "in.jsonl", {"prompt": " apple"}, {"prompt": " bread"})
    out = tmp_path / "out.jsonl"
    asked = words(model, prompts, out, "--max-new-tokens", "4")
    assert main(asked) == 0
    before = out.read_bytes()
    monkeypatch.setattr(generating, "open_generator", None)  # no weights are read for this
    capsys.readouterr()
    assert main(asked) == 0
    assert capsys.readouterr().out == f"{out}: done already, 2 samples of 2 prompts\n"
    other = tiny.write_model(tmp_path / "other", seed=1)
    more = write_prompts(tmp_path / "more.jsonl", {"prompt": " apple"})
    for change, says in (
        ([asked[0], str(other), *asked[2:]], "another model is asked"),
        ([*asked, "--prompts", str(more)], "the prompts are others"),
        ([*asked, "--temperature", "0.5"], "temperature is 0.5, not 0.7"),
        ([*asked, "--samples", "2"], "samples is 2, not 1"),
    ):
        assert main(change) == 2
        error = capsys.readouterr().err
        assert f"settings ({says}); name another --out" in error, error
        assert out.read_bytes() == before
    out.write_bytes(before + b"\n")
    assert main(asked) == 2
    assert "was changed since it was written" in capsys.readouterr().err


DAMAGED = [b"{", b"\xff\xfe", b"[1]", b'{"id": "1"}', b'{"id": [1], "sample": 0}', b"[" * 10**5]


def answered(out: Path, prompts: int) -> int:
    """Writes the answers of a generator that needs no model; returns how many were drawn now."""
    asked = [(f"{n}", (Message(role="user", content="x"),)) for n in range(prompts)]
    generator = Scripted(lambda request, sample: f"{request.id}/{sample}")
    drawn, failed = batch.generate_file(
        generator,
        asked,
        str(out),
        Sampling(max_new_tokens=8),
        samples=2,
        seed=0,
        settings={"seed": 0},
    )
    assert not failed
    return drawn


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[bytes]]:
    """An output that is not finished, and the lines of its work file."""
    out, work = tmp_path / "out.jsonl", tmp_path / "out.jsonl.work"
    with monkeypatch.context() as patched:
        patched.setattr(batch.files, "write_whole", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            answered(out, 3)
    return out, work.read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize("place", [0, 1, 2, 7])
@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_line_costs_itself(
    damage: bytes, place: int, held: tuple[Path, list[bytes]]
) -> None:
    out, lines = held
    assert len(lines) == 2 + 6
    work = out.with_name("out.jsonl.work")
    spoilt = b"".join([*lines[:place], damage + b"\n", *lines[place + 1 :]])
    work.write_bytes(spoilt)
    with pytest.raises(RequestError, match=rf"line {place + 1}, is damaged; take that line out"):
        answered(out, 3)
    assert work.read_bytes() == spoilt
    work.write_bytes(b"".join(lines[:place] + lines[place + 1 :]))
    assert answered(out, 3) == (place > 1)
    assert len(rows_of(out)) == 6


def test_samples_without_their_settings_are_told_and_kept(held: tuple[Path, list[bytes]]) -> None:
    out, lines = held
    work = out.with_name("out.jsonl.work")
    for start in ([], [b"{\n"], [b"{\n", b"\0\n"]):
        work.write_bytes(b"".join(start + lines[2:]))
        with pytest.raises(RequestError, match="move it away to begin anew"):
            answered(out, 3)
        assert work.read_bytes() == b"".join(start + lines[2:])
    work.rename(out.with_name("aside"))
    assert answered(out, 3) == 6


def test_killed_after_the_output_and_before_the_note_of_it(
    held: tuple[Path, list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, _ = held
    with monkeypatch.context() as patched:
        patched.setattr(batch.files, "write_json", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            answered(out, 3)
    assert out.exists() and not batch.is_answered(str(out), {"seed": 0}, 2)
    assert answered(out, 3) == 0
    assert batch.is_answered(str(out), {"seed": 0}, 2)


def test_one_line_of_settings_is_enough(held: tuple[Path, list[bytes]]) -> None:
    out, lines = held
    out.with_name("out.jsonl.work").write_bytes(b"".join(lines[1:]))
    assert answered(out, 3) == 0


def test_samples_of_other_settings_are_refused(held: tuple[Path, list[bytes]]) -> None:
    out, lines = held
    other = lines[0].replace(b"0", b"1")
    for start in ([other, other], [other, lines[0]]):
        out.with_name("out.jsonl.work").write_bytes(b"".join(start + lines[2:]))
        with pytest.raises(RequestError, match="samples of other settings"):
            answered(out, 3)
