"""Personal data out of texts, with the recognisers of Microsoft's Presidio: patterns and checksums, no language model.

* It finds e-mail addresses, telephone numbers (also without a country's prefix, in REGIONS), payment cards, IBANs, IP
  and MAC addresses, US social security numbers, crypto wallets and Chinese identity numbers. It does NOT find names,
  addresses of houses, or what a sentence says of somebody: those take a reader.
* Each becomes a placeholder, `<EMAIL_ADDRESS>`, the next one `<EMAIL_ADDRESS_2>`; the same in all texts of a row.
* Recognisers look for ends of words, which Chinese does not have, so they are shown a text with blanks for all letters
  but Latin ones, and full-width digits narrowed: the places are the same.
* Nothing is downloaded and nothing is sent.
"""

import ipaddress
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

# Where a telephone number without a country's prefix may be from.
REGIONS = ("US", "GB", "CN", "HK", "TW", "SG", "DE", "FR", "ES", "IT", "IN", "JP", "KR", "BR", "AU", "CA")


def scrubber(counts: Counter[str] | None = None) -> Callable[[Sequence[str]], list[str]]:
    """A function that takes the texts of a row and gives them back scrubbed; `counts` learns what it found.

    Raises ValueError when Presidio is not installed.
    """
    recognisers = _recognisers()

    def scrub(texts: Sequence[str]) -> list[str]:
        names: dict[tuple[str, str], str] = {}
        per_kind: Counter[str] = Counter()
        scrubbed = []
        for text in texts:
            parts, at = [], 0
            for start, end, kind in _found(text, recognisers):
                what = (kind, "".join(text[start:end].split()).lower())
                if what not in names:
                    per_kind[kind] += 1
                    names[what] = f"<{kind}>" if per_kind[kind] == 1 else f"<{kind}_{per_kind[kind]}>"
                if counts is not None:
                    counts[kind] += 1
                parts += [text[at:start], names[what]]
                at = end
            scrubbed.append("".join([*parts, text[at:]]))
        return scrubbed

    return scrub


def _found(text: str, recognisers: Sequence[Any]) -> list[tuple[int, int, str]]:
    """Places that do not overlap, in order; where two do, the surer one counts, then the longer."""
    shown = _shown(text)
    hits = []
    for recogniser in recognisers:
        for hit in recogniser.analyze(shown, recogniser.supported_entities, None):
            hits.append((-hit.score, hit.start - hit.end, hit.start, hit.end, hit.entity_type))
    taken: list[tuple[int, int, str]] = []
    for _, _, start, end, kind in sorted(hits):
        if all(end <= other or start >= until for other, until, _ in taken):
            taken.append((start, end, kind))
    return sorted(taken)


def _shown(text: str) -> str:
    """The text as recognisers see it, every character in its place."""
    return text if text.isascii() else "".join(map(_narrow, text))


def _narrow(character: str) -> str:
    narrow = unicodedata.normalize("NFKC", character)
    if len(narrow) == 1 and narrow.isascii():
        return narrow
    return " " if character.isalpha() and not unicodedata.name(character, "").startswith("LATIN") else character


def _recognisers() -> list[Any]:
    try:
        from presidio_analyzer import Pattern, PatternRecognizer, predefined_recognizers
    except ImportError:
        raise ValueError("--scrub needs Presidio; pip install 'chatloom[scrub]'") from None

    class Email(predefined_recognizers.EmailRecognizer):  # type: ignore[misc]
        """Any address, also within a company's network: the check of its domain would ask the internet."""

        def validate_result(self, pattern_text: str) -> None:
            """Neither surer nor less sure."""

    class Address(predefined_recognizers.IpRecognizer):  # type: ignore[misc]
        """No loopback address, which is nobody's, and nothing like `a::b`, which is code."""

        def invalidate_result(self, pattern_text: str) -> bool:
            """Whether this is no address that tells of anybody."""
            if super().invalidate_result(pattern_text) or not any(map(str.isdigit, pattern_text)):
                return True
            found = ipaddress.ip_address(pattern_text.partition("/")[0].partition("%")[0])
            return found.is_loopback or found.is_unspecified

    class ChineseIdentity(PatternRecognizer):  # type: ignore[misc]
        """Eighteen digits, the last a check digit (GB 11643-1999, ISO 7064 MOD 11-2)."""

        def validate_result(self, pattern_text: str) -> bool:
            """Whether the check digit is right."""
            return chinese_identity_checks(pattern_text)

    date = r"(?:18|19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])"
    pattern = Pattern("eighteen digits", rf"(?<!\d)[1-9]\d{{5}}{date}\d{{3}}[\dXx](?!\w)", 0.3)
    return [
        Email(),
        predefined_recognizers.PhoneRecognizer(supported_regions=REGIONS),
        predefined_recognizers.CreditCardRecognizer(),
        predefined_recognizers.IbanRecognizer(),
        Address(),
        predefined_recognizers.MacAddressRecognizer(),
        predefined_recognizers.CryptoRecognizer(),
        predefined_recognizers.UsSsnRecognizer(),
        ChineseIdentity(supported_entity="CN_IDENTITY_NUMBER", patterns=[pattern]),
    ]


def chinese_identity_checks(number: str) -> bool:
    """Whether the last character of a Chinese identity number is the right one for the others."""
    total = sum(int(digit) * pow(2, 17 - place, 11) for place, digit in enumerate(number[:17]))
    return "10X98765432"[total % 11] == number[17].upper()
