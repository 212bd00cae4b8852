"""An odd answer costs its row and no other."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st

from ste_jax.config.schema import EndpointKnobs, JudgeKnobs, RoleKnobs, SamplingKnobs
from ste_jax.endpoints import openai
from ste_jax.endpoints.answers import UnreadableAnswer, read_answer, read_body
from ste_jax.endpoints.openai import OpenAIGenerator
from ste_jax.records import Instruction, Judgment, instruction_id, make_pair
from ste_jax.run.tables import Table
from ste_jax.stages.judge import Judge, judge_all
from ste_jax.stages.roles import make_role
from ste_jax.system.errors import RequestError, WorkError
from ste_jax.tasks import PAIRWISE
from tests.endpoints.asking import HEAD, ask, by_row, message, request, sending
from tests.endpoints.endpoint import Answer, chat, serving


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai, "_FIRST_PAUSE", 0.001)


def usage(of: Any) -> Answer:
    status, body, headers = chat("fine")
    return status, {**body, "usage": of}, headers


def counted(text: str, reason: Any, tokens: int) -> Answer:
    """Of the 9 tokens that are asked for."""
    status, body, headers = message(text, reason)
    return status, {**body, "usage": {"completion_tokens": tokens}}, headers


def nested(levels: int) -> Any:
    """What JSON can still be read of."""
    found: Any = "x"
    for _ in range(levels):
        found = [found]
    return found


DEEP = b'{"choices": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
ODD: dict[str, tuple[Answer, str]] = {
    "surrogate": (chat("Nice \ud83d. [[A]]"), "half of a surrogate pair"),
    "deep": ((200, DEEP, {}), "too many levels"),
    "filtered": (chat("x", "content_filter"), "'content_filter'"),
    "no reason": (message("x", None), "ended the answer by None"),
    "empty reason": (message("x", ""), "give finish_reason, or usage.completion_tokens"),
    "no reason, no text": (counted("", None, 3), "ended the answer by None"),
    "deep thoughts": (message("x", reasoning=nested(900)), "too many levels"),
    "reasons": (message("x", ["stop"]), "ended the answer by ['stop']"),
    "refusal": (message(None, refusal="I will not"), "refuses: I will not"),
    "tool": (message(None, tool_calls=[{"id": 1}]), "calls a tool"),
    "image": (message([{"type": "image_url", "image_url": "x"}]), "'image_url'"),
    "number": (message(5), "a int, not a text"),
    "group": (message({"text": "[[A]]"}), "a dict, not a text"),
    "bare part": (message([{"type": "text", "text": ["a"]}]), "no text"),
    "two": ((200, {"choices": [{}, {}]}, {}), "no chat completion"),
    "text": ((200, "[[A]]", {}), "not JSON"),
    "bytes": ((200, b'{"choices": "\xff"}', {}), "not JSON"),
    "digits": ((200, b'{"usage": ' + b"9" * 5000 + b"}", {}), "not JSON"),
    "stream": ((200, 'data: {"choices": []}\n\n', {}), "not JSON"),
    "nothing": ((204, "", {}), "not JSON"),
    "packed": ((200, b"\x00garbage", {"Content-Encoding": "gzip"}), "cannot be unpacked"),
    "own code": ((200, {"error": {"code": 1001, "message": "no"}}, {}), "no chat completion"),
    "code true": ((200, {"error": {"code": True}}, {}), "no chat completion"),
    "half error": ((400, {"error": {"message": "bad \ud800 text"}}, {}), "status 400"),
}
READ: dict[str, tuple[Answer, str, str, str]] = {
    "parts": (
        message(
            [
                {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
                {"type": "text", "text": "[["},
                "B]]",
            ]
        ),
        "[[B]]", "stop", "hm",
    ),
    "no reason, counted": (counted("[[B]]", None, 8), "[[B]]", "stop", ""),
    "empty reason, counted": (counted("[[B]]", "", 8), "[[B]]", "stop", ""),
    "no reason, as many as asked": (counted("so", None, 9), "so", "length", ""),
    "eos": (chat("[[B]]", "eos_token"), "[[B]]", "stop", ""),
    "end": (chat("[[B]]", "end_turn"), "[[B]]", "stop", ""),
    "STOP": (chat("[[B]]", "STOP"), "[[B]]", "stop", ""),
    "MAX_TOKENS": (chat("so", "MAX_TOKENS"), "so", "length", ""),
    "model_length": (chat("so", "model_length"), "so", "length", ""),
    "null": (message(None), "", "stop", ""),
    "cut thoughts": (message(None, "length", reasoning_content="I th"), "", "length", "I th"),
    "thoughts": (message("[[B]]", reasoning="because \ud83d"), "[[B]]", "stop", "because ?"),
    "list thoughts": (
        message("x", reasoning=[{"type": "text", "text": "a"}, "b"]), "x", "stop", "ab",
    ),
    "odd thoughts": (message("x", reasoning_content=7), "x", "stop", ""),
    "nul": (chat("a \x00 b"), "a \x00 b", "stop", ""),
    "stop id": (chat("x", "stop", stop_reason=[1], matched_stop={}), "x", "stop", ""),
    "bom": ((200, b"\xef\xbb\xbf" + json.dumps(chat("x")[1]).encode(), {}), "x", "stop", ""),
    "created": ((201, chat("x")[1], {}), "x", "stop", ""),
    "usage list": (usage([1]), "fine", "stop", ""),
    "usage text": (usage({"prompt_tokens": "7", "completion_tokens": None}), "fine", "stop", ""),
    "usage nan": (usage({"prompt_tokens": float("nan")}), "fine", "stop", ""),
    "usage inf": (usage({"prompt_tokens": float("inf")}), "fine", "stop", ""),
    "usage big": (usage({"prompt_tokens": 10**30, "completion_tokens": -4}), "fine", "stop", ""),
    "usage deep": (usage({"prompt_tokens_details": [7]}), "fine", "stop", ""),
    "usage true": (usage({"prompt_tokens": True}), "fine", "stop", ""),
}  # fmt: skip


def test_what_is_odd_fails_alone_and_what_can_be_read_is_read() -> None:
    answers = {name: answer for name, (answer, _) in ODD.items()}
    answers |= {name: each[0] for name, each in READ.items()}
    with serving(by_row(answers)) as endpoint:
        found = ask(endpoint.url, *answers, "good")
    assert found["good"].text == "[[A]]"
    for name, (_, told) in ODD.items():
        row = found[name]
        assert (row.finish_reason, row.text) == ("error", ""), name
        assert told in row.error, (name, row.error)
        row.error.encode()  # it is kept in a table
    for name, (_, text, reason, thoughts) in READ.items():
        row = found[name]
        assert (row.text, row.finish_reason, row.thoughts) == (text, reason, thoughts), name


def test_odd_usage_counts_as_none() -> None:
    answers = {name: each[0] for name, each in READ.items() if name.startswith("usage")}
    with serving(by_row(answers)) as endpoint:
        generator = OpenAIGenerator(EndpointKnobs(url=endpoint.url, model="m"))
        for name in answers:
            generator.submit(request(name, name))
        assert len(list(generator.completions())) == len(answers)
    used = generator.usage
    assert (used.prompt_tokens, used.cached_prompt_tokens, used.new_tokens) == (0, 0, 0)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "text", "thinking", "content", "code", "role"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(
    content=JSON,
    reason=JSON,
    reasoning=JSON,
    usage=JSON,
    details=JSON,
    stop=JSON,
    odd=st.booleans(),
)
def test_any_answer_is_read_or_odd(
    content: Any, reason: Any, reasoning: Any, usage: Any, details: Any, stop: Any, odd: bool
) -> None:
    choice = {
        "message": {"content": content, "reasoning_content": reasoning},
        "finish_reason": reason if odd else "stop",
        "stop_reason": stop,
    }
    counted = {"prompt_tokens": usage, "prompt_tokens_details": details}
    body = json.dumps({"choices": [choice], "usage": usage if odd else counted}).encode()
    try:
        found = read_answer(read_body(body), body)
    except UnreadableAnswer as error:
        assert str(error)
        return
    for text in (found.text, found.thoughts, found.stopped):
        text.encode()
    assert found.reason in ("stop", "length")
    assert all(type(n) is int and n >= 0 for n in (found.prompt_tokens, found.cached_tokens))


def test_judgments_are_written_whatever_one_answer_is(tmp_path: Any) -> None:
    role = make_role(
        "judge",
        RoleKnobs(template="judge", sampling=SamplingKnobs(max_new_tokens=64)),
        seed=0,
        task=PAIRWISE,
    )
    judge = Judge(role=role, knobs=JudgeKnobs(), model="m", iteration=1)
    prompts = []
    for number in range(6):
        turns = ({"role": "user", "content": f"Add {number} and 1."},)
        row = Instruction(id=instruction_id(turns), messages=turns, source="x")  # type: ignore[arg-type]
        pair = make_pair(row, chosen="2", rejected="9", modified_instruction="", source="x")
        prompts += PAIRWISE.prompts(pair, role.template)
    odd = {0: chat("\ud83d [[A]]"), 7: message([{"type": "text", "text": "[[B]]"}])}
    with serving(lambda _, number: odd.get(number, chat("[[A]]"))) as endpoint:
        # one at a time, so that the very first answer is an odd one
        knobs = EndpointKnobs(url=endpoint.url, model="m", concurrency=1)
        generator = OpenAIGenerator(knobs)
        told = judge_all(PAIRWISE.questions(prompts), generator, judge, 1)
        judgments = [each for _, found in told for each in found]
    table = Table(epath.Path(tmp_path) / "judgments", Judgment, 1)
    table.write(0, judgments)
    verdicts = [(row.verdict, row.failure) for row in table.read(0)]
    assert len(verdicts) == 12
    assert verdicts.count(("A", None)) == 10
    assert verdicts.count(("B", None)) == 1 and verdicts.count((None, "error")) == 1


def test_the_last_row_may_be_the_odd_one() -> None:
    """A run that is resumed may have nothing left to ask but what is refused."""
    refused = (400, {"error": {"message": "maximum context length is 4096"}}, {})
    with serving(by_row({"long": refused})) as endpoint:
        found = ask(endpoint.url, "long")
    assert list(found) == ["long"] and "4096" in found["long"].error
    assert len(endpoint.asked) == 2, "a harmless request tells whose fault it is"


def test_a_request_that_the_server_always_breaks_on_fails_alone() -> None:
    answers: dict[str, Answer] = {"poison": (500, "internal", {}), "hang up": (0, "", {})}
    with serving(by_row(answers)) as endpoint:
        found = ask(endpoint.url, "poison", "hang up", "good", "fine")
        assert {name for name, row in found.items() if row.error} == {"poison", "hang up"}
        assert "each time (status 500: internal)" in found["poison"].error
        # also where nothing else is left to ask
        assert "each time" in ask(endpoint.url, "poison")["poison"].error
    with serving(lambda *_: (500, "internal", {})) as endpoint, pytest.raises(WorkError) as told:
        ask(endpoint.url, "a", "b")
    assert "did not answer in 2 tries" in str(told.value)


# ---------------------------------------------------------------------------------------------
# Fields that servers differ in


def asked_with(**knobs: Any) -> dict[str, Any]:
    with serving(lambda *_: chat("ok")) as endpoint:
        generator = OpenAIGenerator(EndpointKnobs(url=endpoint.url, model="m", **knobs))
        generator.submit(request("a", template_arguments={"enable_thinking": False}))
        assert [each.text for each in generator.completions()] == ["ok"]
    return endpoint.asked[0]


def test_fields_are_sent_as_the_knobs_say() -> None:
    plain = asked_with()
    assert plain["max_tokens"] == 9 and plain["seed"] >= 0
    assert plain["chat_template_kwargs"] == {"enable_thinking": False}
    other = asked_with(
        length_field="max_completion_tokens",
        leave_out=("seed", "temperature", "top_p", "chat_template_kwargs"),
    )
    assert set(other) == {"model", "messages", "max_completion_tokens"}
    assert other["max_completion_tokens"] == 9


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("Unrecognized request argument supplied: chat_template_kwargs",
         "leave_out: [chat_template_kwargs]"),
        ("Unsupported value: 'temperature' does not support 0.7", "leave_out: [temperature]"),
        ("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.",
         "length_field to max_completion_tokens"),
    ],
)  # fmt: skip
def test_a_field_that_is_refused_is_named_with_the_remedy(said: str, remedy: str) -> None:
    with serving(lambda *_: (400, {"error": {"message": said}}, {})) as endpoint:
        generator = OpenAIGenerator(EndpointKnobs(url=endpoint.url, model="m"))
        generator.submit(request("a", template_arguments={"enable_thinking": False}))
        with pytest.raises(RequestError) as told:
            list(generator.completions())
    assert remedy in str(told.value)


# ---------------------------------------------------------------------------------------------
# Bounds


def trickle(start: bytes) -> Callable[[socket.socket], None]:
    def pieces(connection: socket.socket) -> None:
        connection.sendall(start)
        for _ in range(400):
            connection.sendall(b" ")
            time.sleep(0.05)

    return pieces


@pytest.mark.parametrize("start", [HEAD + b"\r\n", HEAD + b"X-Slow: "], ids=["body", "header"])
def test_a_byte_now_and_then_is_no_answer(start: bytes) -> None:
    with sending(trickle(start)) as url:
        began = time.monotonic()
        with pytest.raises(RequestError, match=r"no whole answer came within 0\.5 s"):
            ask(url, "slow", deadline=0.5)
        assert time.monotonic() - began < 10


def test_an_answer_without_end_is_cut_off() -> None:
    def flood(connection: socket.socket) -> None:
        connection.sendall(HEAD + b"\r\n")
        while True:
            connection.sendall(b" " * 65536)

    with sending(flood) as url, pytest.raises(RequestError, match="more than 200000 bytes"):
        ask(url, "big", max_bytes=200_000)
    body = json.dumps(chat("x" * 5000)[1])
    with serving(by_row({"big": (200, body, {})})) as endpoint:
        found = ask(endpoint.url, "big", "good", max_bytes=4000)
    assert "more than 4000 bytes" in found["big"].error and found["good"].text == "[[A]]"


def test_an_endpoint_whose_answers_are_all_too_deep_ends_the_work() -> None:
    """Also where it is only asked whether it lives."""
    deep = message("x", reasoning=nested(900))
    fails = lambda payload, _: (500, "no", {}) if payload["messages"][0]["content"] == "a" else deep  # noqa: E731
    with serving(fails) as endpoint, pytest.raises(WorkError, match="did not answer in 2 tries"):
        ask(endpoint.url, "a")
