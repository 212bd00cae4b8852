"""A key is found in whatever holds it, and words that are none are not."""

from __future__ import annotations

import base64
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ste_jax.endpoints.secret import HIDDEN, Secret


def test_a_short_key_is_found_as_a_word() -> None:
    assert Secret("s3cret").hide("say s3cret, not s3crets") == f"say {HIDDEN}, not s3crets"


@pytest.mark.parametrize("key", ["x", "1", "abc", "test", "ollama", "lm-studio", "not-needed"])
def test_what_people_set_where_no_key_is_asked_for_costs_no_answer(key: str) -> None:
    assert not Secret(key).is_in(f"Let {key} = 3; then {key} is the answer.")


@settings(max_examples=100, derandomize=True, deadline=None)
@given(
    key=st.text("abcdefghijKLMNOPQ0123456789-_+/=", min_size=16, max_size=60),
    before=st.text(max_size=20),
    after=st.text(max_size=20),
)
def test_a_key_is_found_anywhere(key: str, before: str, after: str) -> None:
    secret = Secret(key)
    basic = base64.b64encode(f"{before}{key}{after}".encode("utf-8", "replace")).decode()
    for echo in (key, quote(key, safe=""), basic):
        text = f"{before} {echo} {after}"
        assert secret.is_in(text)
        assert echo not in secret.hide(text)
    assert secret.hide("Nothing of the kind stands here.") == "Nothing of the kind stands here."
