"""Does a model behind an endpoint answer a stage as our own engine does, also when it falters?"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from ste_jax.config.schema import EndpointKnobs, JudgeKnobs, RoleKnobs, SamplingKnobs
from ste_jax.endpoints import openai
from ste_jax.endpoints.openai import OpenAIGenerator
from ste_jax.generation import Completion, Request, Sampling, ScoreRequest
from ste_jax.records import Pair
from ste_jax.stages.judge import Judge, judge_all
from ste_jax.stages.roles import make_role
from ste_jax.system.errors import RequestError, WorkError
from ste_jax.tasks import PAIRWISE
from tests.endpoints.endpoint import Answer, Endpoint, chat, serving


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai, "_FIRST_PAUSE", 0.01)


def knobs(endpoint: Endpoint, **changes: Any) -> EndpointKnobs:
    return EndpointKnobs(**{"url": endpoint.url, "model": "big", "timeout": 20.0, **changes})


def request(id: str, text: str = "Hi", samples: tuple[int, ...] = (0,), **more: Any) -> Request:
    sampling = Sampling(**{"max_new_tokens": 9, "temperature": 0.7, **more.pop("sampling", {})})
    messages = [{"role": "user", "content": text}]
    return Request(id=id, messages=messages, sampling=sampling, samples=samples, **more)  # type: ignore[arg-type]


def collect(generator: OpenAIGenerator) -> dict[tuple[str, int], Completion]:
    return {(one.request_id, one.sample): one for one in generator.completions()}


def test_each_sample_is_asked_as_the_protocol_says() -> None:
    with serving(lambda payload, _: chat(payload["messages"][-1]["content"].upper())) as endpoint:
        generator = OpenAIGenerator(knobs(endpoint))
        generator.submit(request("a", "one", (0, 1), key=5))
        more = {"top_k": 4, "min_p": 0.1, "top_p": 0.9, "stop": ("]]",), "ignore_eos": True}
        generator.submit(request("b", "two", sampling=more, continue_text="It is [["))
        found = collect(generator)
    assert {key: one.text for key, one in found.items()} == {
        ("a", 0): "ONE",
        ("a", 1): "ONE",
        ("b", 0): "IT IS [[",
    }
    assert all(one.finish_reason == "stop" and not one.token_ids for one in found.values())
    by_text = {each["messages"][0]["content"]: each for each in endpoint.asked}
    seeds = [each["seed"] for each in endpoint.asked]
    assert len(set(seeds)) == 3 and all(0 <= seed < 2**31 for seed in seeds)
    plain, full = by_text["one"], by_text["two"]
    del plain["seed"], full["seed"]
    assert plain == {
        "model": "big",
        "messages": [{"role": "user", "content": "one"}],
        "max_tokens": 9,
        "temperature": 0.7,
        "top_p": 1.0,
    }
    assert full == plain | {
        "messages": [
            {"role": "user", "content": "two"},
            {"role": "assistant", "content": "It is [["},
        ],
        "top_p": 0.9,
        "top_k": 4,
        "min_p": 0.1,
        "ignore_eos": True,
        "stop": ["]]"],
        "add_generation_prompt": False,
        "continue_final_message": True,
    }
    assert set(endpoint.paths) == {"/v1/chat/completions"}
    usage = generator.usage
    assert (usage.requests, usage.samples, usage.prompt_tokens) == (2, 3, 21)
    assert (usage.cached_prompt_tokens, usage.new_tokens) == (15, 9)
    assert usage.seconds > 0


def test_the_same_sample_has_the_same_seed_again() -> None:
    with serving(lambda payload, _: chat(str(payload["seed"]))) as endpoint:
        answers = []
        for order in (("a", "b"), ("b", "a")):
            generator = OpenAIGenerator(knobs(endpoint))
            for id in order:
                generator.submit(request(id, samples=(3,)))
            answers.append({key: one.text for key, one in collect(generator).items()})
    assert answers[0] == answers[1]


def test_what_fails_for_a_moment_is_tried_again() -> None:
    faults: list[Answer] = [
        (429, {"error": "slow down"}, {"Retry-After": "0.02"}),
        (503, "starting", {}),
        (0, "", {}),
        (500, "", {"Retry-After": "Fri, 27 Nov 2026 00:00:00 GMT"}),
        (529, "overloaded", {}),
        (200, {"error": {"code": 502, "message": "the provider went away"}}, {}),
    ]
    with serving(lambda _, number: faults[number] if number < 6 else chat("ok")) as endpoint:
        generator = OpenAIGenerator(knobs(endpoint))
        generator.submit(request("a"))
        assert collect(generator)["a", 0].text == "ok"
    assert len(endpoint.asked) == 7


def test_a_row_that_is_refused_fails_alone() -> None:
    answers = {
        "long": (400, {"error": {"message": "maximum context length is 4096"}}, {}),
        "filtered": chat("", "content_filter"),
        "html": (200, "<html>", {}),
        "list": (200, [1], {}),
        "empty": (200, {"choices": []}, {}),
        "good": chat("yes", "length"),
    }
    with serving(lambda payload, _: answers[payload["messages"][0]["content"]]) as endpoint:
        generator = OpenAIGenerator(knobs(endpoint))
        for name in answers:
            generator.submit(request(name, name))
        found = {key[0]: one for key, one in collect(generator).items()}
    assert found.pop("good").finish_reason == "length"
    assert all(one.finish_reason == "error" and not one.text for one in found.values())
    assert "status 400" in found["long"].error and "4096" in found["long"].error
    assert [id for id, one in found.items() if one.too_long] == ["long"]
    assert "content_filter" in found["filtered"].error
    assert "not JSON" in found["html"].error
    assert "no chat completion" in found["list"].error and "no chat" in found["empty"].error


def test_an_endpoint_that_stays_away_ends_the_work() -> None:
    with serving(lambda *_: (503, "loading", {})) as endpoint:
        generator = OpenAIGenerator(knobs(endpoint, retries=2))
        for name in "abc":
            generator.submit(request(name))
        with pytest.raises(WorkError, match=r"did not answer in 3 tries; the last: status 503"):
            collect(generator)
    gone = OpenAIGenerator(knobs(endpoint, retries=1))
    gone.submit(request("a"))
    with pytest.raises(WorkError, match=r"in 2 tries; the last: ConnectionError.*run again"):
        collect(gone)


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "the key is refused"),
        (402, "no credit is left; add some"),
        (404, "no such address or model"),
        (307, "not as configured .*https://elsewhere"),
    ],
)
def test_an_endpoint_that_refuses_all_ends_the_work(status: int, said: str) -> None:
    headers = {"Location": "https://elsewhere/v1"} if status == 307 else {}
    with serving(lambda *_: (status, {"error": "no"}, headers)) as endpoint:
        generator = OpenAIGenerator(knobs(endpoint))
        generator.submit(request("a"))
        with pytest.raises(RequestError, match=rf"model big: .*{said}"):
            collect(generator)
    assert len(endpoint.asked) == 1


def test_refusals_are_no_rows_fault_until_one_is_answered() -> None:
    refuse = (400, "unknown argument max_tokens", {})
    with serving(lambda *_: refuse) as endpoint:
        for concurrency, rows in ((2, 9), (32, 3)):
            generator = OpenAIGenerator(knobs(endpoint, concurrency=concurrency))
            for row in range(rows):
                generator.submit(request(str(row)))
            said = rf"not one of the first {min(concurrency, rows)} .*unknown argument max_tokens"
            with pytest.raises(RequestError, match=said):
                collect(generator)


def test_a_stop_is_heeded_while_an_answer_is_awaited() -> None:
    hang = threading.Event()

    def stop() -> None:
        raise KeyboardInterrupt

    def slow(*_: Any) -> Answer:
        hang.wait(30)
        return chat("late")

    with serving(slow) as endpoint:
        generator = OpenAIGenerator(knobs(endpoint), stop)
        generator.submit(request("a"))
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            collect(generator)
        assert time.monotonic() - began < 20
        hang.set()


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(lambda *_: chat("ok")) as endpoint:
        with pytest.raises(RequestError, match="the environment variable SOME_KEY is to hold"):
            OpenAIGenerator(knobs(endpoint, key_variable="SOME_KEY"))
        monkeypatch.setenv("SOME_KEY", "a\nb")
        with pytest.raises(RequestError, match="the environment variable SOME_KEY") as said:
            OpenAIGenerator(knobs(endpoint, key_variable="SOME_KEY"))
        assert "a\nb" not in str(said.value)
        monkeypatch.setenv("SOME_KEY", "secret\n")
        for variable in ("SOME_KEY", ""):
            generator = OpenAIGenerator(knobs(endpoint, key_variable=variable))
            generator.submit(request("a"))
            collect(generator)
    assert [each.get("Authorization") for each in endpoint.headers] == ["Bearer secret", None]


def test_so_many_at_once_and_no_more() -> None:
    together = threading.Barrier(4, timeout=20)

    def answer(*_: Any) -> Answer:
        together.wait()  # passes only when four are under way
        time.sleep(0.02)
        return chat("ok")

    before = set(threading.enumerate())
    with serving(answer) as endpoint:
        generator = OpenAIGenerator(knobs(endpoint, concurrency=4))
        generator.submit(request("a", samples=tuple(range(12))))
        assert len(collect(generator)) == 12
    assert endpoint.at_once == 4
    generator.close()
    deadline = time.monotonic() + 20
    while any(one.name == "endpoint" for one in set(threading.enumerate()) - before):
        assert time.monotonic() < deadline, "the workers stay"
        time.sleep(0.01)


def test_an_answer_under_way_keeps_no_process_from_its_end() -> None:
    hang = threading.Event()

    def answer(*_: Any) -> Answer:
        hang.wait(60)
        return chat("late")

    code = (
        "import sys; from ste_jax.config.schema import EndpointKnobs; "
        "from ste_jax.endpoints.openai import OpenAIGenerator; "
        "from ste_jax.generation import Request, Sampling; "
        "import time; one = OpenAIGenerator(EndpointKnobs(url=sys.argv[1], model='m')); "
        "one.submit(Request(id='a', messages=[], sampling=Sampling(max_new_tokens=1))); "
        "time.sleep(1); one.close()"
    )
    with serving(answer) as endpoint:
        done = subprocess.run([sys.executable, "-c", code, endpoint.url], timeout=30, check=False)
        hang.set()
    assert done.returncode == 0 and len(endpoint.asked) == 1


def test_samples_may_be_asked_for_while_others_come() -> None:
    with serving(lambda *_: chat("ok")) as endpoint:
        generator = OpenAIGenerator(knobs(endpoint))
        generator.submit(request("0"))
        seen = []
        for completion in generator.completions():
            seen.append(completion.request_id)
            generator.release(completion.request_id)
            if len(seen) < 3:
                generator.submit(request(str(len(seen))))
    assert seen == ["0", "1", "2"]


def test_it_judges_pairs_and_can_be_made_to_choose() -> None:
    def answer(payload: dict[str, Any], _: int) -> Answer:
        last = payload["messages"][-1]
        if last["role"] == "assistant":  # the verdict is forced
            return chat("A", "stop", stop_reason="]]")
        first = payload["messages"][-1]["content"].find("good")
        second = payload["messages"][-1]["content"].find("bad")
        return chat("I cannot say") if first < second else chat("Reasons. [[B]]")

    pair = Pair(
        id="p",
        instruction_id="i",
        messages=({"role": "user", "content": "Which?"},),
        chosen="good",
        rejected="bad",
        modified_instruction="",
        source="test",
    )
    role = make_role(
        "judge", RoleKnobs(template="judge", sampling=SamplingKnobs()), seed=0, task=PAIRWISE
    )
    judge = Judge(role=role, knobs=JudgeKnobs(force_verdict=True), model="big", iteration=0)
    with serving(answer) as endpoint:
        generator = OpenAIGenerator(knobs(endpoint))
        prompts = PAIRWISE.prompts(pair, role.template)
        found = {
            each.prompts[0].order: one
            for each, (one,) in judge_all(PAIRWISE.questions(prompts), generator, judge, 1)
        }
    assert (found["ab"].verdict, found["ab"].forced) == ("A", True)
    assert found["ab"].text.endswith("I cannot say\n\nFinal verdict: [[A]]")
    assert (found["ba"].verdict, found["ba"].forced) == ("B", False)
    assert all(one.token_ids == () for one in found.values())
    assert all(prompt.label == found[prompt.order].verdict for prompt in prompts)


def test_it_cannot_score() -> None:
    generator = OpenAIGenerator(EndpointKnobs(url="http://nowhere/v1", model="big"))
    with pytest.raises(RequestError, match="cannot score"):
        list(generator.score([ScoreRequest(id="a", messages=[], completions=["x"])]))
    assert not generator.can_score
