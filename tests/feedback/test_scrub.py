"""Personal data out, in English and Chinese, and nothing that is none; with the network switched off."""

import socket
from collections import Counter

import pytest

pytest.importorskip("presidio_analyzer", reason="--scrub is NOT tested here: pip install 'chatloom[scrub]'")

from chatloom.feedback.scrub import chinese_identity_checks, scrubber


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        ("Mail jo.doe+x@example.com!", "Mail <EMAIL_ADDRESS>!"),
        ("me@intern.corp", "<EMAIL_ADDRESS>"),
        ("Call +44 20 7946 0958 or (212) 555-0142.", "Call <PHONE_NUMBER> or <PHONE_NUMBER_2>."),
        ("Card 4111 1111 1111 1111, exp 12/27", "Card <CREDIT_CARD>, exp 12/27"),
        ("IBAN DE89 3704 0044 0532 0130 00", "IBAN <IBAN_CODE>"),
        ("From 203.0.113.7 and 2001:db8::7", "From <IP_ADDRESS> and <IP_ADDRESS_2>"),
        ("SSN 536-90-4399", "SSN <US_SSN>"),
        ("00:1B:44:11:3A:B7", "<MAC_ADDRESS>"),
        ("我的电话13812345678请打", "我的电话<PHONE_NUMBER>请打"),
        ("电话：１３８１２３４５６７８。", "电话：<PHONE_NUMBER>。"),
        ("邮箱zhang@qq.com，身份证11010519491231002X。", "邮箱<EMAIL_ADDRESS>，身份证<CN_IDENTITY_NUMBER>。"),
        ("银行卡4111111111111111号", "银行卡<CREDIT_CARD>号"),
    ],
)
def test_what_is_personal_goes(text: str, scrubbed: str) -> None:
    assert scrubber()([text]) == [scrubbed]


@pytest.mark.parametrize(
    "text",
    [
        "There are 1234567 sheep, pi is 3.14159265358979, and it is 2026-11-22, 12:30:45.",
        "std::vector<int> a::b; x[1:2]; localhost is 127.0.0.1 or ::1",
        "Card 4111 1111 1111 1112 has a wrong check digit.",
        "身份证110105194912310021的校验码不对",
        "Ärger in Köln, 中文没有空格。",
        "",
    ],
)
def test_what_is_not_stays(text: str) -> None:
    assert scrubber()([text]) == [text]


def test_one_name_is_one_name_in_all_texts_of_a_row() -> None:
    counts: Counter[str] = Counter()
    scrub = scrubber(counts)
    given = ["Mail a@x.com or b@x.com", "You mean A@x.com?", "b@x.com"]
    wanted = ["Mail <EMAIL_ADDRESS> or <EMAIL_ADDRESS_2>", "You mean <EMAIL_ADDRESS>?", "<EMAIL_ADDRESS_2>"]
    assert scrub(given) == wanted
    assert scrub(["c@x.com"]) == ["<EMAIL_ADDRESS>"]  # another row begins anew
    assert counts == {"EMAIL_ADDRESS": 5}


def test_the_check_digit_of_the_standard() -> None:
    assert chinese_identity_checks("11010519491231002X")
    assert chinese_identity_checks("440524188001010014")
    assert not chinese_identity_checks("440524188001010015")
