"""A bigger model behind an endpoint labels the pool, makes the pairs and draws the first judgments,
as in the paper; our own model learns from them and goes on."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from etils import epath

from ste_jax.cli import main
from ste_jax.pipeline.units import make_examples
from ste_jax.reporting.funnel import check_sums, funnel
from ste_jax.run.layout import RunDir
from ste_jax.tokenization.load import load_tokenizer
from tests import tiny
from tests.endpoints.endpoint import Answer, Endpoint, chat, serving
from tests.reports import REPORTS


def answer(payload: dict[str, Any], _: int) -> Answer:
    """The bigger model, in the words of the tiny one. It finds out the role by the prompt."""
    draw = random.Random(payload["seed"])
    messages = payload["messages"]
    words = lambda: " " + " ".join(draw.sample(tiny.WORDS, 4))  # noqa: E731
    begun = messages[-1]["content"] if messages[-1]["role"] == "assistant" else ""
    if begun.startswith(" Category:"):
        return chat(f" {draw.choice(tiny.CATEGORIES)}")
    if "[Modified Instruction]" in begun:
        return chat(f"{words()}\n[Response]\n{words()}")
    if is_judging(payload):
        return chat(f"{words()} [[{draw.choice('AB')}]]")
    return chat(words())


def is_judging(payload: dict[str, Any]) -> bool:
    last = payload["messages"][-1]
    return last["role"] == "user" and last["content"].count("\n") == 2


def config_of(root: Path, endpoint: Endpoint, **changes: Any) -> Path:
    values = tiny.config(
        root,
        endpoints={"big": {"url": endpoint.url, "model": "big-one", "retries": 1}},
        select__generator="big",
        pair__generator="big",
        annotate__generator={1: "big"},
        judge__force_verdict=False,
        select__train=80,
        select__heldout=30,
        **changes,
    )
    path = root / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.usefixtures("one_device")
def test_a_bigger_model_begins_and_our_own_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = str(tmp_path / "run")
    judged: list[int] = []

    def gone(payload: dict[str, Any], number: int) -> Answer:
        """The key expires in the midst of the judgments."""
        if is_judging(payload):
            judged.append(number)
        return (401, "expired", {}) if len(judged) > 90 else answer(payload, number)

    with serving(gone) as endpoint:
        assert main(["run", str(config_of(tmp_path, endpoint)), "--dir", where]) == 2
    assert "model big-one: the key is refused" in capsys.readouterr().err
    run = RunDir(epath.Path(where))
    assert run.pairs.complete() and not run.iteration(1).judgments.complete()

    # Elsewhere, it is the same model.
    with serving(answer) as endpoint:
        config = str(config_of(tmp_path, endpoint))
        assert main(["run", config, "--dir", where]) == 0
        asked = list(endpoint.asked)
        assert main(["run", config, "--dir", where]) == 0
        assert len(endpoint.asked) == len(asked), "what is done is asked for again"
    assert {each["model"] for each in asked} == {"big-one"}
    begun = [each["messages"][-1]["content"] for each in asked]
    assert not any(" Category:" in text or "[Modified" in text for text in begun)

    check_sums(funnel(run, REPORTS), REPORTS)
    first, second = run.iteration(1), run.iteration(2)
    assert {row.judge for row in first.judgments.rows()} == {"endpoint/big-one"}
    assert all(row.token_ids == () for row in first.judgments.rows())
    assert not any(row.judge.startswith("endpoint") for row in second.judgments.rows())
    # The held-out pairs are judged by the run's own judges, and what is trained on is a text.
    assert not any(row.judge.startswith("endpoint") for row in first.heldout.judgments.rows())
    rows = list(first.training.rows())
    assert len(rows) >= 10 and all(row.completion_ids == () for row in rows)
    tokenizer = load_tokenizer(tmp_path / "model")
    for row, example in zip(rows, make_examples(rows, tokenizer), strict=True):
        ids = list(example.completion_ids)
        assert ids[-1] in tokenizer.eos_ids
        assert tokenizer.decode(ids[:-1]) == row.completion
        assert list(example.prompt_ids) == tokenizer.prompt_ids(row.messages)
    assert run.iteration(2).evaluation.exists()

    # Another model is another judge, and nothing but its judgments is asked for again.
    values = yaml.safe_load(Path(config).read_text())
    with serving(answer) as endpoint:
        values["endpoints"]["big"] |= {"url": endpoint.url, "model": "bigger"}
        values["select"]["generator"] = values["pair"]["generator"] = "other"
        values["endpoints"]["other"] = values["endpoints"]["big"] | {"model": "big-one"}
        Path(config).write_text(yaml.safe_dump(values))
        assert main(["run", config, "--dir", where, "--yes"]) == 0
    assert {each["model"] for each in endpoint.asked} == {"bigger"}
    assert all(is_judging(each) for each in endpoint.asked) and endpoint.asked
    assert {row.judge for row in first.judgments.rows()} == {"endpoint/bigger"}
