"""docs/faq.md is true: every message that it has is one that the package says."""

from __future__ import annotations

import json
import re
import shutil
import sys

import huggingface_hub
import pytest
import yaml
from etils import epath

from ste_jax.cli import main
from ste_jax.system import errors, files
from ste_jax.tokenization import sentencepiece_coder
from tests import tiny
from tests.docs import pages

MESSAGES = [block.strip() for _, block in pages.blocks("docs/faq.md", "text")]


@pytest.fixture
def here(tmp_path, monkeypatch, finished):
    """A directory with a little of everything, which is the current one."""
    monkeypatch.chdir(tmp_path)
    values = tiny.config(tmp_path)
    values["pool"]["path"] = ["questions.csv"]
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(values))
    (tmp_path / "adapter").mkdir()
    settings = {"base_model_name_or_path": "owner/base"}
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(settings))
    (tmp_path / "adapter/adapter_model.safetensors").touch()
    tiny.write_model(tmp_path / "old")
    (tmp_path / "old/model.safetensors").rename(tmp_path / "old/pytorch_model.bin")
    (tmp_path / "runs/mine/iterations").mkdir(parents=True)
    for name in ("config.yaml", "manifest.json"):
        (tmp_path / "runs/mine" / name).write_text((finished[0].root / name).read_text())
    (tmp_path / "finished").symlink_to(finished[0].root)
    return tmp_path


def of_ste(*words):
    """A command that says the message."""
    return lambda *_: main([str(word) for word in words])


def judging(*words, model="model"):
    return of_ste("judge", model, "--instruction", " apple", "--a", " river", *words)


def csv_without_a_question(here, *_):
    (here / "questions.csv").write_text("ticket,body\n1,Why?\n")
    return main(["run", "tiny.yaml"])


def from_the_hub(here, monkeypatch):
    def refuse(*_, **__):
        raise OSError("401 Client Error")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    return main(["export", "hf:meta-llama/Llama-3.1-8B-Instruct", "out"])


def without_tensorflow(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    sentencepiece_coder._tensorflow.cache_clear()
    try:
        sentencepiece_coder._tensorflow()
    except errors.RequestError as error:
        print(f"ste: {error}", file=sys.stderr)


def while_another_works(here, *_):
    with files.held_at(epath.Path("runs/mine")):
        return main(["annotate", "runs/mine"])


def at_once(here, monkeypatch):
    (here / "questions.csv").write_text("instruction\n apple bread\n")
    return main(["run", "tiny.yaml", "annotate.samples=8", "roles.judge.sampling.temperature=0"])


def said(error):
    return lambda *_: print(f"ste: {errors.unexpected(error)}", file=sys.stderr)


def evaluated_twice(here, *_):
    row = {"instruction": " apple", "response_a": " river", "response_b": " stone", "label": "A"}
    (here / "pairs.jsonl").write_text(json.dumps(row))
    words = ["evaluate", "model", "--benchmark", "pairs", "--data", "pairs.jsonl", "--out", "out"]
    words += ["--max-new-tokens", "4"]
    assert main(words) == 0
    return main([*words, "--seed", "7"])


def another_rate(here, *_):
    shutil.copytree(here / "finished", here / "done")
    return main(["run", "done", "finetune.learning_rate=0.004"])


SAID = (
    ("config mine.yml is neither", of_ste("run", "mine.yml")),
    ("there is no key finetune.lr", of_ste("run", "pico", "finetune.lr=1")),
    ("does not exist; correct pool.path", of_ste("run", "tiny.yaml")),
    ("no instruction in questions.csv", csv_without_a_question),
    ("a model of that name", of_ste("export", "HuggingFaceTB/SmolLM2-135M-Instruct", "out")),
    ("could not be fetched", from_the_hub),
    ("holds an adapter", of_ste("export", "adapter", "out")),
    ("is a pickle", of_ste("export", "old", "out")),
    ("is read by tensorflow-text", without_tensorflow),
    ("is at work on runs/mine", while_another_works),
    ("out of memory", said(MemoryError("RESOURCE_EXHAUSTED: 16 GB"))),
    ("annotate.samples=8", at_once),
    ("need gcsfs", said(ImportError("install gcsfs to access GCS"))),
    ("ended without a verdict", judging("--b", " stone", "--max-new-tokens", "1")),
    ("8 votes at temperature 0", judging("--b", " x", "--votes", "8", "--temperature", "0")),
    ("the same text; there is nothing", judging("--b", " river")),
    ("out holds an evaluation", evaluated_twice),
    ("no finished checkpoint yet", of_ste("export", "runs/mine", "out")),
    ("pico knows the tasks", of_ste("run", "pico", "pool.path=questions.csv")),
    ("finished work is set aside", another_rate),
)
"""Words of each message, and what makes the package say it."""


@pytest.mark.parametrize("words", MESSAGES)
def test_the_message_is_said(words, here, monkeypatch, capsys):
    (makes,) = [makes for part, makes in SAID if part in words]
    status = makes(here, monkeypatch)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ste: ")]
    pattern = ".*".join(re.escape(part) for part in words.split("..."))
    assert re.fullmatch(pattern, line.removeprefix("ste: ")), line
    assert status != 0


def test_each_message_stands_in_the_page_once():
    assert len(MESSAGES) == len(SAID)
    for part, _ in SAID:
        assert sum(part in words for words in MESSAGES) == 1, part
