"""Redaction: each kind in English and next to Chinese characters, and texts that must be left alone.

The cases are labelled by hand. The identity number is the example of GB 11643-1999; the card numbers are those that
payment processors publish for tests, and one of UnionPay's form with its Luhn digit worked out by hand.
"""

from itertools import product

import pytest

from tutelage.data.privacy import redact


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("write to zhang.san+x@mail.example.com.", "write to [EMAIL]."),
        ("邮箱zhang.san@example.com联系我", "邮箱[EMAIL]联系我"),
        ("邮箱ｚｈａｎｇ＠ｅｘａｍｐｌｅ．ｃｏｍ联系我", "邮箱[EMAIL]联系我"),
        ("zhang@example.com13800138000", "[EMAIL][PHONE]"),
        ("see https://example.org/a?b=c#d, then", "see [URL], then"),
        ("看www.example.com吧", "看[URL]吧"),
        ("看http://example.com/路", "看[URL]路"),
        ("go to pottermore.com!", "go to [URL]!"),
        ("http://me:secret@example.com/x", "[URL]"),
        ("a@b.co and a@b.co", "[EMAIL] and [EMAIL]"),
        ("服务器10.20.30.40挂了", "服务器[IP]挂了"),
        ("ssh to 203.0.113.9:22", "ssh to [IP]:22"),
        ("地址2001:db8:85a3::8a2e:370:7334吧", "地址[IP]吧"),
        ("身份证11010519491231002X有效", "身份证[ID]有效"),
        ("id 110105 19491231 002x", "id [ID]"),
        ("卡号4111111111111111吗", "卡号[CARD]吗"),
        ("my card is 3782 822463 10005.", "my card is [CARD]."),
        ("银行卡6222 0200 0000 0000 000，谢谢", "银行卡[CARD]，谢谢"),
    ],
)
def test_found(text: str, redacted: str) -> None:
    assert redact(text)[0] == redacted


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("call (808) 782-1557 ok", "call [PHONE] ok"),
        ("808.782.1557", "[PHONE]"),
        ("call me at 8087821557 please", "call me at [PHONE] please"),
        ("Tel8087821557", "Tel[PHONE]"),
        ("tel+14155552671", "tel[PHONE]"),
        ("+1 (415) 555-2671 ext. 12", "[PHONE]"),
        ("+44 20 7946 0958", "[PHONE]"),
        ("+8613800138000", "[PHONE]"),
        ("(+86)13800138000", "[PHONE]"),
        ("（86）13800138000", "[PHONE]"),
        ("008613800138000", "[PHONE]"),
        ("0086 138 0013 8000", "[PHONE]"),
        ("打+86 138-0013-8000", "打[PHONE]"),
        ("￥13800138000", "￥[PHONE]"),
        ("138.0013.8000", "[PHONE]"),
        ("1380 0138 000", "[PHONE]"),
        ("１３８　００１３　８０００", "[PHONE]"),
        ("138－0013–8000", "[PHONE]"),
        ("138\u200b0013\u200b8000", "[PHONE]"),
        ("电话１３８００１３８０００谢谢", "电话[PHONE]谢谢"),
        ("ＴＥＬ１３８００１３８０００", "ＴＥＬ[PHONE]"),
        ("微信号wx_13800138000", "微信号wx_[PHONE]"),
        ("13800138000 Ms Wang", "[PHONE] Ms Wang"),
        ("Tel13800138000ok", "Tel[PHONE]ok"),
        ("13800138000、13900139000", "[PHONE]、[PHONE]"),
        ("13800138000-13900139000", "[PHONE]-[PHONE]"),
        ("元旦打13800138000元旦见", "元旦打[PHONE]元旦见"),
        ("010-88888888-801", "[PHONE]"),
        ("010-88888888-13800138000", "[PHONE]-[PHONE]"),
        ("0755-23456789-8001", "[PHONE]"),
        ("+86-10-88888888-801", "[PHONE]"),
        ("请打010-62345678找我", "请打[PHONE]找我"),
        ("请拨0755-23456789转8001。", "请拨[PHONE]。"),
        ("0755-23456789（分机8001）", "[PHONE]"),
        ("021-6234-5678#12", "[PHONE]"),
        ("(010) 8888 8888 ext 801", "[PHONE]"),
        ("Tel010-88888888", "Tel[PHONE]"),
        ("400-810-8888转1", "[PHONE]"),
    ],
)
def test_phone_numbers_are_found(text: str, redacted: str) -> None:
    assert redact(text)[0] == redacted


def test_a_number_is_found_whatever_touches_it() -> None:
    numbers = ("13800138000", "138 0013 8000", "+86 138-0013-8000", "010-88888888", "0755-23456789-8001")
    before = ("", "wx", "Tel", "V", "请打", "（", "电话：", "ｗｘ", "a.b/", "￥")
    for number, start, end in product(numbers, before, ("", "谢谢", "。", " ok", "，wx", "）")):
        assert redact(start + number + end)[0] == f"{start}[PHONE]{end}", (start, number, end)
    for number, end in product(numbers[:4], ("wx", "ok", "Tom")):
        assert redact(number + end)[0] == "[PHONE]" + end, (number, end)


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
        "sha 3f13800138000ab, 1e13800138000 and 0x13800138000",
        "2018-10-15 07:22",
        "2024年01月15日，1990-2000-3000，2012-2013-2014",
        "@home at 5",
        "ISBN 978-7-111-21382-6, ISBN 7-111-21382-6, ISBN9787111213826",
        "订单号20231015123456，订单号2023101512，编号12345678901，学号20190812345",
        "order no. 8087821557, id 11223344556, ticket #8087821557",
        "timestamps 1700000000 and 1700000000000",
        "价格1380013.8000元，￥13800138000.00，共13800138000字节，138.00138000",
        "￥1,380,013,800.00, 13800138000元, 13800138000 bytes, 0.13800138000",
        "13800138000123 and 138 0013 80001 and 12100138000",
        "版本10.20.30.40, v10.20.30.40, chapter 1.2.3.4, 127.0.0.1, 300.20.30.40",
        "12:30:45, 00:1A:2B:3C:4D:5E, std::vector<int>::iterator, 1:2:3:4:5:6:7:8",
        "身份证110105194912310021",  # the check digit is wrong
        "身份证11010519491331002X",  # there is no 13th month
        "4111111111111112, 6222 0200 0000 0000 001",  # the Luhn digit is wrong
    ],
)
def test_left_alone(text: str) -> None:
    assert redact(text) == (text, {})


def test_counts_and_a_second_pass() -> None:
    text, counts = redact("a@b.co, c@d.org, 13800138000, www.example.com")
    assert text == "[EMAIL], [EMAIL], [PHONE], [URL]"
    assert counts == {"email": 2, "phone": 1, "url": 1}
    assert redact(text) == (text, {})
