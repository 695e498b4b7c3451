"""The exit values: a closed table, one answer for each read, nothing that can be misread."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmmsim import exits
from vmmsim.errors import UsageError
from vmmsim.exits import ACCESS_EXITS, EXITS, Exit, MmioRead, MmioWrite, PortRead, PortWrite, ReadAccess

READS = st.sampled_from([PortRead, MmioRead])
WRITES = st.sampled_from([PortWrite, MmioWrite])
SIZES = st.integers(1, 8)


def test_the_table_is_closed() -> None:
    concrete = {
        cls
        for cls in vars(exits).values()
        if isinstance(cls, type) and issubclass(cls, Exit) and cls.kind != "exit"
    }
    assert concrete == set(EXITS)
    assert len({cls.kind for cls in EXITS}) == len(EXITS)


@pytest.mark.parametrize("cls", EXITS, ids=lambda cls: cls.kind)
def test_every_exit_says_what_kvm_calls_it_and_what_it_means(cls: type[Exit]) -> None:
    assert cls.kvm
    assert cls.__doc__
    assert cls.kind in exits.__dict__ or cls.kind.islower()


def test_access_exits_are_the_four_ways_to_a_device() -> None:
    assert [(c.space, c.is_write) for c in ACCESS_EXITS] == [
        ("port", False),
        ("port", True),
        ("mmio", False),
        ("mmio", True),
    ]


@given(READS, st.integers(0, 2**48), SIZES, st.data())
def test_a_read_has_one_answer_that_fits(
    cls: type[ReadAccess], address: int, size: int, data: st.DataObject
) -> None:
    exit = cls(address, size)
    assert not exit.answered
    with pytest.raises(UsageError, match="has no value yet"):
        _ = exit.value
    value = data.draw(st.integers(0, 2 ** (8 * size) - 1))
    exit.reply(value)
    assert exit.answered
    assert exit.value == value
    with pytest.raises(UsageError, match="answered already"):
        exit.reply(value)
    assert exit.value == value


@given(
    READS, SIZES, st.one_of(st.integers(max_value=-1), st.integers(0, 2**70), st.none(), st.text(max_size=3))
)
def test_an_answer_that_does_not_fit_is_refused_and_leaves_the_read_open(
    cls: type[ReadAccess], size: int, value: object
) -> None:
    exit = cls(0x10, size)
    if isinstance(value, int) and 0 <= value < 2 ** (8 * size):
        return
    with pytest.raises(UsageError, match="does not answer"):
        exit.reply(value)  # type: ignore[arg-type]
    assert not exit.answered
    exit.reply(0)


@given(WRITES, st.integers(0, 2**48), SIZES, st.data())
def test_a_write_is_told_once_that_it_is_dealt_with(
    cls: type[PortWrite] | type[MmioWrite], address: int, size: int, data: st.DataObject
) -> None:
    exit = cls(address, size, data.draw(st.integers(0, 2 ** (8 * size) - 1)))
    assert not exit.answered
    exit.reply()
    assert exit.answered
    with pytest.raises(UsageError, match="answered already"):
        exit.reply()


@given(st.sampled_from(ACCESS_EXITS), st.integers(0, 2**48), SIZES, st.integers(0, 255))
def test_describe_names_the_place_the_size_and_the_value(
    cls: type[exits.Access], address: int, size: int, value: int
) -> None:
    exit = cls(address, size, value) if cls.is_write else cls(address, size)  # type: ignore[call-arg]
    text = exit.describe()
    assert f"{address:x}" in text
    assert f" {size} " in text
    assert text.endswith(f"= 0x{value:0{2 * size}x}" if cls.is_write else "= ?")


def test_exits_compare_by_value_and_a_shutdown_by_kind_alone() -> None:
    assert PortWrite(1, 1, 2) == PortWrite(1, 1, 2)
    assert PortWrite(1, 1, 2) != MmioWrite(1, 1, 2)
    assert exits.Halt() == exits.Halt()
    assert exits.Shutdown("one") == exits.Shutdown("another")
    assert exits.Shutdown() != exits.Halt()


def test_exits_are_plain_values_for_a_trace() -> None:
    assert msgspec.to_builtins(PortWrite(0x3F8, 1, 65)) == {
        "address": 0x3F8,
        "size": 1,
        "value": 65,
        "_done": False,
    }
    assert exits.Refused("no x87", b"\xd8\xc0").describe() == "refused by the host: no x87 [d8 c0]"
    assert exits.GuestException(13, 0x18).describe() == "exception #GP, error code 0x18"
