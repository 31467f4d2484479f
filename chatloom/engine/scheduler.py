"""What is computed in the next step: continuous batching with chunked prefill over paged blocks.

* Every running sequence whose tokens are computed but the last gets one token a step. What is left of the step's budget
  goes to prompts, in pieces where they are long (Agrawal et al. 2023, Sarathi), so a long prompt stops nobody.
* First come, first served, strictly: a sequence waits until all that came before it run, and when blocks run out the
  youngest gives its own back and is computed again later (Kwon et al. 2023, section 4.5). The oldest is never stopped,
  so each one becomes the oldest or ends before: nobody starves.
* One exception: who would compute a block, or the beginning of one that is marked as common to many, that another is
  computing waits for it, and lets others pass meanwhile.

Plain Python, and blind to what tokens are: this file imports no torch.
"""

from bisect import insort
from dataclasses import dataclass, field
from typing import Protocol

from chatloom.engine.blocks import Blocks

# So many waiting for others' blocks are looked at in one step, at most.
_MOST_PASSED = 1024
# A common beginning of fewer tokens within a block is not worth a step to wait for it, and a copy.
_WORTH = 8
NO_BLOCK = -1  # stands for a block that was given back


class Window(Protocol):
    """How much of a sequence is kept, as `nn.sinks.Kept`: this file knows no model."""

    @property
    def window(self) -> int:
        """The last tokens that a token sees, itself among them."""

    def first_block(self, place: int, size: int) -> int:
        """The first block that a token at a place sees, of those that hold more than sinks."""

    def num_sink_blocks(self, size: int) -> int:
        """The first blocks, which are kept always."""


@dataclass(slots=True, eq=False)
class Sequence:
    """The tokens of one request, known and computed, and where their keys and values lie."""

    order: int  # of arrival
    tokens: list[int]  # what is known: the caller appends what is generated
    num_prompt: int  # how many of them were given
    num_virtual: int = 0  # the first ones, which need no computing: they are put there
    remember_answer: bool = False  # whether what was generated may be found again, as the prompt always is
    space: bytes = b""  # sequences of different spaces share nothing
    mark: int = 0  # so many first tokens are those of others who come with it; 0 where that is not known
    blocks: list[int] = field(default_factory=list)
    num_computed: int = 0
    num_found: int = 0  # of the prompt, computed by others when it began
    drafted: list[int] = field(default_factory=list)  # guesses of what comes next, computed where there is room
    _named: int = 0  # whole blocks that have a name
    _parent: bytes = b""  # the name of the last of them
    _tail_named: bool = False
    _num_gone: int = 0  # blocks before this place were given back, but those of sinks
    _stale: bool = False  # begun with other weights: not to be found
    _next: tuple[bytes, tuple[int, ...]] | None = None  # the block being computed, while it is of the prompt

    @property
    def num_missing(self) -> int:
        """Known tokens that are not computed."""
        return len(self.tokens) - self.num_computed


@dataclass(slots=True)
class Plan:
    """One step: `chunks` of sequences with the number of their next tokens, those of one token first."""

    chunks: list[tuple[Sequence, int]] = field(default_factory=list)
    moves: list[tuple[int, int]] = field(default_factory=list)  # (from, to): blocks copied first, all at once
    copies: list[tuple[int, int]] = field(default_factory=list)  # and these then, before anything is written
    fresh: list[Sequence] = field(default_factory=list)  # whose virtual tokens must be put into their blocks
    num_preempted: int = 0

    def __bool__(self) -> bool:
        return bool(self.chunks)


class Scheduler:
    """Sequences waiting and running. In turn: `plan`, compute it, `advance`, append new tokens or `remove`."""

    def __init__(self, blocks: Blocks, *, max_rows: int, step_tokens: int, kept: Window | None = None) -> None:
        """At most `max_rows` sequences run at a time, and a step computes at most `step_tokens` tokens.

        `kept` says that only a window and the beginning of each sequence is needed; the rest is given back.
        """
        if max_rows < 1:
            raise ValueError(f"max_rows is {max_rows}; it must be at least 1")
        if step_tokens < max_rows:
            raise ValueError(f"step_tokens is {step_tokens}; it must be at least max_rows, {max_rows}: one token each")
        self.blocks = blocks
        self.max_rows = max_rows
        self.step_tokens = step_tokens
        self.kept = kept
        self._waiting: list[Sequence] = []  # both in order of arrival
        self._running: list[Sequence] = []
        self._computing: dict[tuple[bytes, tuple[int, ...]], Sequence] = {}

    @property
    def running(self) -> tuple[Sequence, ...]:
        """Sequences that hold blocks, the oldest first."""
        return tuple(self._running)

    @property
    def num_waiting(self) -> int:
        """Sequences that have no place yet, or no more."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Sequences that hold blocks."""
        return len(self._running)

    def add(self, sequence: Sequence) -> None:
        """Let a sequence wait for its turn; its caller has checked that it can fit into all the blocks there are."""
        insort(self._waiting, sequence, key=lambda each: each.order)

    def remove(self, sequence: Sequence) -> None:
        """End a sequence, finished or cancelled, at any moment between `advance` and `plan`."""
        if not sequence.blocks:
            self._waiting.remove(sequence)
            return
        self._running.remove(sequence)
        if sequence.remember_answer:
            self._name(sequence, sequence.num_computed, tail=True)
        self._give_back(sequence)

    def forget(self) -> None:
        """Let nothing computed so far be used for others: the weights have changed."""
        self.blocks.forget()
        for sequence in self._running:
            sequence._stale = True
        self._computing.clear()

    def restart(self) -> None:
        """Let all that run wait, to be computed anew."""
        while self._running:
            self._preempt(self._running[-1])

    def emptied(self) -> list[Sequence]:
        """Give up all sequences, as if none had been computed."""
        self.restart()
        given, self._waiting = self._waiting, []
        return given

    def plan(self) -> Plan:
        """Decide the next step; empty when nothing is left to compute."""
        plan = Plan()
        room = self._go_on(plan)
        if not plan.num_preempted:
            self._admit(plan, room)
        for origin, _ in plan.copies:
            self.blocks.drop(origin)
        plan.moves = [(origin, target) for target, origin in self.blocks.moves.items()]
        self.blocks.moves.clear()
        plan.chunks.sort(key=lambda chunk: (chunk[1] > 1) + (chunk[0].num_missing > 1))  # stable
        return plan

    def advance(self, plan: Plan) -> None:
        """Take a plan as computed; a count is less than planned where guesses were wrong."""
        for sequence, count in plan.chunks:
            sequence.num_computed += count
            known = sequence.num_computed
            if not sequence._tail_named or (
                sequence.remember_answer and known >= (sequence._named + 1) * self.blocks.block_size
            ):
                self._name(sequence, known if sequence.remember_answer else min(known, sequence.num_prompt))
                self._announce(sequence)

    # --- steps of a plan ------------------------------------------------------------------------------------

    def _go_on(self, plan: Plan) -> int:
        """Plan for those that run, the oldest first; returns the tokens left for prompts."""
        size, running = self.blocks.block_size, self._running
        room = self.step_tokens - sum(1 for sequence in running if sequence.num_missing == 1)
        place = 0
        while place < len(running):
            sequence = running[place]
            self._let_go(sequence)
            count = sequence.num_missing
            if count != 1:
                count = self._piece(count, room)
                room -= count
            elif sequence.drafted:
                guessed = self._num_guessed(sequence, room)
                count += guessed
                room -= guessed
            while len(sequence.blocks) * size < sequence.num_computed + count:
                block = self.blocks.take()
                if block is not None:
                    sequence.blocks.append(block)
                    continue
                self._preempt(running[-1])
                plan.num_preempted += 1
                if place == len(running):  # it was the youngest itself
                    break
            else:
                if count:
                    plan.chunks.append((sequence, count))
                place += 1
        return room

    def _num_guessed(self, sequence: Sequence, room: int) -> int:
        """How many guesses of a sequence are computed: nobody may have to give way for them."""
        spare = max(0, self.blocks.num_available - 2 * len(self._running))
        places = (len(sequence.blocks) + spare) * self.blocks.block_size - sequence.num_computed - 1
        return max(0, min(len(sequence.drafted), room, places))

    def _admit(self, plan: Plan, room: int) -> None:
        """Start those that wait, the oldest first, while there are rows, blocks and tokens for them."""
        passed: list[Sequence] = []
        at = 0
        while at < len(self._waiting) and room > 0 and len(self._running) < self.max_rows:
            sequence = self._waiting[at]
            verdict = self._start(sequence, plan)
            if verdict is None:
                break
            at += 1
            if verdict:
                count = self._piece(sequence.num_missing, room)
                room -= count
                plan.chunks.append((sequence, count))
            else:
                passed.append(sequence)
                if len(passed) >= _MOST_PASSED:
                    break
        if at:
            self._waiting = passed + self._waiting[at:]

    def _start(self, sequence: Sequence, plan: Plan) -> bool | None:
        """Give a sequence its blocks. False: another computes what it needs; None: there are no blocks."""
        blocks, tokens = self.blocks, sequence.tokens
        match = blocks.match(sequence.space, tokens)
        following = self._block_behind(sequence, len(match.blocks), match.name)
        if match.num_tokens < len(tokens) - 1 and match.copied is None and following in self._computing:
            return False
        # What is copied is held until the plan is made, or it might be given away before.
        copied, num_known = match.copied, match.num_tokens
        found = self._in_sight(match.blocks)
        held = [block for block in found if block != NO_BLOCK]
        for block in held if copied is None else (*held, copied):
            blocks.hold(block)
        # Those that run will soon need more: a start that would be taken back is not worth it.
        known = num_known + self._piece(len(tokens) - num_known, len(tokens))  # after its first step, or more
        num_own = -(-known // blocks.block_size) - len(match.blocks)
        needed = num_own + len(self._running) // 4
        if copied is not None and blocks.num_available < needed:
            blocks.drop(copied)
            copied, num_known = None, len(match.blocks) * blocks.block_size
        if blocks.num_available < needed:
            for block in reversed(held):
                blocks.drop(block)
            return None
        own = [block for block in (blocks.take() for _ in range(num_own)) if block is not None]
        assert len(own) == num_own
        sequence.blocks = found + own
        if copied is not None:
            plan.copies.append((copied, own[0]))
        if num_known < sequence.num_virtual:
            plan.fresh.append(sequence)
        sequence.num_computed = max(num_known, sequence.num_virtual)
        if len(tokens) == sequence.num_prompt:
            sequence.num_found = num_known
        sequence._named, sequence._parent = len(match.blocks), match.name
        sequence._stale = sequence._tail_named = False
        sequence._num_gone = 0
        insort(self._running, sequence, key=lambda each: each.order)
        self._announce(sequence)
        return True

    def _piece(self, missing: int, room: int) -> int:
        """How many of the missing tokens of a prompt are computed in a step: of a windowed one no more than that."""
        return min(missing, room) if self.kept is None else min(missing, room, self.kept.window)

    def _in_sight(self, blocks: list[int]) -> list[int]:
        """The blocks of a beginning, without those that the next token does not see."""
        if self.kept is None:
            return blocks
        size, kept = self.blocks.block_size, self.kept
        first, sinks = kept.first_block(len(blocks) * size, size), kept.num_sink_blocks(size)
        return [block if place >= first or place < sinks else NO_BLOCK for place, block in enumerate(blocks)]

    def _let_go(self, sequence: Sequence) -> None:
        """Give back blocks that neither hold sinks nor reach into the window of the next token."""
        if self.kept is None:
            return
        size = self.blocks.block_size
        first = self.kept.first_block(sequence.num_computed, size)
        for place in range(max(sequence._num_gone, self.kept.num_sink_blocks(size)), first):
            if sequence.blocks[place] != NO_BLOCK:
                self.blocks.drop(sequence.blocks[place])
                sequence.blocks[place] = NO_BLOCK
        sequence._num_gone = max(sequence._num_gone, first)

    def _preempt(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._give_back(sequence)
        self.add(sequence)

    def _give_back(self, sequence: Sequence) -> None:
        """Drop the blocks, the last first: what is forgotten first is what is farthest from the beginning."""
        for block in reversed(sequence.blocks):
            if block != NO_BLOCK:
                self.blocks.drop(block)
        sequence.blocks, sequence.num_computed = [], 0
        self._withdraw(sequence)

    # --- names ----------------------------------------------------------------------------------------------

    def _name(self, sequence: Sequence, known: int, *, tail: bool = False) -> None:
        """Name the blocks that `known` tokens fill; the last one, too, where the prompt ends in it or `tail`."""
        if sequence._stale:
            return
        size = self.blocks.block_size
        while (sequence._named + 1) * size <= known:
            start = sequence._named * size
            own = sequence.blocks[sequence._named]
            self._name_mark(sequence, known)
            sequence._parent = self.blocks.name(own, sequence._parent, sequence.tokens[start : start + size])
            sequence._named += 1
        self._name_mark(sequence, known)
        start = sequence._named * size
        end = known if tail else min(known, sequence.num_prompt)
        ended = end == sequence.num_prompt and not sequence._tail_named
        if end > start and (tail or ended):
            self.blocks.name(sequence.blocks[sequence._named], sequence._parent, sequence.tokens[start:end])
        sequence._tail_named = sequence._tail_named or known >= sequence.num_prompt

    def _name_mark(self, sequence: Sequence, known: int) -> None:
        """Name the beginning of the next block to be named, if it is marked and computed."""
        start = sequence._named * self.blocks.block_size
        if self._marked(sequence, start) and sequence.mark <= known:
            own = sequence.blocks[sequence._named]
            self.blocks.name(own, sequence._parent, sequence.tokens[start : sequence.mark])

    def _marked(self, sequence: Sequence, start: int) -> bool:
        """Whether the mark lies within the block that begins at `start`."""
        return start + _WORTH <= sequence.mark < start + self.blocks.block_size

    def _block_behind(self, sequence: Sequence, place: int, name: bytes) -> tuple[bytes, tuple[int, ...]]:
        """What a sequence computes next behind so many blocks: a block, or up to its mark."""
        start = place * self.blocks.block_size
        end = sequence.mark if self._marked(sequence, start) else start + self.blocks.block_size
        return name, tuple(sequence.tokens[start:end])

    def _announce(self, sequence: Sequence) -> None:
        """Say which block of its prompt a sequence computes next."""
        self._withdraw(sequence)
        if sequence._stale or sequence.num_computed >= sequence.num_prompt:
            return
        following = self._block_behind(sequence, sequence._named, sequence._parent)
        if self._computing.setdefault(following, sequence) is sequence:
            sequence._next = following

    def _withdraw(self, sequence: Sequence) -> None:
        if sequence._next is not None and self._computing.get(sequence._next) is sequence:
            del self._computing[sequence._next]
        sequence._next = None
