"""The bytes of a migration, without sockets: who owns the machine, wherever the network is cut."""

from __future__ import annotations

import itertools
import re
import runpy
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from snapshot_samples import CONFIG, PAGE, RAM, ROM, pattern, sample

from vmmsim.errors import MigrationError, UsageError
from vmmsim.snapshot.encode import decode_manifest, encode_manifest
from vmmsim.snapshot.stream import (
    LINE_SIZE,
    LONGEST,
    MOST_PAGES,
    NONCE_SIZE,
    TAG_SIZE,
    Committed,
    Connected,
    Destination,
    Frame,
    Got,
    Loaded,
    Manifest,
    Offer,
    Pages,
    Ready,
    Round,
    Side,
    Source,
)

KEY = b"a key of at least 16 bytes"
PREAMBLE = LINE_SIZE + NONCE_SIZE
MANIFEST = encode_manifest(sample())
SENT = {0x8000: pattern(1), 0x9000: bytes(PAGE), 0xF0000: pattern(4)}


class Script:
    """Both sides of a whole migration, answered as the program does; no machine behind them."""

    def __init__(self, source_key: bytes = KEY, destination_key: bytes = KEY) -> None:
        self.source = Source(source_key, nonce=b"s" * NONCE_SIZE)
        self.destination = Destination(destination_key, nonce=b"d" * NONCE_SIZE)
        self.arrived: dict[int, bytes | None] = {}
        self.manifest = b""
        self.errors: dict[str, MigrationError] = {}

    def at_source(self, event: object) -> None:
        source = self.source
        if isinstance(event, Connected):
            source.offer(CONFIG, (RAM, ROM))
        elif isinstance(event, Ready):
            source.pages(list(SENT.items()))
            source.round(1)
        elif isinstance(event, Got):
            source.pages([(0x8000, pattern(2))])
            source.manifest(MANIFEST)
        elif isinstance(event, Loaded):
            source.commit()

    def at_destination(self, event: object) -> None:
        destination = self.destination
        if isinstance(event, Offer):
            assert event == Offer(CONFIG, (RAM, ROM))
            destination.ready("a test")
        elif isinstance(event, Pages):
            self.arrived |= {gpa: None if page is None else bytes(page) for gpa, page in event.pages}
        elif isinstance(event, Round):
            destination.got(event.number)
        elif isinstance(event, Manifest):
            self.manifest = event.data
            destination.loaded()
        elif isinstance(event, Committed):
            destination.taken()

    def feed(self, side: Side, data: bytes) -> None:
        react = self.at_source if side is self.source else self.at_destination
        if side.failed is not None:
            return
        try:
            for event in side.feed(data):
                react(event)
        except MigrationError as error:
            self.errors[side.role] = error

    def run(
        self,
        to_destination: Callable[[bytes], bytes] = bytes,
        to_source: Callable[[bytes], bytes] = bytes,
    ) -> None:
        """Until nobody says anything any more; then both see the end. The functions are the network."""
        while (forth := self.source.take()) or (back := self.destination.take()):
            self.feed(self.destination, to_destination(forth))
            back = self.destination.take()
            self.feed(self.source, to_source(back))
        for side in (self.source, self.destination):
            with pytest.raises(MigrationError):
                side.eof()

    @property
    def running(self) -> list[str]:
        return [side.role for side in (self.source, self.destination) if side.owner == "here"]


def whole() -> tuple[bytes, bytes]:
    """What each side says in a migration that goes well: the source's bytes, the destination's."""
    forth, back = bytearray(), bytearray()
    Script().run(lambda d: (forth.extend(d), d)[1], lambda d: (back.extend(d), d)[1])
    return bytes(forth), bytes(back)


FORTH, BACK = whole()


def frames(stream: bytes) -> Iterator[tuple[int, int, Frame]]:
    """(start, end, type) of each frame."""
    at = PREAMBLE
    while at < len(stream):
        length, kind = struct.unpack_from("<IB", stream, at)
        end = at + 8 + length + TAG_SIZE
        yield at, end, Frame(kind)
        at = end


def cut_after(size: int) -> Callable[[bytes], bytes]:
    left = size

    def deliver(data: bytes) -> bytes:
        nonlocal left
        data = data[:left]
        left -= len(data)
        return data

    return deliver


def test_a_migration_that_goes_well() -> None:
    script = Script()
    script.run()

    assert script.running == ["destination"]
    assert script.source.owner == "there"
    assert script.arrived == {0x8000: pattern(2), 0x9000: None, 0xF0000: pattern(4)}
    assert decode_manifest(script.manifest) == decode_manifest(MANIFEST)
    assert [kind.name for _, _, kind in frames(FORTH)] == [
        "AUTH", "OFFER", "PAGES", "ROUND", "PAGES", "MANIFEST", "COMMIT",
    ]  # fmt: skip
    assert [kind.name for _, _, kind in frames(BACK)] == ["AUTH", "READY", "GOT", "LOADED", "TAKEN"]


def test_the_first_line_can_be_read_by_every_version() -> None:
    for stream, role in ((FORTH, b"source"), (BACK, b"destination")):
        line = stream[:LINE_SIZE]
        assert re.fullmatch(rb"vmmsim-migration 1 vmmsim/\S+ " + role + rb" +\n", line)


def test_the_constants_of_the_format_do_not_change() -> None:
    # Both sides have to agree: another value is another version (docs/migration.md).
    assert (LINE_SIZE, NONCE_SIZE, TAG_SIZE, MOST_PAGES) == (64, 32, 32, 64)
    assert [(kind.name, int(kind), LONGEST[kind]) for kind in Frame] == [
        ("AUTH", 1, 0), ("OFFER", 2, 1 << 20), ("READY", 3, 1024), ("PAGES", 4, 4 + 64 * 4104),
        ("ROUND", 5, 4), ("GOT", 6, 4), ("MANIFEST", 7, 16 << 20), ("LOADED", 8, 0), ("COMMIT", 9, 0),
        ("TAKEN", 10, 0), ("ABORT", 11, 1024),
    ]  # fmt: skip


def test_an_independent_reading_of_the_stream() -> None:
    """docs/migration.md says enough: the tags are made again with nothing but hmac."""
    import hmac

    session = hmac.digest(KEY, b"vmmsim migration session" + FORTH[:PREAMBLE] + BACK[:PREAMBLE], "sha256")
    for stream, role in ((FORTH, b"source"), (BACK, b"destination")):
        key = hmac.digest(session, role, "sha256")
        for number, (start, end, _) in enumerate(frames(stream)):
            tag = hmac.digest(key, number.to_bytes(8, "little") + stream[start : end - TAG_SIZE], "sha256")
            assert tag == stream[end - TAG_SIZE : end]


#: Every boundary of a frame, one byte before and behind it, and every 211th byte.
CUTS_FORTH = sorted(
    {n for _, end, _ in frames(FORTH) for n in (end - 1, end, end + 1)} | set(range(0, len(FORTH), 211))
)
COMMIT_FROM = next(start for start, _, kind in frames(FORTH) if kind is Frame.COMMIT)


@pytest.mark.parametrize("size", [n for n in CUTS_FORTH if n < len(FORTH)])
def test_cut_on_the_way_there_the_machine_stays_or_is_in_doubt(size: int) -> None:
    script = Script()
    script.run(to_destination=cut_after(size))

    assert script.destination.owner == "there"
    # COMMIT is the last word: once it was said, and was lost, the source cannot know.
    assert script.source.owner == ("unknown" if size >= COMMIT_FROM else "here")
    assert set(script.running) <= {"source"}


@pytest.mark.parametrize("size", range(len(BACK)))
def test_cut_on_the_way_back_it_never_runs_twice(size: int) -> None:
    script = Script()
    script.run(to_source=cut_after(size))

    loaded = next(end for _, end, kind in frames(BACK) if kind is Frame.LOADED)
    if size < loaded:
        assert script.running == ["source"]
    else:  # only TAKEN was lost: it runs there, and the source has stopped for good
        assert script.running == ["destination"]
        assert script.source.owner == "unknown"


@pytest.mark.parametrize("left", [1, 8, 39])
def test_a_commit_that_the_network_did_not_take_whole_is_none(left: int) -> None:
    script = Script()
    script.source.take()  # all that it says is looked at here
    script.run(to_destination=cut_after(len(FORTH) - left))
    script.source.not_sent(left)

    assert script.running == ["source"]


def test_a_destination_that_gives_up_before_commit_leaves_the_machine_at_the_source() -> None:
    script = Script()
    real = script.at_destination

    def full(event: object) -> None:
        real(event)
        if isinstance(event, Manifest):  # LOADED is said, but it cannot wait
            script.destination.abort("no more \x1b[2Jtime")

    script.at_destination = full  # type: ignore[method-assign]
    script.run()

    assert script.running == ["source"]
    assert "no more ?[2Jtime" in script.source.failed.message  # type: ignore[union-attr]


def test_an_abort_that_crosses_the_commit_gives_the_machine_back() -> None:
    script = Script()
    held: list[bytes] = []

    def hold(data: bytes) -> bytes:
        """The network keeps COMMIT until the destination has given up."""
        if script.source.owner == "unknown" and not held:
            held.append(data)
            script.destination.abort("waited too long")
            return b""
        return data

    script.run(to_destination=hold)
    script.feed(script.destination, held[0])

    assert script.running == ["source"]


def test_what_has_been_taken_is_not_given_back() -> None:
    script = Script()
    script.run()
    script.destination.failed = None
    script.destination.abort("changed my mind")

    assert script.destination.take() == b""
    assert script.destination.owner == "here"


def test_garbage_behind_commit_does_not_take_it_back() -> None:
    script = Script()
    script.run(to_destination=lambda d: d + b"\xff" * 64 if script.source.owner == "unknown" else d)

    assert script.running == ["destination"]
    assert script.source.owner == "there"


@pytest.mark.parametrize(("ours", "theirs"), [(KEY, b"another key, as long"), (KEY, b""), (b"", KEY)])
def test_a_wrong_key_is_refused_before_anything_is_told(ours: bytes, theirs: bytes) -> None:
    script = Script(ours, theirs)
    told: list[bytes] = []
    script.run(to_destination=lambda d: (told.append(d), d)[1])

    assert script.running == ["source"]
    assert "another key" in script.errors["destination"].message
    assert "--key-file" in script.source.failed.hint  # type: ignore[union-attr]
    assert len(b"".join(told)) == PREAMBLE + 8 + TAG_SIZE  # AUTH and no more
    assert len(script.destination.take()) == 0


def test_a_replayed_stream_is_refused() -> None:
    """Recorded yesterday: today's random bytes are others."""
    destination = Destination(KEY)
    with pytest.raises(MigrationError, match="another key"):
        destination.feed(FORTH)


def test_a_side_cannot_be_answered_with_its_own_words() -> None:
    source = Source(KEY)
    mirrored = source.take().replace(b" source ", b" destination ")
    source.feed(mirrored[:LINE_SIZE].rstrip().ljust(LINE_SIZE - 1) + b"\n" + mirrored[-NONCE_SIZE:])
    with pytest.raises(MigrationError, match="another key"):
        source.feed(source.take())


#: Where the source waits for an answer: a stream that was recorded is fed in these pieces.
WAITS = [end for _, end, kind in frames(FORTH) if kind in (Frame.OFFER, Frame.MANIFEST)]


def replay(script: Script, stream: bytes) -> None:
    for start, end in itertools.pairwise([0, *WAITS, max(len(stream), len(FORTH))]):
        script.feed(script.destination, stream[start:end])


def spliced(order: list[int]) -> bytes:
    """The source's stream with its frames in another order."""
    parts = [FORTH[start:end] for start, end, _ in frames(FORTH)]
    return FORTH[:PREAMBLE] + b"".join(parts[n] for n in order)


@pytest.mark.parametrize(
    "order", [p for p in itertools.permutations(range(7)) if p[0] == 0 and p[-1] == 6][1::7]
)
def test_frames_in_another_order_are_refused(order: tuple[int, ...]) -> None:
    script = Script()
    replay(script, spliced(list(order)))

    assert "destination" in script.errors
    assert script.destination.owner == "there"


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 5, 6], [0, 1, 2, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 5, 6]])
def test_a_frame_left_out_or_repeated_is_refused(order: list[int]) -> None:
    script = Script()
    replay(script, spliced(order))

    assert "destination" in script.errors
    assert script.destination.owner == "there"


@pytest.mark.parametrize("version", [b"0", b"2", b"999999"])
def test_an_unknown_version_is_told_by_both(version: bytes) -> None:
    for side, stream in ((Source(KEY), BACK), (Destination(KEY), FORTH)):
        line = stream[:LINE_SIZE].replace(b"migration 1 ", b"migration " + version + b" ")
        line = line.rstrip().ljust(LINE_SIZE - 1) + b"\n"
        with pytest.raises(MigrationError, match=rf"version {int(version)} .*this vmmsim version 1"):
            side.feed(line)


def test_two_sources_do_not_talk_to_each_other() -> None:
    with pytest.raises(MigrationError, match="both sides are the source"):
        Source(KEY).feed(FORTH)


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"\0" * 8, b"SSH-2.0-OpenSSH_9.6\r\n"])
def test_another_protocol_is_refused_by_its_first_bytes(data: bytes) -> None:
    with pytest.raises(MigrationError, match="no vmmsim migration"):
        Destination(KEY).feed(data)


@pytest.mark.parametrize("length", [1, 0x1000, 0xFFFFFFFF])
def test_a_stranger_can_send_no_frame_with_a_length(length: int) -> None:
    """Before the key is proved nothing is kept: AUTH is empty."""
    destination = Destination(KEY)
    with pytest.raises(MigrationError, match="where 0 are the most"):
        destination.feed(FORTH[:PREAMBLE] + struct.pack("<IB3x", length, Frame.AUTH))


@pytest.mark.parametrize("kind", Frame)
def test_no_frame_is_longer_than_its_type_allows(kind: Frame) -> None:
    destination = Destination(KEY)
    with pytest.raises(MigrationError):
        destination.feed(FORTH[:PREAMBLE] + struct.pack("<IB3x", LONGEST[kind] + 1, kind))


def signed(script: Script, kind: Frame, payload: bytes) -> None:
    """A frame by a source that has the key and is no friend."""
    script.source._send(kind, payload)
    script.feed(script.destination, script.source.take())


def connected() -> Script:
    """Up to READY."""
    script = Script()
    for _ in range(2):
        script.feed(script.destination, script.source.take())
        script.feed(script.source, script.destination.take())
    script.feed(script.destination, script.source.take())
    assert not script.errors
    return script


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\1\0\0\0",
        struct.pack("<I", 65) + bytes(65 * 8),
        struct.pack("<IQ", 1, 0x8000),  # no page
        struct.pack("<IQ", 1, 0x8000) + bytes(PAGE - 1),
        struct.pack("<IQ", 1, 0x8001) + bytes(PAGE),  # zero, and yet a page
        struct.pack("<IQ", 1, 0x8010) + bytes(PAGE),  # between two pages
        struct.pack("<IQ", 1, 0xA0000) + bytes(PAGE),  # a hole
        struct.pack("<IQ", 1, 1 << 63) + bytes(PAGE),
        struct.pack("<I", 0xFFFFFFFF),
    ],
)
def test_pages_that_cannot_be_are_refused(payload: bytes) -> None:
    script = connected()
    signed(script, Frame.PAGES, payload)

    assert "destination" in script.errors
    assert script.arrived == {}


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"[]", b"null", b'{"config": {}, "regions": []}', b"[" * 100_000, b"\xff\xfe",
        b'{"config": null, "regions": [{"gpa": 0, "size": 1152921504606846976}]}',
    ],
)  # fmt: skip
def test_an_offer_that_is_none_is_refused_and_the_source_told(data: bytes) -> None:
    script = Script()
    script.feed(script.destination, script.source.take())
    script.feed(script.source, script.destination.take())
    script.source.take()
    script.source._sent = 0
    script.source._send(Frame.AUTH)
    signed(script, Frame.OFFER, data)

    assert "what is no machine" in script.errors["destination"].message
    script.destination.take()
    script.destination.abort(script.errors["destination"].message)
    assert script.destination.take()[4] == Frame.ABORT


def test_a_region_of_2_to_the_60_bytes_is_refused_before_it_is_had() -> None:
    import msgspec

    from vmmsim.snapshot.codec import encode
    from vmmsim.snapshot.pages import MemoryRegion

    script = Script()
    data = msgspec.json.encode(encode(Offer(CONFIG, (MemoryRegion(0, 1 << 60),))))
    script.feed(script.destination, script.source.take())
    script.feed(script.source, script.destination.take())
    script.source.take()
    script.source._sent = 0
    script.source._send(Frame.AUTH)
    signed(script, Frame.OFFER, data)

    assert "more memory than a machine can have" in script.errors["destination"].message


def test_what_is_said_out_of_turn_is_the_callers_fault() -> None:
    source = Source(KEY)
    for call in (lambda: source.offer(CONFIG, ()), source.commit, lambda: source.manifest(b"")):
        with pytest.raises(UsageError, match="out of turn"):
            call()
    with pytest.raises(UsageError, match="before the source has given it"):
        Destination(KEY).taken()


@given(st.lists(st.integers(1, 400), min_size=1, max_size=30))
def test_how_the_bytes_are_cut_makes_no_difference(sizes: list[int]) -> None:
    script = Script()
    sizes_again = itertools.cycle(sizes)
    at = 0
    # The random bytes are fixed, so that the stream can be fed without its answers.
    for stop in (*WAITS, len(FORTH)):
        while at < stop:
            size = min(next(sizes_again), stop - at)
            script.feed(script.destination, FORTH[at : at + size])
            at += size

    assert script.errors == {}
    assert script.destination.owner == "here"
    assert script.destination.take() == BACK
    assert script.manifest == MANIFEST


@settings(max_examples=250)
@given(st.data())
def test_a_changed_stream_is_never_taken(data: st.DataObject) -> None:
    """Bits flipped, pieces cut out, repeated or put in: an error of its kind, and no machine."""
    stream = bytearray(FORTH)
    kind = data.draw(st.sampled_from(["flip", "cut", "repeat", "insert", "garbage"]))
    at = data.draw(st.integers(0, len(stream) - 1))
    size = data.draw(st.integers(1, 300))
    if kind == "flip":
        stream[at] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "cut":
        del stream[at : at + size]
    elif kind == "repeat":
        stream[at:at] = stream[at : at + size]
    elif kind == "insert":
        stream[at:at] = data.draw(st.binary(min_size=1, max_size=64))
    else:
        stream[at:] = data.draw(st.binary(max_size=2000))
    script = Script()
    replay(script, bytes(stream))

    same = bytes(stream[: len(FORTH)]) == FORTH
    assert (script.destination.owner == "here") == same
    if not same and script.destination.failed is None:  # it waits for more: the end comes instead
        with pytest.raises(MigrationError):
            script.destination.eof()


@settings(max_examples=120)
@given(st.integers(0, len(BACK) - 1), st.integers(0, 7))
def test_a_changed_answer_leaves_the_machine_here_or_in_doubt(at: int, bit: int) -> None:
    answers = bytearray(BACK)
    answers[at] ^= 1 << bit
    script = Script()
    done = 0

    def answer(data: bytes) -> bytes:
        nonlocal done
        changed = bytes(answers[done : done + len(data)])
        done += len(data)
        return changed

    script.run(to_source=answer)

    assert len(script.running) <= 1 or at < PREAMBLE
    assert script.source.owner != "there"
    assert script.running in (["source"], ["destination"])


@settings(max_examples=120)
@given(st.sampled_from(sorted(Frame)), st.binary(max_size=300), st.booleans())
def test_a_friend_who_talks_nonsense_is_no_traceback(kind: Frame, payload: bytes, before: bool) -> None:
    """With the key, any payload: MigrationError or nothing, and no machine."""
    script = Script() if before else connected()
    if before:
        script.feed(script.destination, script.source.take())
        script.feed(script.source, script.destination.take())
        script.source.take()
        script.source._sent = 0
        script.source._send(Frame.AUTH)
    if len(payload) <= LONGEST[kind]:
        signed(script, kind, payload)

    assert script.destination.owner == "there"


def test_the_fuzzer_finds_nothing_in_its_first_cases(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tool = Path(__file__).resolve().parent.parent / "tools" / "fuzz_migration.py"
    monkeypatch.setattr(sys, "argv", ["fuzz", "--cases", "600"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(tool), run_name="__main__")

    printed = capsys.readouterr().out
    assert ended.value.code == 0, printed
    assert "600 cases, 0 failed" in printed
    for kind in ("damage", "forged-frames", "forged-payloads"):
        assert f"{kind}: refused" in printed
        assert f"{kind}: accepted" in printed, "it meets no rule but the tag"
