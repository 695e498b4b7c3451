"""The GDB remote serial protocol as bytes in, events out: no socket, no thread, no machine.

"Debugging with GDB", appendix E: packets `$data#checksum`, acknowledgements `+` and `-`, the byte
03h that interrupts, escapes (`}` and the byte XOR 20h), run lengths in replies, and the mode
without acknowledgements. Whatever comes in, nothing is raised, and no more is kept than one
packet of `PACKET_MAX` bytes and the last reply.
"""

from __future__ import annotations

from enum import Enum

__all__ = ["PACKET_MAX", "Codec", "Signal", "expand", "frame"]

#: The most bytes between `$` and `#`, either way; told in qSupported as PacketSize.
PACKET_MAX = 0x4000
#: So often is a reply sent again for a `-`; a peer that wants it more often is no debugger.
_RESENDS = 8
_ESCAPED = b"#$}*"
#: The longest run that a printable count byte can tell, and the counts whose byte would be `#` or
#: `$`, or `+` or `-`, which old debuggers take for acknowledgements.
_RUN_MAX, _RUN_BARRED = 97, (6, 7, 14, 16)


class Signal(Enum):
    """What comes beside packets."""

    #: 03h: stop the guest.
    INTERRUPT = "interrupt"
    #: The peer does not understand what it gets: give the connection up.
    BROKEN = "broken"


def frame(payload: bytes) -> bytes:
    """The packet of a reply, escaped and with run lengths."""
    body = _runs(b"".join(_escape(byte) for byte in payload))
    return b"$%s#%02x" % (body, sum(body) & 0xFF)


def _escape(byte: int) -> bytes:
    return b"}%c" % (byte ^ 0x20) if byte in _ESCAPED else b"%c" % byte


def _runs(data: bytes) -> bytes:
    """`data` with runs of a byte as that byte, `*`, and how often more."""
    found = bytearray()
    at = 0
    while at < len(data):
        byte = data[at]
        end = at + 1
        while end < len(data) and data[end] == byte and end - at <= _RUN_MAX:
            end += 1
        more = end - at - 1
        # An escape is two bytes, and a run of its second would be a run of something else.
        if more < 3 or byte == 0x7D or (at and data[at - 1] == 0x7D):
            found.append(byte)
            at += 1
            continue
        if more in _RUN_BARRED:
            more -= 1 if more != 7 else 2
        found += b"%c*%c" % (byte, more + 29)
        at += more + 1
    return bytes(found)


def expand(body: bytes) -> bytes:
    """The payload of a reply's body: without run lengths and escapes. What a debugger does; a run
    without a byte before it, or with a wrong count, is left as it is."""
    found = bytearray()
    at = 0
    while at < len(body):
        byte = body[at]
        if byte == 0x7D and at + 1 < len(body):
            found.append(body[at + 1] ^ 0x20)
            at += 2
        elif byte == 0x2A and found and at + 1 < len(body) and 29 < body[at + 1] < 127:
            found += found[-1:] * (body[at + 1] - 29)
            at += 2
        else:
            found.append(byte)
            at += 1
    return bytes(found)


def _unescape(body: bytes) -> bytes:
    """Of what a debugger sends, which has no run lengths."""
    if b"}" not in body:
        return body
    found = bytearray()
    at = 0
    while at < len(body):
        if body[at] == 0x7D and at + 1 < len(body):
            at += 1
            found.append(body[at] ^ 0x20)
        else:
            found.append(body[at])
        at += 1
    return bytes(found)


class Codec:
    """One connection. `feed` takes what has come and gives packets and signals in order; `send`
    queues a reply; `take` gives the bytes that are to go out."""

    def __init__(self) -> None:
        self._out = bytearray()
        self._acks = True
        self._last = b""
        self._resends = 0
        #: None between packets, else what has come of one; too much of it is not kept.
        self._body: bytearray | None = None
        self._too_long = False
        #: The checksum's digits, once `#` has come.
        self._check: bytearray | None = None

    @property
    def acknowledges(self) -> bool:
        return self._acks

    def no_acks(self) -> None:
        """From here on nothing is acknowledged (QStartNoAckMode)."""
        self._acks = False
        self._last = b""

    def send(self, payload: bytes) -> None:
        """Queue a packet."""
        self._last = frame(payload)
        self._resends = 0
        self._out += self._last

    def take(self) -> bytes:
        """What is to go out, once."""
        data = bytes(self._out)
        self._out.clear()
        return data

    def feed(self, data: bytes) -> list[bytes | Signal]:
        """Packets (their payloads) and signals in `data`. Several interrupts in a row are one."""
        found: list[bytes | Signal] = []
        for byte in data:
            event = self._byte(byte)
            if event is None or (event is Signal.INTERRUPT and found[-1:] == [event]):
                continue
            found.append(event)
        return found

    def _byte(self, byte: int) -> bytes | Signal | None:
        if self._check is not None:
            self._check.append(byte)
            return self._end() if len(self._check) == 2 else None
        if byte == 0x24:  # also in the middle of a packet: its end was lost
            self._body, self._too_long = bytearray(), False
        elif self._body is None:
            return self._between(byte)
        elif byte == 0x23:
            self._check = bytearray()
        elif len(self._body) < PACKET_MAX:
            self._body.append(byte)
        else:
            self._too_long = True
        return None

    def _between(self, byte: int) -> Signal | None:
        if byte == 0x03:
            return Signal.INTERRUPT
        if byte == 0x2D and self._acks and self._last:
            self._resends += 1
            if self._resends > _RESENDS:
                self._last = b""
                return Signal.BROKEN
            self._out += self._last
        elif byte == 0x2B:
            self._last = b""
        return None

    def _end(self) -> bytes | None:
        body, check, too_long = self._body or b"", self._check or b"", self._too_long
        self._body = self._check = None
        try:
            good = int(check, 16) == sum(body) & 0xFF and not too_long
        except ValueError:
            good = False
        if self._acks:
            self._out += b"+" if good else b"-"
        elif not good:
            return None
        return _unescape(bytes(body)) if good else None
