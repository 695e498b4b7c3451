"""The codec of the GDB remote protocol: bytes in, packets out, and nothing that a peer can do."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vmmsim.debug.rsp import PACKET_MAX, Codec, Signal, expand, frame


def packet(body: bytes) -> bytes:
    return b"$%s#%02x" % (body, sum(body) & 0xFF)


def test_the_packets_of_the_manual() -> None:
    # "Debugging with GDB", appendix E.1: OK is $OK#9a, and "0* " stands for "0000".
    assert frame(b"OK") == b"$OK#9a"
    assert frame(b"") == b"$#00"
    assert expand(b"0* ") == b"0000"
    codec = Codec()
    assert codec.feed(b"$OK#9a") == [b"OK"]
    assert codec.take() == b"+"


def test_a_wrong_checksum_is_asked_for_again() -> None:
    codec = Codec()
    assert codec.feed(b"$OK#9b") == []
    assert codec.take() == b"-"
    assert codec.feed(b"$OK#zz$OK#9a") == [b"OK"]
    assert codec.take() == b"-+"


def test_a_reply_is_sent_again_until_it_is_acknowledged() -> None:
    codec = Codec()
    codec.send(b"OK")
    assert codec.take() == b"$OK#9a"
    codec.feed(b"-")
    assert codec.take() == b"$OK#9a"
    codec.feed(b"+-")
    assert codec.take() == b""


def test_a_peer_that_refuses_for_ever_is_given_up() -> None:
    codec = Codec()
    codec.send(b"x" * 1000)
    events = codec.feed(b"-" * 10_000)
    assert events == [Signal.BROKEN]
    assert len(codec.take()) < 10_000


def test_without_acknowledgements_nothing_is_acknowledged() -> None:
    codec = Codec()
    codec.no_acks()
    assert codec.feed(b"$g#67$g#00+-") == [b"g"]
    assert codec.take() == b""


def test_an_interrupt_is_one_between_packets_only() -> None:
    codec = Codec()
    assert codec.feed(b"\x03\x03\x03") == [Signal.INTERRUPT]
    assert codec.feed(packet(b"X0,1:\x03") + b"\x03") == [b"X0,1:\x03", Signal.INTERRUPT]


def test_a_packet_that_never_ends_takes_no_memory() -> None:
    codec = Codec()
    codec.feed(b"$")
    for _ in range(40):
        assert codec.feed(b"A" * PACKET_MAX) == []
    assert len(codec._body or b"") <= PACKET_MAX
    assert codec.feed(b"#00$g#67") == [b"g"]


@given(st.lists(st.binary(max_size=60), max_size=8), st.integers(1, 7))
def test_packets_arrive_however_they_are_cut(bodies: list[bytes], step: int) -> None:
    escaped = [b"".join(b"}%c" % (b ^ 0x20) if b in b"#$}*" else b"%c" % b for b in body) for body in bodies]
    stream = b"+".join(packet(body) for body in escaped)
    codec = Codec()
    found = []
    for at in range(0, len(stream), step):
        found += codec.feed(stream[at : at + step])
    assert found == bodies
    assert codec.take() == b"+" * len(bodies)


@given(st.lists(st.tuples(st.integers(0, 255), st.integers(1, 300)), max_size=12))
def test_a_reply_is_what_a_debugger_reads(runs: list[tuple[int, int]]) -> None:
    payload = b"".join(bytes([byte]) * count for byte, count in runs)
    framed = frame(payload)
    body, _, check = framed[1:].rpartition(b"#")
    assert framed[:1] == b"$"
    assert int(check, 16) == sum(body) & 0xFF
    assert not {0x23, 0x24} & set(body)
    assert expand(body) == payload


def test_runs_are_short() -> None:
    assert len(frame(b"0" * 10_000)) < 400


@given(st.lists(st.binary(max_size=200), max_size=20))
def test_garbage_raises_nothing_and_keeps_nothing(chunks: list[bytes]) -> None:
    codec = Codec()
    for chunk in chunks:
        events = codec.feed(chunk)
        assert len(events) <= len(chunk)
        assert len(codec.take()) <= len(chunk)
    assert len(codec._body or b"") <= sum(map(len, chunks))
    expand(b"".join(chunks))


@given(st.text("$#}*+-\x03gmOK0123456789abcdef", max_size=300))
def test_garbage_of_the_protocols_own_bytes(text: str) -> None:
    codec = Codec()
    codec.send(b"OK")
    codec.feed(text.encode("latin-1"))
    codec.take()
