"""Exercise 2, solved.

The questions: (1) DATA, and STATUS as to bit 7. Made twice, a byte is lost, or the note that one was
dropped. (2) A driver that has sent five bytes, is moved, and then asks whether all have arrived: it is
told yes, and never sends the fifth again. (3) It reads STATUS in a loop: an exit for each look, some
10 us on KVM, and a CPU that is busy with waiting.
"""

import msgspec

CAPACITY = 4
DATA, STATUS = 0, 1


class MailboxState(msgspec.Struct, frozen=True):
    """What a mailbox remembers: the bytes, the oldest first, and whether one was dropped."""

    queue: bytes = b""
    dropped: bool = False


class Mailbox:
    """A queue of four bytes with a status register."""

    widths = frozenset({1})
    length = 2

    def __init__(self, state: MailboxState | None = None) -> None:
        state = state or MailboxState()
        self._queue = bytearray(state.queue)
        self._dropped = state.dropped

    def state(self) -> MailboxState:
        return MailboxState(bytes(self._queue), self._dropped)

    def read(self, offset: int, size: int) -> int:
        if offset == DATA:
            return self._queue.pop(0) if self._queue else 0
        status = bool(self._queue) | (len(self._queue) == CAPACITY) << 1 | self._dropped << 7
        self._dropped = False
        return status

    def write(self, offset: int, size: int, value: int) -> None:
        if offset != DATA:
            return
        if len(self._queue) == CAPACITY:
            self._dropped = True
        else:
            self._queue.append(value)
