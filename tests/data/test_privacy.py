"""Redaction: each kind in English and next to Chinese characters, and texts that must be left alone."""

import pytest

from tutelage.data.privacy import redact


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("write to zhang.san+x@mail.example.com.", "write to [EMAIL]."),
        ("邮箱zhang.san@example.com联系我", "邮箱[EMAIL]联系我"),
        ("邮箱ｚｈａｎｇ＠ｅｘａｍｐｌｅ．ｃｏｍ联系我", "邮箱[EMAIL]联系我"),
        ("call (808) 782-1557 ok", "call [PHONE] ok"),
        ("808.782.1557", "[PHONE]"),
        ("+44 20 7946 0958", "[PHONE]"),
        ("电话13800138000谢谢", "电话[PHONE]谢谢"),
        ("电话１３８００１３８０００谢谢", "电话[PHONE]谢谢"),
        ("打+86 138-0013-8000", "打[PHONE]"),
        ("请打010-62345678找我", "请打[PHONE]找我"),
        ("see https://example.org/a?b=c#d, then", "see [URL], then"),
        ("看www.example.com吧", "看[URL]吧"),
        ("看http://example.com/路", "看[URL]路"),
        ("go to pottermore.com!", "go to [URL]!"),
        ("http://me:secret@example.com/x", "[URL]"),
        ("a@b.co and a@b.co", "[EMAIL] and [EMAIL]"),
    ],
)
def test_found(text: str, redacted: str):
    assert redact(text)[0] == redacted


@pytest.mark.parametrize(
    "text",
    [
        "D'awww. that's awful",
        "I was there 2012-2013.",
        "3 6 9 12",
        "4 8 15 16 23 42",
        "3.141592653589793",
        "it costs 1,000,000 dollars",
        "well...ok",
        "Yes.No.Maybe",
        "我有12345个苹果",
        "order X13800138000Y",
        "2018-10-15 07:22",
        "@home at 5",
    ],
)
def test_left_alone(text: str):
    assert redact(text) == (text, {})


def test_counts_and_a_second_pass():
    text, counts = redact("a@b.co, c@d.org, 13800138000, www.example.com")
    assert text == "[EMAIL], [EMAIL], [PHONE], [URL]"
    assert counts == {"email": 2, "phone": 1, "url": 1}
    assert redact(text) == (text, {})
