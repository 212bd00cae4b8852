"""Answers that look like options, streams that are not UTF-8, texts that would act on a terminal,
and names that reports use themselves."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st

from ste_jax import cli
from ste_jax.cli import recipe
from ste_jax.commands.words import with_values
from ste_jax.reporting import html, tables
from ste_jax.reporting.sections import accuracy
from ste_jax.run.layout import RunDir
from ste_jax.system.errors import RequestError
from ste_jax.system.terminal import harmless, say, show
from ste_jax.tasks import PAIRWISE
from tests.reports import REPORTS


def parsed(*words: str) -> Any:
    arguments, left = cli._parser().parse_known_args(with_values(words))
    assert left == []
    return arguments


@settings(max_examples=200, derandomize=True, deadline=None)
@given(*(st.text(max_size=8) | st.text("-=ab1/", max_size=6) for _ in range(3)))
def test_any_text_is_an_answer(instruction: str, a: str, b: str) -> None:
    apart = ["--instruction", instruction, "--a", a, "--b", b]
    joined = [f"--instruction={instruction}", f"--a={a}", f"--b={b}"]
    for words in (apart, joined, ["--instr", *apart[1:]]):
        found = parsed("judge", "pico", *words, "--votes", "2")
        assert (found.instruction, found.a, found.b) == (instruction, a, b)
        assert (found.model, found.votes) == ("pico", 2)


@pytest.mark.parametrize("text", ["-1/4", "--", "--b", "-h", "--debug", "-", "", "text:x"])
def test_texts_that_look_like_options(text: str) -> None:
    words = ["--instruction", text, "--a", text, "--b", "1/4"]
    found = parsed("judge", "pico", *words)
    assert (found.instruction, found.a, found.b, found.debug) == (text, text, "1/4", False)
    found = parsed("generate", "m", "--prompts", "p", "--out", "-o", "--stop", text, "--seed", "3")
    assert (found.stop, found.out, found.seed) == ([text], "-o", 3)


def test_what_is_wrong_with_the_words_is_still_told(capsys: pytest.CaptureFixture[str]) -> None:
    for words, told in (
        (["judge", "pico", "--a", "x", "--b"], "--b: expected one argument"),
        (["judge", "pico", "--a", "x", "--b", "y"], "required: --instruction"),
        (["generate", "m", "--prompts", "--out", "o"], "--prompts: expected one argument"),
        (["run", "pico", "--dirr"], "unrecognized arguments: --dirr"),
    ):
        with pytest.raises(SystemExit) as stopped:
            cli.main(words)
        assert stopped.value.code == 2 and told in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------
# What is printed


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp1252", "utf-8", "utf-16"])
def test_a_stream_of_any_encoding_takes_any_text(encoding: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    show("saved in /tmp/猫 é \udcff", stream)
    told = stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    assert told.startswith("saved in /tmp/") and told.rstrip().endswith("\\udcff")
    assert ("猫" in told) == (encoding in ("utf-8", "utf-16"))
    assert ("\\u732b" in told) == (encoding not in ("utf-8", "utf-16"))


def test_a_stream_that_nobody_reads(tmp_path: Path) -> None:
    code = "from ste_jax.system.terminal import say\nfor _ in range(9): say('x' * 90000)"
    for end in ("| head -c 9", ">&-"):
        words = ["bash", "-c", f'"{sys.executable}" -c "$0" {end}; echo $PIPESTATUS >&2', code]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        assert done.stderr.strip() == "0"


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_a_command_on_such_a_stream(encoding: str, tmp_path: Path) -> None:
    code = (
        "import sys; from ste_jax import cli\n"
        "from ste_jax.cli import models; from ste_jax.system.terminal import say\n"
        "models._score = lambda arguments: say('in ' + arguments.out) or 0\n"
        "sys.exit(cli.main(['score', sys.argv[1]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "猫")],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode(encoding).strip() == f"in {tmp_path}/\\u732b"


def test_what_would_act_on_a_terminal_is_shown_by_number(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "\x1b[2J\x1b]0;t\x07 \x9b31m \r \u202e]]A[[ \u2066 \u200f \x7f\x00 \u2028"

    def fail(_: Any) -> int:
        raise RequestError(f"row {words} is wrong")

    monkeypatch.setattr(recipe, "_report", lambda _: say(f"one\ttwo\n{words}") or 0)
    assert cli.main(["report", "x"]) == 0
    monkeypatch.setattr(recipe, "_report", fail)
    assert cli.main(["report", "x"]) == 2
    out, err = capsys.readouterr()
    for shown in (out, err):
        assert "\\u001b[2J" in shown and "\\u009b31m" in shown and "\\u202e]]A[[" in shown
        assert not set(shown) & set(words) - set("[2J]0;t31mA ")
    assert out.startswith("one\ttwo\n")


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.text())
def test_json_stays_json_and_plain_text_plain(text: str) -> None:
    written = json.dumps([text], ensure_ascii=False)
    assert json.loads(harmless(written)) == [text]
    assert harmless(harmless(text)) == harmless(text)
    plain = "".join(letter for letter in text if letter.isprintable() or letter in "\n\t")
    assert harmless(plain) == plain or not plain.isprintable()


def test_the_words_of_other_scripts_stay() -> None:
    for text in ("שלום", "العربية", "नमस्ते", "👩‍👩‍👧 🏴", "می‌خواهم", "e\u0301"):
        assert harmless(text) == text


def test_a_report_shows_them_by_number(tmp_path: Path) -> None:
    run = RunDir(epath.Path(tmp_path))
    run.config.write_text("name: 'x'\nmodel: \"a\u202eb\u200f\"\n", encoding="utf-8")
    (tmp_path / "manifest.json").write_text('{"shards": 1}')
    text = html.write_report(run, REPORTS).read_text(encoding="utf-8")
    assert "a\\u202eb\\u200f" in text and "\u202e" not in text and "\u200f" not in text


# ---------------------------------------------------------------------------------------------
# Names that reports use themselves


@pytest.mark.parametrize("column", ["pairs", "seed", "iteration 1", "n", "x_ci95", "by"])
def test_a_column_may_be_called_as_a_report_calls_its_own(column: str) -> None:
    def judged(share: float) -> dict[str, Any]:
        group = {"n": 7, "accuracy": share, "accuracy_ci95": [share - 0.1, share + 0.1]}
        return {"by": {column: {"easy": group, "hard": {**group, "n": 5, "accuracy": None}}}}

    found = accuracy._by(column, {0: judged(0.5), 1: judged(0.75)})
    heads = [column, "pairs", "seed", "iteration 1"]
    assert "".join(f'<th scope="col">{head}</th>' for head in heads) in found
    assert (
        '<th scope="row">easy</th><td>7</td><td>0.500 [0.400, 0.600]</td>'
        "<td>0.750 [0.650, 0.850]</td>"
    ) in found
    assert '<th scope="row">hard</th><td>5</td>' in found


def test_a_set_called_as_the_table_calls_its_own() -> None:
    rows = [{"iteration": 0, "validation_accuracy": 0.9}]
    sets = {"validation": {"accuracy": 0.1, "accuracy_ci95": [0.0, 0.2]}}
    (row,) = tables._with_sets(rows, PAIRWISE, [{"sets": sets}])
    assert row["validation_accuracy"] == 0.9
    assert row["set validation_accuracy"] == 0.1
    assert row["set validation_accuracy_ci95"] == [0.0, 0.2]
