"""The bytes of a migration, without sockets: what each side says, and who owns the machine.

A side is fed with the bytes that came (`feed`) and gives what happened as events, and the bytes
to send (`take`). docs/migration.md has the format. In short: each side begins with a line of text
(64 bytes, readable by every version) and 32 random bytes. Frames follow: length, type, payload
and a tag, an HMAC under a key of this connection, of this direction and of the frame's number. So
a frame that was changed, left out, repeated or moved is refused, and who has not the shared key
can make none. Lengths are checked before anything is kept.

Who may run the machine is `owner` on both sides, and never both. The source does until it says
COMMIT, which it says when the destination has LOADED everything; the destination does from
the moment that COMMIT has come. Between COMMIT and its answer TAKEN the source does not know,
and does not run it: two generals cannot do better.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import re
import secrets
import struct
from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from .. import __version__
from ..config import MachineConfig
from ..errors import MigrationError, SnapshotError, UsageError
from ..memory import PAGE_SIZE
from .codec import decode, encode, printable
from .pages import ZERO_PAGE, MemoryRegion, check_regions

__all__ = [
    "LINE_SIZE",
    "MOST_PAGES",
    "NONCE_SIZE",
    "TAG_SIZE",
    "VERSION",
    "Committed",
    "Connected",
    "Destination",
    "Event",
    "Frame",
    "Got",
    "Loaded",
    "Manifest",
    "Offer",
    "Pages",
    "Ready",
    "Round",
    "Side",
    "Source",
    "Taken",
]

VERSION = 1
LINE_SIZE = 64
NONCE_SIZE = 32
TAG_SIZE = 32
#: Pages in a frame, at most.
MOST_PAGES = 64
_MAGIC = b"vmmsim-migration "
_LINE = re.compile(rb"vmmsim-migration (\d{1,6}) ([!-~]{1,24}) (source|destination) *\n", re.ASCII)
#: Length of the payload, type, three bytes of zero.
_HEADER = struct.Struct("<IB3x")
_COUNT = struct.Struct("<I")
_MOST_TEXT = 1024


class Frame(enum.IntEnum):
    """The types of frames, and in the comments who sends them."""

    AUTH = 1  # both: the first frame, empty. That its tag is right is the proof of the key
    OFFER = 2  # source: what machine it is, as JSON
    READY = 3  # destination: such a machine can be here; what executes it, as text
    PAGES = 4  # source: pages of memory
    ROUND = 5  # source: a round of pages has ended; its number
    GOT = 6  # destination: its pages are in place
    MANIFEST = 7  # source: the guest stands still, all pages are sent, this is the rest
    LOADED = 8  # destination: I have everything, and the machine is in its state
    COMMIT = 9  # source: it is yours
    TAKEN = 10  # destination: it runs here
    ABORT = 11  # both: no; the reason as text


#: The longest payload of each type.
LONGEST: dict[Frame, int] = {
    Frame.AUTH: 0,
    Frame.OFFER: 1 << 20,
    Frame.READY: _MOST_TEXT,
    Frame.PAGES: _COUNT.size + MOST_PAGES * (8 + PAGE_SIZE),
    Frame.ROUND: _COUNT.size,
    Frame.GOT: _COUNT.size,
    Frame.MANIFEST: 16 << 20,
    Frame.LOADED: 0,
    Frame.COMMIT: 0,
    Frame.TAKEN: 0,
    Frame.ABORT: _MOST_TEXT,
}


# -- events


class Connected(msgspec.Struct, frozen=True):
    """The other side has the key. `peer` is what it calls itself."""

    peer: str


class Offer(msgspec.Struct, frozen=True):
    """The machine that comes: its configuration and its regions of memory."""

    config: MachineConfig
    regions: tuple[MemoryRegion, ...]


class Ready(msgspec.Struct, frozen=True):
    """The destination can take the machine; `backend` executes it there."""

    backend: str


class Pages(msgspec.Struct, frozen=True):
    """Pages in a row in the frame: (gpa, 4096 bytes, or None for zeros)."""

    pages: list[tuple[int, memoryview | None]]


class Round(msgspec.Struct, frozen=True):
    number: int


class Got(msgspec.Struct, frozen=True):
    number: int


class Manifest(msgspec.Struct, frozen=True):
    """JSON: see vmmsim.snapshot.encode."""

    data: bytes


class Loaded(msgspec.Struct, frozen=True):
    pass


class Committed(msgspec.Struct, frozen=True):
    """The machine is the destination's, from now on."""


class Taken(msgspec.Struct, frozen=True):
    """The destination runs it."""


Event = Connected | Offer | Ready | Pages | Round | Got | Manifest | Loaded | Committed | Taken

Owner = Literal["here", "there", "unknown"]


class Side:
    """What both sides have in common. `key` is the shared key; empty where the channel is trusted.

    Every error of the other side, or of the network, is a MigrationError from `feed`, or from
    `eof`, which says that no byte comes any more. After one the side is dead: `failed` is it.
    """

    role: Literal["source", "destination"]
    other: Literal["source", "destination"]
    #: `owner` once the machine has moved.
    role_after: Owner

    def __init__(self, key: bytes = b"", *, nonce: bytes | None = None) -> None:
        self._key = key
        self._in = bytearray()
        self._out = bytearray()
        self._nonce = nonce if nonce is not None else secrets.token_bytes(NONCE_SIZE)
        self._line = _line(self.role)
        self._out += self._line + self._nonce
        self._keys: dict[str, bytes] = {}
        self._sent = self._received = 0
        self._connected = self._told = False
        #: The types that may come now.
        self._expected: frozenset[Frame] = frozenset({Frame.AUTH})
        self.peer = ""
        self.failed: MigrationError | None = None
        #: Who may run the machine, as far as this side knows.
        self.owner: Owner = "here" if self.role == "source" else "there"

    # -- bytes out

    def take(self) -> bytes:
        """The bytes to send, in order. They are given once."""
        data = bytes(self._out)
        self._out.clear()
        return data

    def _send(self, kind: Frame, *payload: bytes | memoryview) -> None:
        length = sum(len(part) for part in payload)
        if length > LONGEST[kind]:
            raise UsageError(f"a {kind.name} of {length} bytes", hint=f"at most {LONGEST[kind]}")
        header = _HEADER.pack(length, kind)
        hasher = self._hasher(self.role, self._sent, header)
        self._sent += 1
        self._out += header
        for part in payload:
            hasher.update(part)
            self._out += part
        self._out += hasher.digest()

    def _hasher(self, sender: str, number: int, header: bytes) -> hmac.HMAC:
        hasher = hmac.new(self._keys[sender], number.to_bytes(8, "little"), hashlib.sha256)
        hasher.update(header)
        return hasher

    def abort(self, reason: str) -> bool:
        """Say, once, that it comes to nothing. Before the other side has proved its key, and from
        COMMIT on, nothing is said: False."""
        say = self._connected and not self._told
        if say:
            self._told = True
            data = reason.encode("utf-8", "replace")[:_MOST_TEXT]
            self._send(Frame.ABORT, data.decode("utf-8", "ignore").encode())
        self.failed = self.failed or MigrationError(reason)
        return say

    # -- bytes in

    def feed(self, data: bytes | bytearray | memoryview) -> list[Event]:
        """Bytes have come. What happened by them, in order. Raises MigrationError."""
        if self.failed is not None:
            raise self.failed
        self._in += data
        events: list[Event] = []
        try:
            if not self._keys and not self._begin():
                return events
            while (frame := self._next()) is not None:
                event = self._got(*frame)
                if event is not None:
                    events.append(event)
        except SnapshotError as error:
            self._fail(f"the {self.other} sends what is no machine: {error.message}", error.hint)
        except MigrationError as error:
            self.failed = error
            if events and self.owner == self.role_after:
                return events  # what came behind COMMIT or TAKEN cannot take it back
            raise
        return events

    def eof(self) -> None:
        """No byte comes any more. Always raises MigrationError."""
        if self.failed is not None:
            raise self.failed
        hint = "see what it says itself"
        if not self._connected and self._keys:
            hint = "perhaps its key is another: see --key-file"
        self._fail(f"the connection to the {self.other} ended too early", hint)

    def _fail(self, message: str, hint: str = "") -> None:
        self.failed = MigrationError(message, hint=hint)
        raise self.failed

    def _begin(self) -> bool:
        """Read the other side's first line and random bytes, once they are there."""
        head = bytes(self._in[: len(_MAGIC)])
        if not _MAGIC.startswith(head):
            self._fail("what answers there is no vmmsim migration", "check the address")
        if len(self._in) >= LINE_SIZE:
            self._check_line(bytes(self._in[:LINE_SIZE]))
        if len(self._in) < LINE_SIZE + NONCE_SIZE:
            return False
        line, nonce = bytes(self._in[:LINE_SIZE]), bytes(self._in[LINE_SIZE : LINE_SIZE + NONCE_SIZE])
        del self._in[: LINE_SIZE + NONCE_SIZE]
        mine, theirs = self._line + self._nonce, line + nonce
        both = mine + theirs if self.role == "source" else theirs + mine
        session = hmac.digest(self._key, b"vmmsim migration session" + both, "sha256")
        self._keys = {
            role: hmac.digest(session, role.encode(), "sha256") for role in ("source", "destination")
        }
        if self.role == "source":
            self._send(Frame.AUTH)
        return True

    def _check_line(self, line: bytes) -> None:
        found = _LINE.fullmatch(line)
        if found is None:
            self._fail("the other side's first line is damaged", "check the address")
        assert found is not None
        version = int(found[1])
        if version != VERSION:
            self._fail(
                f"the other side ({printable(found[2].decode())}) speaks version {version} of the migration "
                f"stream, this vmmsim version {VERSION}",
                "use the same vmmsim on both sides, or send a snapshot file",
            )
        if found[3].decode() != self.other:
            self._fail(
                f"both sides are the {self.role}",
                "one runs vmmsim receive, the other vmmsim migrate",
            )
        self.peer = printable(found[2].decode())

    def _next(self) -> tuple[Frame, memoryview] | None:
        """The next frame, if all of it is there and right."""
        if len(self._in) < _HEADER.size:
            return None
        header = bytes(self._in[: _HEADER.size])
        length, number = _HEADER.unpack(header)
        try:
            kind = Frame(number)
        except ValueError:
            kind = None
        if kind is None or header[5:] != b"\0\0\0":
            self._fail(f"the {self.other} sent a frame of no known type", "the stream is damaged")
        assert kind is not None
        if length > LONGEST[kind]:
            self._fail(
                f"a {kind.name} of {length} bytes, where {LONGEST[kind]} are the most",
                "the stream is damaged",
            )
        if kind not in self._expected and kind is not Frame.ABORT:
            self._fail(f"a {kind.name} came out of turn", "the stream is damaged")
        size = _HEADER.size + length
        if len(self._in) < size + TAG_SIZE:
            return None
        with memoryview(self._in) as view:
            frame = bytes(view[: size + TAG_SIZE])
        del self._in[: size + TAG_SIZE]
        payload = memoryview(frame)[_HEADER.size : size]
        hasher = self._hasher(self.other, self._received, header)
        hasher.update(payload)
        if not hmac.compare_digest(hasher.digest(), frame[size:]):
            if not self._connected:
                self._fail(
                    f"the {self.other} has another key", "give both sides the same --key-file, or none"
                )
            self._fail("a frame was changed, or is not in its place", "the network is not to be trusted")
        self._received += 1
        return kind, payload

    def _got(self, kind: Frame, payload: memoryview) -> Event | None:
        if kind is Frame.ABORT:
            reason = printable(bytes(payload).decode("utf-8", "replace")) or "no reason given"
            self._told = True  # nothing more is to be said
            self._aborted()
            self._fail(f"the {self.other} gave up: {reason}")
        if kind is Frame.AUTH:
            self._connected = True
            return self._authenticated()
        return self._step(kind, payload)

    def _aborted(self) -> None:
        pass

    def _authenticated(self) -> Event | None:
        raise NotImplementedError

    def _step(self, kind: Frame, payload: memoryview) -> Event | None:
        raise NotImplementedError

    def _number(self, payload: memoryview) -> int:
        if len(payload) != _COUNT.size:
            self._fail("a round without a number", "the stream is damaged")
        number: int = _COUNT.unpack(payload)[0]
        return number


class Source(Side):
    """The side that has the machine. In order: Connected, `offer`, Ready, then `pages` and
    `round` (answered by Got) as often as wanted, `manifest`, Loaded, `commit`, Taken."""

    role = "source"
    other = "destination"
    role_after = "there"

    def offer(self, config: MachineConfig, regions: Iterable[MemoryRegion]) -> None:
        """Tell what machine it is. Answered by Ready."""
        self._check("offer", self._connected)
        data = msgspec.json.encode(encode(Offer(config, tuple(regions))))
        self._send(Frame.OFFER, data)
        self._expected = frozenset({Frame.READY})

    def pages(self, pages: list[tuple[int, bytes | memoryview]]) -> None:
        """Send at most `MOST_PAGES` pages of 4096 bytes; those that are zero take no room."""
        self._check("pages", self._expected <= {Frame.GOT} and self._connected)
        addresses, parts = [], []
        for gpa, page in pages:
            zero = page == ZERO_PAGE
            addresses.append(gpa | zero)  # bit 0: it is zero, and is not sent
            if not zero:
                parts.append(page)
        head = struct.pack(f"<I{len(addresses)}Q", len(addresses), *addresses)
        self._send(Frame.PAGES, head, *parts)

    def round(self, number: int) -> None:
        """The pages of round `number` are sent. Answered by Got, once they are in place."""
        self._check("round", self._expected <= {Frame.GOT})
        self._send(Frame.ROUND, _COUNT.pack(number))
        self._expected = frozenset({Frame.GOT})

    def manifest(self, data: bytes) -> None:
        """All but the pages, which are all sent: the guest stands still. Answered by Loaded."""
        self._check("manifest", self._expected <= {Frame.GOT})
        self._send(Frame.MANIFEST, data)
        self._expected = frozenset({Frame.LOADED})

    def commit(self) -> None:
        """Give the machine away. From here on it may run there. Answered by Taken."""
        self._check("commit", self._expected == {Frame.COMMIT})
        self._send(Frame.COMMIT)
        self._expected = frozenset({Frame.TAKEN})
        self._told = True
        self.owner = "unknown"

    def not_sent(self, left: int) -> None:
        """The last `left` bytes that `take` gave were never handed to the network: a COMMIT that
        is not whole is none, and the machine is still here."""
        if left > 0 and self.owner == "unknown":
            self.owner = "here"

    def _check(self, what: str, right: bool) -> None:
        if self.failed is not None:
            raise self.failed
        if not right:
            raise UsageError(f"{what} out of turn", hint="see vmmsim.snapshot.stream.Source")

    def _aborted(self) -> None:
        if self.owner == "unknown":  # a destination that has taken it does not say this
            self.owner = "here"

    def _authenticated(self) -> Event:
        self._expected = frozenset()
        return Connected(self.peer)

    def _step(self, kind: Frame, payload: memoryview) -> Event:
        if kind is Frame.READY:
            self._expected = frozenset()
            return Ready(printable(bytes(payload).decode("utf-8", "replace")))
        if kind is Frame.GOT:
            self._expected = frozenset()
            return Got(self._number(payload))
        if kind is Frame.LOADED:
            # It is this side's turn: nothing but an ABORT may come before COMMIT is said.
            self._expected = frozenset({Frame.COMMIT})
            return Loaded()
        if kind is Frame.TAKEN:
            self.owner = "there"
            self._expected = frozenset()
            return Taken()
        self._fail(f"a {kind.name} from the destination", "the stream is damaged")
        raise AssertionError


class Destination(Side):
    """The side that the machine comes to: Offer (`ready`), Pages, Round (`got`), Manifest
    (`loaded`), Committed (`taken`)."""

    role = "destination"
    other = "source"
    role_after = "here"
    _regions: tuple[MemoryRegion, ...] = ()

    def ready(self, backend: str) -> None:
        """Such a machine can be here."""
        self._send(Frame.READY, backend.encode()[:256])
        self._expected = frozenset({Frame.PAGES, Frame.ROUND, Frame.MANIFEST})

    def got(self, number: int) -> None:
        """The pages of the round are in place."""
        self._send(Frame.GOT, _COUNT.pack(number))

    def loaded(self) -> None:
        """Everything is here. The machine must not run before Committed."""
        self._send(Frame.LOADED)
        self._expected = frozenset({Frame.COMMIT})

    def taken(self) -> None:
        """Tell the source that its machine runs here."""
        if self.owner != "here":
            raise UsageError("taken before the source has given it", hint="wait for Committed")
        self._send(Frame.TAKEN)

    def _authenticated(self) -> Event:
        self._send(Frame.AUTH)
        self._expected = frozenset({Frame.OFFER})
        return Connected(self.peer)

    def _step(self, kind: Frame, payload: memoryview) -> Event:
        if kind is Frame.OFFER:
            self._expected = frozenset()
            return self._offer(bytes(payload))
        if kind is Frame.PAGES:
            return Pages(self._pages(payload))
        if kind is Frame.ROUND:
            return Round(self._number(payload))
        if kind is Frame.MANIFEST:
            self._expected = frozenset()
            return Manifest(bytes(payload))
        if kind is Frame.COMMIT:
            self._told = True
            self.owner = "here"
            self._expected = frozenset()
            return Committed()
        self._fail(f"a {kind.name} from the source", "the stream is damaged")
        raise AssertionError

    def _offer(self, data: bytes) -> Offer:
        try:
            raw: Any = msgspec.json.decode(data)
            offer: Offer = decode(raw, Offer, "offer")
            check_regions(offer.regions)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise SnapshotError(f"the offer is not JSON: {error}") from error
        except SnapshotError:
            raise
        except UsageError as error:
            raise SnapshotError(error.message, hint=error.hint) from error
        self._regions = offer.regions
        return offer

    def _pages(self, payload: memoryview) -> list[tuple[int, memoryview | None]]:
        count = _COUNT.unpack_from(payload)[0] if len(payload) >= _COUNT.size else MOST_PAGES + 1
        at = _COUNT.size + 8 * count
        if count > MOST_PAGES or len(payload) < at:
            self._fail("pages without their addresses", "the stream is damaged")
        pages: list[tuple[int, memoryview | None]] = []
        for entry in struct.unpack_from(f"<{count}Q", payload, _COUNT.size):
            gpa, zero = entry & ~1, bool(entry & 1)
            if gpa % PAGE_SIZE or not any(r.gpa <= gpa < r.end for r in self._regions):
                self._fail(f"a page at {gpa:#x}, where the machine has no memory", "the stream is damaged")
            if zero:
                pages.append((gpa, None))
            else:
                pages.append((gpa, payload[at : at + PAGE_SIZE]))
                at += PAGE_SIZE
        if at != len(payload):
            self._fail("a frame of pages of a wrong length", "the stream is damaged")
        return pages


def _line(role: str) -> bytes:
    return f"vmmsim-migration {VERSION} vmmsim/{__version__} {role}".encode().ljust(LINE_SIZE - 1) + b"\n"
