"""Texts that say nearly the same, in scripts with and without spaces between words."""

from __future__ import annotations

import pytest

from ste_jax.stages.near_duplicates import drop_near_duplicates, jaccard, shingles, words

ALIKE = [
    (
        "请写一首关于春天的诗,要求押韵,并且不少于八行,语言要优美。",
        "请写一首关于春天的诗,要求押韵,并且不少于八行,语言要简洁。",
    ),
    (
        "東京で一番高い建物は何ですか。高さと完成した年も教えてください。",
        "東京で一番高い建物は何ですか。高さと完成した年も教えて下さい。",
    ),
    (
        "เขียนบทกวีเกี่ยวกับฤดูใบไม้ผลิให้หน่อยครับ ขอแบบสั้น ๆ",
        "เขียนบทกวีเกี่ยวกับฤดูใบไม้ผลิให้หน่อยค่ะ ขอแบบสั้น ๆ",
    ),
    (
        "how do I sort a long list of numbers in Python today",
        "how do I sort a long list of numbers in Python",
    ),
]
UNLIKE = [
    ("今天北京的天气怎么样?", "请把这句话翻译成法语。"),
    ("東京の天気を教えてください。", "この文章を要約してください。"),
    ("วันนี้อากาศเป็นอย่างไรบ้าง", "ช่วยแปลประโยคนี้เป็นภาษาอังกฤษ"),
    ("ສະບາຍດີຕອນເຊົ້າ", "ຂໍໃຫ້ໂຊກດີເດີ້"),
    ("သင်္ချာပုစ္ဆာဖြေပါ", "မြို့တစ်မြို့ကိုပြောပါ"),
    ("តើអ្នកឈ្មោះអ្វី", "សូមសរសេរកំណាព្យមួយ"),
]


@pytest.mark.parametrize(("first", "second"), ALIKE)
def test_texts_that_are_nearly_the_same(first, second):
    assert jaccard(shingles(first), shingles(second)) >= 0.7
    assert jaccard(words(first), words(second)) >= 0.75
    assert drop_near_duplicates(lambda: [("a", first), ("b", second)], 0.7) == {"b": "a"}
    assert drop_near_duplicates(lambda: [("a", first), ("b", second)], 1.0) == {}


@pytest.mark.parametrize(("first", "second"), UNLIKE)
def test_texts_that_are_not(first, second):
    assert jaccard(words(first), words(second)) < 0.25
    assert drop_near_duplicates(lambda: [("a", first), ("b", second)], 0.7) == {}


def test_words_are_words_where_there_are_spaces():
    assert words("Il a dit: «C'est l'été 2024» и всё. 한국어 문장") == {
        *("il", "a", "dit", "c", "est", "l", "été", "2024", "и", "всё", "한국어", "문장")
    }
    assert words("Python3の列表") == {"python3", "の列", "列表"}
    assert words("สวัสดี") == {"สวั", "วัส", "ัสด", "สดี"}
    assert words("好") == {"好"} and words("!?") == frozenset()
    assert shingles("!?") == {"!?"}


def test_the_same_question_after_something_else_is_another():
    texts = [("a", "Please go on with it now"), ("b", "Please go on with it now!")]
    assert drop_near_duplicates(lambda: texts, 0.7, {"a": "x", "b": "x"}) == {"b": "a"}
    assert drop_near_duplicates(lambda: texts, 0.7, {"a": "x", "b": "y"}) == {}
    assert drop_near_duplicates(lambda: texts, 0.7, {"b": "y"}) == {}
