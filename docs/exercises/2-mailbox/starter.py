"""Exercise 2: a mailbox. See statement.md."""

import msgspec


class MailboxState(msgspec.Struct, frozen=True):
    """What a mailbox remembers. Give it fields: numbers, bytes, tuples of them."""


class Mailbox:
    """A queue of four bytes with a status register."""

    widths = frozenset({1})  # accesses of one byte; the bus cuts wider ones
    length = 2  # two addresses: DATA, STATUS

    def __init__(self, state: MailboxState | None = None) -> None:
        """An empty mailbox, or one that goes on from `state`."""

    def state(self) -> MailboxState:
        raise NotImplementedError("Mailbox.state() of exercise 2")

    def read(self, offset: int, size: int) -> int:
        raise NotImplementedError("Mailbox.read() of exercise 2; statement.md has the two registers")

    def write(self, offset: int, size: int, value: int) -> None:
        raise NotImplementedError("Mailbox.write() of exercise 2; statement.md has the two registers")
