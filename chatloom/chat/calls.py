"""Tool calls in the text of an answer: the form in which they are written, and how they are read as the text comes.

A form is five texts around names and arguments, so that any template which writes a call as a name and a JSON object
is described by what it writes and not by whose it is (`tools.form_of` finds it by rendering). `HERMES` is the form of
the Hermes 2 Pro models (Nous Research, 2024), which Qwen and others took over.
"""

from dataclasses import dataclass

from chatloom.chat.message import ToolCall


@dataclass(frozen=True, slots=True)
class CallForm:
    """What is written around the names and arguments of the calls of one answer."""

    first: str  # before the first name
    middle: str  # between a name and its arguments
    next: str | None  # between the arguments of a call and the name of the next; None: an answer has one call
    last: str  # behind the last arguments
    between: str = "\n"  # between text and the first call

    @property
    def mark(self) -> str:
        """The beginning of `first` by which a call is known from text: a tag, or all of it where there is none."""
        return self.first.partition("{")[0].rstrip() or self.first

    def text(self, content: str, calls: tuple[ToolCall, ...]) -> str:
        """An answer that says something, perhaps nothing, and then calls."""
        if not calls:
            return content
        if self.next is None and len(calls) > 1:
            raise ValueError(f"there are {len(calls)} calls in one answer, and this chat template can write one")
        written = [f"{call.name}{self.middle}{call.arguments}" for call in calls]
        return (content + self.between if content else "") + self.first + (self.next or "").join(written) + self.last


HERMES = CallForm(
    '<tool_call>\n{"name": "',
    '", "arguments": ',
    '}\n</tool_call>\n<tool_call>\n{"name": "',
    "}\n</tool_call>",
)


@dataclass(frozen=True, slots=True)
class Piece:
    """Some of an answer as it comes: text, or the name of call number `call`, or some of its arguments' JSON."""

    text: str
    call: int | None = None
    is_name: bool = False


class CallReader:
    """Turns the pieces of an answer's text into what it says and whom it calls with what.

    What may turn out to be the beginning of a call is held back; the pieces of one kind put together are the same
    however the text was cut. An answer ends where it would make a call that it has made: small models like to go on
    for ever. So what a call has in common with an earlier one is held back too.
    """

    def __init__(self, form: CallForm) -> None:
        self._form = form
        self._held = ""  # not yet told
        self._read = self._read_text
        self._call = -1
        self._depth = 0  # of brackets within the arguments
        self._in_string = self._escaped = False
        self._made = list[str]()  # names and arguments of calls
        self._own = ""  # of the one under way
        self._told = 0  # characters of it
        self.complete = True  # whether every call that was begun has ended
        self.repeats = False  # whether an earlier call came again; what is pushed later is ignored

    def push(self, text: str) -> list[Piece]:
        """Add text; return what has become certain."""
        self._held += text
        pieces = list[Piece]()
        while not self.repeats and (piece := self._read()) is not None:
            pieces += self._news(piece)
        return pieces

    @property
    def num_made(self) -> int:
        """How many calls there are whose arguments are whole."""
        return len(self._made)

    def finish(self) -> list[Piece]:
        """Return what is left: no text comes any more."""
        rest, self._held = self._held, ""
        return [Piece(rest)] if rest and self._read == self._read_text else []

    def _news(self, piece: Piece) -> list[Piece]:
        """What can be told of a piece that was read."""
        if piece.call is None:
            return [piece] if piece.text else []
        if piece.is_name:
            self._own, self._told = f"{piece.text}\n", 0
        else:
            self._own += piece.text
        if self._depth == 0 and not piece.is_name:
            self.repeats = self._own in self._made
            self.complete = self.repeats
            self._made += [] if self.repeats else [self._own]
        if any(each.startswith(self._own) for each in self._made[: piece.call]):
            return []
        name, _, arguments = self._own.partition("\n")
        told, self._told = self._told, len(self._own)
        new = [Piece(name, piece.call, True)] if told == 0 else []
        rest = arguments[max(told - len(name) - 1, 0) :]
        return [*new, Piece(rest, piece.call)] if rest else new

    def _read_text(self) -> Piece | None:
        """Text up to a call."""
        form = self._form
        said, found, after = self._held.partition(form.first)
        if found:
            self._held = after
            self._read, self.complete = self._read_name, False
            return Piece(said.removesuffix(form.between))
        keep = max(_overlap(self._held, form.between + form.first), _overlap(self._held, form.first))
        return self._release(len(self._held) - keep, None)

    def _read_name(self) -> Piece | None:
        name, found, after = self._held.partition(self._form.middle)
        if not found:
            return None
        self._held, self._call = after, self._call + 1
        self._read, self._depth = self._read_arguments, 0
        return Piece(name, self._call, True)

    def _read_arguments(self) -> Piece | None:
        """JSON up to the bracket that closes the first."""
        for index, character in enumerate(self._held):
            if self._in_string:
                self._in_string = self._escaped or character != '"'
                self._escaped = character == "\\" and not self._escaped
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self._read = self._read_end
                    return self._release(index + 1, self._call)
        return self._release(len(self._held), self._call)

    def _read_end(self) -> Piece | None:
        """What closes a call, and perhaps opens another."""
        form, held = self._form, self._held
        self.complete = held.startswith(form.last)
        if form.next is not None and held.startswith(form.next):
            self._held, self._read, self.complete = held[len(form.next) :], self._read_name, False
            return Piece("")
        return None

    def _release(self, count: int, call: int | None) -> Piece | None:
        released, self._held = self._held[:count], self._held[count:]
        return Piece(released, call) if released else None


def read_calls(text: str, form: CallForm) -> tuple[str, tuple[ToolCall, ...]]:
    """What a whole answer says, and its calls; one that was cut short is left out."""
    reader = CallReader(form)
    content, names, arguments = "", list[str](), list[str]()
    for piece in [*reader.push(text), *reader.finish()]:
        if piece.call is None:
            content += piece.text
        elif piece.is_name:
            names.append(piece.text)
            arguments.append("")
        else:
            arguments[-1] += piece.text
    whole = list(zip(names, arguments))[: reader.num_made]
    return content, tuple(ToolCall(name, each) for name, each in whole)


def _overlap(text: str, mark: str) -> int:
    """The length of the longest proper prefix of `mark` that `text` ends with."""
    return next((size for size in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:size])), 0)
