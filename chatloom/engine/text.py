"""Tokens to text while they are being generated.

Two things are held back: the bytes of a character whose last byte has not come yet (byte-level tokens may split one),
and text that may turn out to be the beginning of a stop string. The pieces put together are the completion's text,
so that a stream and a batch say the same. Imports no torch.
"""

from collections.abc import Callable, Sequence

# Decoding looks at this many tokens at most before it forgets the older ones, so a long stream costs linear time.
_WINDOW = 32
# Tokens kept as left context when it does: decoders of the SentencePiece kind strip the very first space.
_CONTEXT = 4
# What a decoder puts for bytes that are not (yet) UTF-8. An unfinished character at the end is exactly one of them.
_REPLACEMENT = "\ufffd"


class TextStream:
    """Turns pushed tokens into the text that is certain."""

    def __init__(self, decode: Callable[[list[int]], str], *, stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stop = tuple(stop)
        self._tokens: list[int] = []
        self._decoded = 0  # characters of the window's text that were taken already
        self._held = ""  # decoded, but perhaps the beginning of a stop string
        self.stopped = False  # a stop string was met; what is pushed later is ignored

    def push(self, token: int) -> str:
        """Add one token; return the text that has become certain, often empty."""
        if self.stopped:
            return ""
        self._tokens.append(token)
        text = self._decode(self._tokens)
        complete = len(text) - 1 if text.endswith(_REPLACEMENT) else len(text)
        new, self._decoded = text[self._decoded : complete], max(self._decoded, complete)
        if len(self._tokens) >= _WINDOW and complete == len(text):
            self._tokens = self._tokens[-_CONTEXT:]
            self._decoded = len(self._decode(self._tokens))
        return self._release(new)

    def finish(self) -> str:
        """Return what is left: nothing more can come that would change it."""
        if self.stopped:
            return ""
        rest = self._release(self._decode(self._tokens)[self._decoded :])
        rest, self._held = (rest if self.stopped else rest + self._held), ""
        return rest

    def _release(self, new: str) -> str:
        """Append `new` to the held text; cut at a stop string, keep what may begin one, return the rest."""
        text = self._held + new
        if not self._stop:
            return text
        found = [place for place in (text.find(stop) for stop in self._stop) if place >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max(_overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """The length of the longest proper prefix of `stop` that `text` ends with."""
    for size in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
