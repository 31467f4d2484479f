import random

import pytest

from chatloom.engine.text import TextStream
from chatloom.testing.tokenizer import byte_tokenizer

TOKENIZER = byte_tokenizer()
TEXT = "naïve café: 中文 and 😀👨‍👩‍👧 end"


def pieces_of(tokens: list[int], stop: tuple[str, ...] = ()) -> tuple[list[str], TextStream]:
    text = TextStream(TOKENIZER.decode, stop=stop)
    pieces = [text.push(token) for token in tokens]
    return [*pieces, text.finish()], text


def test_no_piece_has_a_broken_character_and_together_they_are_the_text() -> None:
    pieces, _ = pieces_of(TOKENIZER.encode(TEXT * 4))
    assert "".join(pieces) == TEXT * 4
    assert all("\ufffd" not in piece for piece in pieces)
    # Text is not held longer than needed: every byte of an ASCII letter comes at once.
    assert pieces[0] == "n"


def test_an_unfinished_character_at_the_end_is_shown_as_decode_shows_it() -> None:
    tokens = TOKENIZER.encode("a😀")[:-1]
    pieces, _ = pieces_of(tokens)
    assert pieces[:-1] == ["a", "", "", ""]
    assert "".join(pieces) == TOKENIZER.decode(tokens)


@pytest.mark.parametrize("seed", range(20))
def test_any_bytes_come_out_as_decode_gives_them(seed: int) -> None:
    # Mostly invalid UTF-8, with special tokens, longer than the window.
    tokens = [random.Random(seed).randrange(TOKENIZER.vocab_size) for _ in range(150)]
    assert "".join(pieces_of(tokens)[0]) == TOKENIZER.decode(tokens)


def test_decoding_a_long_stream_looks_at_a_window_only() -> None:
    longest = 0

    def decode(tokens: list[int]) -> str:
        nonlocal longest
        longest = max(longest, len(tokens))
        return TOKENIZER.decode(tokens)

    text = TextStream(decode)
    assert "".join(text.push(token) for token in TOKENIZER.encode("x" * 1000)) == "x" * 1000
    assert longest <= 32


def test_stop_string_across_tokens_is_never_shown() -> None:
    pieces, text = pieces_of(TOKENIZER.encode("one\n\nHuman: two"), stop=("\n\nHuman:",))
    assert text.stopped
    assert "".join(pieces) == "one"
    assert pieces[3] == ""  # the line end could be the beginning of the stop string


def test_a_false_alarm_is_given_back() -> None:
    pieces, text = pieces_of(TOKENIZER.encode("a\n\nHumble"), stop=("\n\nHuman:",))
    assert not text.stopped
    assert "".join(pieces) == "a\n\nHumble"


def test_what_was_held_comes_at_the_end() -> None:
    pieces, text = pieces_of(TOKENIZER.encode("a\n\nHum"), stop=("\n\nHuman:",))
    assert (pieces[-1], text.stopped) == ("\n\nHum", False)


def test_the_earliest_stop_string_wins_and_overlaps_are_found() -> None:
    assert "".join(pieces_of(TOKENIZER.encode("xaab"), stop=("b", "aab"))[0]) == "x"
    assert "".join(pieces_of(TOKENIZER.encode("aaab!"), stop=("aab",))[0]) == "a"


@pytest.mark.parametrize("seed", range(10))
def test_stop_strings_against_the_slow_way(seed: int) -> None:
    source = random.Random(seed)
    text = "".join(source.choice("ab中") for _ in range(60))
    stop = tuple("".join(source.choice("ab中") for _ in range(source.randint(2, 5))) for _ in range(2))
    # The slow way: after each token, look for a stop string in all that is decoded.
    tokens, expected, expected_stop = TOKENIZER.encode(text), text, False
    for end in range(1, len(tokens) + 1):
        places = [TOKENIZER.decode(tokens[:end]).find(item) for item in stop]
        if max(places) >= 0:
            expected = text[: min(place for place in places if place >= 0)]
            expected_stop = True
            break
    pieces, stream = pieces_of(tokens, stop=stop)
    assert ("".join(pieces), stream.stopped) == (expected, expected_stop)
