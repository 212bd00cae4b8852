"""docs/use-the-judge.md is true: what it has of shell and Python runs on a finished run.

vLLM is no dependency: a server of a few lines stands in for it, which is asked as the page asks.
"""

from __future__ import annotations

import json
import re

import pytest

from ste_jax.commands.usage import usage
from ste_jax.tasks.pairwise import PAIRWISE
from tests.docs import pages
from tests.endpoints.endpoint import chat, serving

PAGE = "docs/use-the-judge.md"


def test_the_page_runs_from_top_to_bottom(finished, tmp_path, monkeypatch, capfd):
    run, _ = finished
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RUN", "set again by the page")
    names: dict = {}
    with serving(lambda payload, _: chat("Five is right. [[A]]")) as endpoint:
        monkeypatch.setenv("JUDGE_URL", endpoint.url)
        for kind, block in pages.blocks(PAGE, "sh", "python"):
            if block.startswith("vllm serve"):
                continue
            block = block.replace("runs/pico", str(run.root))
            if kind == "sh":
                pages.run_shell(block)
            else:
                exec(compile(block, PAGE, "exec"), names)
    (asked,) = endpoint.asked
    assert asked["messages"] == names["turns"] and asked["temperature"] == 0
    assert "What is 2 + 3?" in asked["messages"][-1]["content"]
    printed = capfd.readouterr().out
    assert "Five is right. [[A]]" in printed and "answer a shown second" in printed
    assert printed.endswith("B\nNone\n")
    assert (tmp_path / "out/judge/ste_judge.json").exists()


def test_a_judge_with_a_start_is_asked_to_continue_it():
    names: dict = {"card": {"sampling": {"max_new_tokens": 9}}}
    (block,) = [block for _, block in pages.blocks(PAGE, "python") if "def served" in block]
    block = block[: block.index("turns = prompt(")]
    with serving(lambda payload, _: chat("[[B]]")) as endpoint:
        exec(compile(block, PAGE, "exec"), names)
        names["URL"] = endpoint.url
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "So"}]
        assert names["served"](turns) == "[[B]]"
    assert endpoint.asked[0]["continue_final_message"] is True
    assert endpoint.asked[0]["add_generation_prompt"] is False
    assert endpoint.asked[0]["max_tokens"] == 9


def test_a_served_judge_is_asked_without_a_model_here(tmp_path, monkeypatch):
    card = {
        "template": {"system": "", "user": "Q: {instruction}", "examples": [], "start": ""},
        "sampling": {"max_new_tokens": 9},
    }
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out/judge").mkdir(parents=True)
    (tmp_path / "out/judge/ste_judge.json").write_text(json.dumps(card))
    blocks = [block for _, block in pages.blocks(PAGE, "python")]
    (first,) = [block for block in blocks if "AutoTokenizer" in block]
    (second,) = [block for block in blocks if "def served" in block]
    needed = first[: first.index("def reply(")].splitlines()
    needed = [line for line in needed if not re.search("transformers|AutoTok|AutoMod", line)]
    names: dict = {}
    with serving(lambda payload, _: chat("[[A]]")) as endpoint:
        monkeypatch.setenv("JUDGE_URL", endpoint.url)
        exec(compile("\n".join([*needed, second]), PAGE, "exec"), names)
    assert endpoint.asked[0]["messages"] == [{"role": "user", "content": "Q: What is 2 + 3?"}]


def test_the_lines_for_transformers_are_those_of_the_model_card():
    assert usage("out/judge", PAIRWISE) in pages.text(PAGE)


@pytest.mark.parametrize("key", ["template", "sampling", "knobs", "template_arguments"])
def test_the_page_names_the_parts_of_the_card(key):
    from ste_jax.stages.judge_card import JudgeCard

    assert key in JudgeCard.__dataclass_fields__
    assert f"| `{key}` |" in pages.text(PAGE)
