"""ACPI's fixed hardware, fw_cfg, port 80h, port CF9h, kvm-unit-tests' testdev."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmmsim.bus import Bus, Device
from vmmsim.clock import ExitClock
from vmmsim.devices.acpi_pm import AcpiPm, AcpiPmState
from vmmsim.devices.base import IrqLine
from vmmsim.devices.fw_cfg import FwCfg, FwCfgState, RamDma, legacy_items
from vmmsim.devices.post_code import PostCode, PostCodeState
from vmmsim.devices.reset_control import ResetControl, ResetControlState
from vmmsim.devices.testdev import (
    TestDev,
    TestDevIrqs,
    TestDevIrqsState,
    TestDevMemory,
    TestDevMemoryState,
    TestDevState,
)
from vmmsim.errors import UsageError
from vmmsim.memory import GuestMemory
from vmmsim.testing import run_device_conformance

SECOND = 1_000_000_000


def ignore(*_: Any) -> None:
    pass


def fw_cfg_with_dma(state: FwCfgState | None = None) -> FwCfg:
    memory = GuestMemory()
    memory.add(0, 0x10000)
    return FwCfg({"a": b"abc"}, legacy=legacy_items(memory=1 << 26), memory=memory, state=state)


FACTORIES: dict[str, Callable[..., Device]] = {
    "acpi_pm": lambda state=None: AcpiPm(ExitClock(), IrqLine(), on_power_off=ignore, state=state),
    "fw_cfg": lambda state=None: FwCfg({"a": b"abc", "etc/b": bytes(300)}, state=state),
    "fw_cfg_dma": fw_cfg_with_dma,
    "post_code": lambda state=None: PostCode(state=state),
    "reset_control": lambda state=None: ResetControl(ignore, state=state),
    "testdev": lambda state=None: TestDev(state=state),
    "testdev_irqs": lambda state=None: TestDevIrqs([IrqLine() for _ in range(16)], state=state),
    "testdev_memory": lambda state=None: TestDevMemory(state=state),
}


@pytest.mark.parametrize("name", FACTORIES)
def test_every_device_passes_the_conformance_suite(name: str) -> None:
    run_device_conformance(FACTORIES[name])


@pytest.mark.parametrize("name", FACTORIES)
@given(
    st.lists(
        st.tuples(
            st.booleans(),
            st.integers(-2, 80) | st.integers(0xFFF0, 0x10010),
            st.sampled_from([1, 2, 4, 8]),
            st.integers(0, (1 << 64) - 1),
        ),
        max_size=30,
    )
)
def test_no_access_of_any_offset_or_width_raises_or_answers_too_much(name: str, accesses: list) -> None:
    device: Any = FACTORIES[name]()
    for is_write, offset, size, value in accesses:
        if is_write:
            device.write(offset, size, value)
        else:
            assert 0 <= device.read(offset, size) < 1 << 8 * size
    state = device.state()
    assert msgspec.json.decode(msgspec.json.encode(state), type=type(state)) == state
    assert FACTORIES[name](state).state() == state  # type: ignore[attr-defined]


# ACPI.

STS, EN, CNT, TMR = 0, 2, 4, 8
TMR_STS = TMR_EN = 0x0001
PWRBTN = 0x0100


class Pm:
    """AcpiPm on a clock that the test moves."""

    def __init__(self, state: AcpiPmState | None = None, now: int = 0) -> None:
        self.clock = ExitClock()
        self.clock.set_now(now)
        self.line = IrqLine()
        self.calls: list[object] = []
        self.pm = AcpiPm(
            self.clock,
            self.line,
            on_power_off=lambda: self.calls.append("off"),
            on_sleep=self.calls.append,
            state=state,
        )

    def to(self, now: int) -> None:
        self.clock.skip_to(now)
        self.clock.run_due()


@pytest.mark.parametrize(
    ("now", "ticks"),
    [(0, 0), (279, 0), (280, 1), (SECOND, 3_579_545), (5 * SECOND, 17_897_725 - (1 << 24))],
)
def test_the_pm_timer_counts_at_3579545_hz_in_24_bits(now: int, ticks: int) -> None:
    pm = Pm()
    pm.clock.skip_to(now)

    assert pm.pm.read(TMR, 4) == ticks
    assert [pm.pm.read(TMR + n, 1) for n in range(4)] == list(ticks.to_bytes(4, "little"))


def test_the_timer_event_comes_when_the_top_bit_changes() -> None:
    pm = Pm()
    pm.pm.write(EN, 2, TMR_EN)
    # 2**23 ticks are 2.343484437 s and a fraction.
    pm.to(2_343_484_437)
    assert not pm.line.level
    pm.to(2_343_484_438)
    assert pm.pm.read(TMR, 4) == 1 << 23
    assert pm.line.level
    pm.pm.write(STS, 2, TMR_STS)
    assert not pm.line.level
    pm.to(4_686_968_876)
    assert pm.pm.read(TMR, 4) == 0
    assert pm.line.level


def test_the_timer_status_is_set_without_its_interrupt_too() -> None:
    pm = Pm()
    pm.clock.skip_to(3 * SECOND)

    assert pm.clock.deadline is None
    assert pm.pm.read(STS, 2) == TMR_STS
    assert not pm.line.level
    pm.pm.write(EN, 2, TMR_EN)
    assert pm.line.level


def test_timer_events_that_were_missed_are_one_event() -> None:
    pm = Pm()
    pm.pm.write(EN, 2, TMR_EN)
    pm.to(1000 * SECOND)
    assert pm.line.level
    pm.pm.write(STS, 2, TMR_STS)
    pm.clock.run_due()

    assert not pm.line.level
    assert pm.clock.deadline is not None
    assert pm.clock.deadline > pm.clock.now()


def test_the_timer_is_not_armed_while_nobody_waits_for_it() -> None:
    pm = Pm()
    pm.pm.write(EN, 2, TMR_EN)
    assert pm.clock.deadline is not None
    pm.pm.write(EN, 2, 0)

    assert pm.clock.deadline is None


def test_the_power_button_pulls_the_sci_until_its_status_is_cleared() -> None:
    pm = Pm()
    pm.pm.press_power()
    assert pm.pm.read(STS, 2) == PWRBTN
    assert not pm.line.level
    pm.pm.write(EN, 2, PWRBTN)
    assert pm.line.level
    pm.pm.write(STS, 2, 0)  # writing zeros clears nothing
    assert pm.line.level
    pm.pm.write(STS, 2, PWRBTN)

    assert (pm.pm.read(STS, 2), pm.line.level) == (0, False)


def test_a_byte_of_a_pm1_register_can_be_written_alone() -> None:
    pm = Pm()
    pm.pm.write(EN, 1, TMR_EN)
    pm.pm.write(EN + 1, 1, PWRBTN >> 8)
    assert pm.pm.read(EN, 2) == TMR_EN | PWRBTN
    pm.pm.press_power()
    pm.pm.write(STS + 1, 1, PWRBTN >> 8)

    assert pm.pm.read(STS, 4) == (TMR_EN | PWRBTN) << 16


def test_the_machine_is_in_acpi_mode_and_stays_there() -> None:
    pm = Pm()
    assert pm.pm.read(CNT, 2) == 0x0001
    pm.pm.write(CNT, 2, 0)

    assert pm.pm.read(CNT, 2) == 0x0001


def test_sleep_enable_with_the_type_of_s5_powers_off_and_reads_zero() -> None:
    pm = Pm()
    pm.pm.write(CNT, 2, 5 << 10)
    assert pm.calls == []
    pm.pm.write(CNT, 2, 5 << 10 | 0x2000)

    assert pm.calls == ["off"]
    assert pm.pm.read(CNT, 2) == 5 << 10 | 1


def test_sleep_enable_written_with_the_high_byte_alone_powers_off() -> None:
    pm = Pm()
    pm.pm.write(CNT + 1, 1, (5 << 10 | 0x2000) >> 8)

    assert pm.calls == ["off"]


def test_another_sleep_type_sleeps_and_the_guest_is_told_that_it_woke() -> None:
    pm = Pm()
    pm.pm.write(CNT, 2, 1 << 10 | 0x2000)
    assert pm.calls == [1]
    pm.pm.wake()

    assert pm.pm.read(STS, 2) == 0x8000
    assert not pm.line.level


def test_nothing_sleeps_where_nobody_listens() -> None:
    pm = AcpiPm(ExitClock(), on_power_off=lambda: pytest.fail("that was not S5"))
    pm.write(CNT, 2, 1 << 10 | 0x2000)


def test_restoring_raises_a_pending_sci_again_and_does_not_power_off_again() -> None:
    pm = Pm()
    pm.pm.write(EN, 2, PWRBTN)
    pm.pm.press_power()
    pm.pm.write(CNT, 2, 5 << 10 | 0x2000)
    second = Pm(pm.pm.state(), now=10)

    assert second.line.level
    assert second.calls == []


@pytest.mark.parametrize(
    "state",
    [AcpiPmState(status=0x40), AcpiPmState(enable=0x02), AcpiPmState(control=0x2000), AcpiPmState(halves=-1)],
)
def test_acpi_states_that_cannot_be_are_refused(state: AcpiPmState) -> None:
    with pytest.raises(UsageError, match="acpi pm"):
        Pm(state)


@given(
    st.lists(
        st.one_of(
            st.tuples(
                st.just("write"), st.integers(0, 11), st.sampled_from([1, 2, 4]), st.integers(0, 0xFFFF)
            ),
            st.tuples(st.just("read"), st.integers(0, 11), st.sampled_from([1, 2, 4]), st.just(0)),
            st.tuples(st.just("press"), st.just(0), st.just(0), st.just(0)),
            st.tuples(st.just("time"), st.just(0), st.just(0), st.integers(0, 5 * SECOND)),
        ),
        max_size=30,
    ),
    st.integers(0, 30),
)
def test_a_restored_acpi_pm_has_the_same_future(steps: list, cut: int) -> None:
    def play(pm: Pm, steps: list) -> list:
        seen: list = []
        for verb, offset, size, value in steps:
            if verb == "write":
                pm.pm.write(offset, size, value)
            elif verb == "read":
                seen.append(pm.pm.read(offset, size))
            elif verb == "press":
                pm.pm.press_power()
            else:
                pm.to(pm.clock.now() + value)
            seen.append((pm.line.level, pm.clock.deadline))
        return seen

    first = Pm()
    play(first, steps[:cut])
    second = Pm(first.pm.state(), now=first.clock.now())

    assert second.line.level == first.line.level
    assert second.clock.deadline == first.clock.deadline
    assert play(first, steps[cut:]) == play(second, steps[cut:])
    assert first.pm.state() == second.pm.state()


# fw_cfg.

FILES = {"etc/e820": b"\x01" * 20, "bootorder": b"/rom@genroms/x\0", "opt/org.example/t": b"text"}


def select(device: FwCfg, key: int) -> None:
    device.write(0, 2, key)


def data(device: FwCfg, count: int) -> bytes:
    return bytes(device.read(1, 1) for _ in range(count))


def test_the_signature_and_the_revision_say_what_is_there() -> None:
    device = FwCfg(FILES)
    assert data(device, 6) == b"QEMU\0\0"
    select(device, 1)
    assert data(device, 5) == b"\1\0\0\0\0"

    assert device.read(4, 4) == 0xFFFFFFFF  # no DMA address register


def test_the_directory_is_sorted_by_name_and_its_keys_lead_to_the_files() -> None:
    device = FwCfg(FILES)
    select(device, 0x19)
    (count,) = struct.unpack(">I", data(device, 4))
    entries = [struct.unpack(">IHH56s", data(device, 64)) for _ in range(count)]

    assert [(size, name.rstrip(b"\0").decode()) for size, _, _, name in entries] == [
        (15, "bootorder"),
        (20, "etc/e820"),
        (4, "opt/org.example/t"),
    ]
    for size, key, reserved, name in entries:
        assert key >= 0x20
        assert reserved == 0
        select(device, key)
        assert data(device, size + 2) == FILES[name.rstrip(b"\0").decode()] + b"\0\0"


def test_legacy_items_are_little_endian_and_as_wide_as_qemus() -> None:
    device = FwCfg({}, legacy=legacy_items(memory=0x1_2345_6789, cpus=2, max_cpus=8, boot_menu=True))
    got = []
    for key, size in ((0x03, 8), (0x05, 2), (0x0F, 2), (0x0E, 2)):
        select(device, key)
        got.append(int.from_bytes(data(device, size), "little"))

    assert got == [0x1_2345_6789, 2, 8, 1]


def test_an_item_that_is_not_there_reads_zeros_and_the_write_channel_changes_nothing() -> None:
    device = FwCfg(FILES)
    select(device, 0x777)
    assert data(device, 3) == bytes(3)
    select(device, 0x4000)
    device.write(1, 1, 0xEE)

    assert data(device, 4) == b"QEMU"


def test_the_selector_is_sixteen_bits_wide_on_the_bus() -> None:
    bus = Bus("port", 0x10000)
    bus.attach(0x510, FwCfg.length, FwCfg(FILES, state=FwCfgState(key=0x19)))
    bus.write(0x510, 2, 0)

    assert bytes(bus.read(0x511, 1) for _ in range(4)) == b"QEMU"


class Dma:
    """fw_cfg with RAM at 0..FFFFh, and the guest's side of a transfer."""

    def __init__(self, files: dict[str, bytes] = FILES) -> None:
        self.memory = GuestMemory()
        self.memory.add(0, 0x10000)
        self.device = FwCfg(files, memory=RamDma(self.memory))

    def go(self, control: int, length: int, address: int, *, at: int = 0x1000) -> int:
        """The control field as the transfer left it."""
        self.memory.write(at, struct.pack(">IIQ", control, length, address))
        self.device.write(8, 4, int.from_bytes(at.to_bytes(4, "big"), "little"))
        return int.from_bytes(self.memory.read(at, 4), "big")


def test_dma_is_announced() -> None:
    device = Dma().device
    select(device, 1)

    assert data(device, 4) == b"\3\0\0\0"
    # The register is big-endian: its first byte is the most significant one.
    assert b"".join(device.read(at, 4).to_bytes(4, "little") for at in (4, 8)) == b"QEMU CFG"
    assert device.read(4, 8).to_bytes(8, "little") == b"QEMU CFG"


def test_dma_selects_and_reads_in_one_go_with_zeros_behind_the_end() -> None:
    dma = Dma()
    dma.memory.write(0x2000, b"\xff" * 8)

    assert dma.go(0x19 << 16 | 0x08 | 0x02, 4, 0x3000) == 0
    assert dma.memory.read(0x3000, 4) == b"\0\0\0\3"
    assert dma.go(0x08 | 0x02, 6, 0x2000) == 0
    assert dma.memory.read(0x2000, 8) == b"QEMU\0\0\xff\xff"


def test_dma_skips_and_goes_on_where_the_data_port_is() -> None:
    dma = Dma()
    assert dma.go(0x20 << 16 | 0x08 | 0x04, 5, 0) == 0
    assert data(dma.device, 2) == b"ge"
    assert dma.go(0x02, 3, 0x2000) == 0

    assert dma.memory.read(0x2000, 3) == b"nro"
    assert dma.go(0x04, 0xFFFFFFFF, 0) == 0
    assert data(dma.device, 1) == b"\0"


def test_a_dma_write_is_refused() -> None:
    dma = Dma()
    assert dma.go(0x20 << 16 | 0x08 | 0x10, 4, 0x2000) == 1
    select(dma.device, 0x20)

    assert data(dma.device, 4) == b"/rom"


def test_dma_to_where_no_memory_is_sets_the_error_bit() -> None:
    dma = Dma()

    assert dma.go(0x08 | 0x02, 4, 0x10000) == 1
    assert dma.go(0x08 | 0x02, 4, 0xFFFE) == 1
    assert dma.go(0x08 | 0x02, 4, (1 << 64) - 2) == 1
    assert dma.go(0x08 | 0x02, 0xFFFFFFFF, 0x2000) == 1


def test_dma_does_not_write_rom() -> None:
    dma = Dma()
    dma.memory.add(0x10000, 0x1000, readonly=True, name="bios")
    dma.memory.write(0x10000, b"BIOS")

    assert dma.go(0x08 | 0x02, 4, 0x10000) == 1
    assert dma.go(0x08 | 0x02, 4, 0xFFFE) == 1
    assert dma.memory.read(0xFFFE, 6) == b"\0\0BIOS"
    # A descriptor in ROM is read, but its control field cannot say how it went.
    assert dma.go(0x08 | 0x02, 4, 0x2000, at=0x10100) == 0x0A
    assert dma.memory.read(0x2000, 4) == b"QEMU"


def test_a_descriptor_where_no_memory_is_is_passed_over() -> None:
    dma = Dma()
    before = dma.memory.digest()
    dma.device.write(4, 4, 0xFFFFFFFF)
    dma.device.write(8, 4, 0xFFFFFFFF)

    assert dma.memory.digest() == before
    assert dma.device.state().dma_high == 0


def test_a_64_bit_descriptor_address_is_written_in_two_halves_or_in_one() -> None:
    dma = Dma()
    dma.memory.add(1 << 32, 0x1000)
    at = (1 << 32) + 0x10
    for write in (
        lambda: (dma.device.write(4, 4, 1 << 24), dma.device.write(8, 4, 0x10 << 24)),
        lambda: dma.device.write(4, 8, int.from_bytes(at.to_bytes(8, "big"), "little")),
    ):
        dma.memory.write(at, struct.pack(">IIQ", 0x08 | 0x02, 4, 0x2000))
        dma.memory.write(0x2000, bytes(4))
        write()

        assert dma.memory.read(0x2000, 4) == b"QEMU"
        assert dma.memory.read(at, 4) == bytes(4)


@pytest.mark.parametrize("length", [0, 1, 55])
def test_names_of_up_to_55_characters_fit_the_directory(length: int) -> None:
    if length == 0:
        with pytest.raises(UsageError, match="no name"):
            FwCfg({"": b""})
    else:
        FwCfg({"n" * length: b""})
        with pytest.raises(UsageError, match="no name"):
            FwCfg({"n" * 56: b""})


@pytest.mark.parametrize("key", [0, 1, 0x19, 0x20, 0x4003, 0x10000, -1])
def test_keys_that_are_the_devices_own_or_none_are_refused(key: int) -> None:
    with pytest.raises(UsageError, match="fw_cfg"):
        FwCfg({"a": b""}, legacy={key: b""})


@pytest.mark.parametrize(
    "state",
    [FwCfgState(key=0x10000), FwCfgState(offset=5), FwCfgState(offset=-1), FwCfgState(dma_high=1 << 32)],
)
def test_fw_cfg_states_that_cannot_be_are_refused(state: FwCfgState) -> None:
    with pytest.raises(UsageError, match="fw_cfg"):
        FwCfg({}, state=state)


@given(st.dictionaries(st.text("abc/.-", min_size=1, max_size=55), st.binary(max_size=50), max_size=8))
def test_a_guest_finds_every_file_by_the_directory(files: dict[str, bytes]) -> None:
    device = FwCfg(files)
    select(device, 0x19)
    (count,) = struct.unpack(">I", data(device, 4))
    found = {}
    for size, key, _, name in [struct.unpack(">IHH56s", data(device, 64)) for _ in range(count)]:
        select(device, key)
        found[name.rstrip(b"\0").decode()] = data(device, size)

    assert found == files


@given(st.integers(0, 60), st.integers(0, 60))
def test_a_restored_fw_cfg_goes_on_at_the_same_byte(before: int, after: int) -> None:
    first = FwCfg(FILES, state=FwCfgState(key=0x19))
    data(first, before)
    second = FwCfg.from_state(first.state(), files=FILES)

    assert data(first, after) == data(second, after)


RECORDED = Path(__file__).parents[2] / "shared" / "vectors" / "devices" / "pc.json"


def test_the_recorded_fw_cfg_script_of_qemu() -> None:
    if not RECORDED.exists():
        pytest.skip(f"the recorded register scripts are not here: {RECORDED}")
    # The recorded machine has DMA, one CPU and twelve files, the first of them empty.
    files = {f"file{number:02}": bytes(number) for number in range(12)}
    memory = GuestMemory()
    memory.add(0, 0x1000)
    bus = Bus("port", 0x10000)
    bus.attach(0x510, FwCfg.length, FwCfg(files, legacy=legacy_items(memory=0x1000), memory=memory))
    got, expected = [], []
    for number, (verb, port, value) in enumerate(json.loads(RECORDED.read_text())["fwcfg"]):
        if verb == "outw":
            bus.write(port, 2, value)
        else:
            assert verb == "inb"
            got.append((number, bus.read(port, 1)))
            expected.append((number, value))

    assert got == expected


# Port 80h.


def test_post_codes_are_kept_in_order_and_the_last_is_read_back() -> None:
    seen: list[int] = []
    device = PostCode(seen.append)
    assert device.read(0, 1) == 0xFF
    for code in range(300):
        device.write(0, 1, code & 0xFF)

    assert device.read(0, 1) == 299 & 0xFF
    assert device.codes == tuple(code & 0xFF for code in range(300 - 256, 300))
    assert len(seen) == 300


@pytest.mark.parametrize("codes", [(256,), (-1,), (0,) * 257])
def test_post_code_states_that_cannot_be_are_refused(codes: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="post code"):
        PostCode(state=PostCodeState(codes))


# Port CF9h.


@pytest.mark.parametrize(
    ("writes", "resets", "reads"),
    [
        ([0x06], [True], 0x02),  # as ACPI's reset register
        ([0x02, 0x06], [True], 0x02),  # as Linux's reboot=pci
        ([0x04], [False], 0x00),  # the CPU alone
        ([0x0E], [True], 0x0A),  # as EDK2: power off and on
        ([0x02, 0x00, 0xF1], [], 0x00),
    ],
)
def test_reset_control(writes: list[int], resets: list[bool], reads: int) -> None:
    seen: list[bool] = []
    device = ResetControl(seen.append)
    for value in writes:
        device.write(0, 1, value)

    assert seen == resets
    assert device.read(0, 1) == reads
    assert (
        ResetControl.from_state(device.state(), on_reset=lambda hard: pytest.fail("again")).read(0, 1)
        == reads
    )


def test_a_reset_control_state_with_the_reset_bit_is_refused() -> None:
    with pytest.raises(UsageError, match="reset control"):
        ResetControl(ignore, state=ResetControlState(4))


# kvm-unit-tests' testdev.


def test_testdev_keeps_bytes_words_and_dwords() -> None:
    device = TestDev()
    device.write(0, 4, 0x44332211)
    device.write(1, 1, 0xAA)
    device.write(2, 2, 0xCCBB)

    assert device.read(0, 4) == 0xCCBBAA11
    assert [device.read(n, 1) for n in range(4)] == [0x11, 0xAA, 0xBB, 0xCC]
    assert device.read(2, 2) == 0xCCBB


def test_the_page_flush_of_testdev_changes_nothing() -> None:
    device = TestDev(state=TestDevState(0x12345678))
    device.write(4, 4, 0x1000)

    assert (device.read(4, 4), device.read(0, 4)) == (0, 0x12345678)


def test_testdev_irqs_drive_their_lines_as_levels() -> None:
    lines = [IrqLine() for _ in range(16)]
    device = TestDevIrqs(lines)
    device.write(5, 1, 1)
    device.write(7, 1, 0x80)
    device.write(20, 1, 1)  # a port whose line is not connected
    assert [n for n, line in enumerate(lines) if line.level] == [5, 7]
    again = [IrqLine() for _ in range(24)]
    TestDevIrqs.from_state(device.state(), irqs=again)
    assert [n for n, line in enumerate(again) if line.level] == [5, 7, 20]
    device.write(5, 1, 0)

    assert [n for n, line in enumerate(lines) if line.level] == [7]


@given(
    st.lists(
        st.tuples(
            st.integers(0, 24) | st.integers(0xFFF0, 0x10000),
            st.sampled_from([1, 2, 4, 8]),
            st.integers(0, (1 << 64) - 1),
        ),
        max_size=20,
    )
)
def test_testdev_memory_is_memory(writes: list[tuple[int, int, int]]) -> None:
    device = TestDevMemory()
    model = bytearray(0x10000)
    for offset, size, value in writes:
        part = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
        device.write(offset, size, value)
        if offset + size <= len(model):
            model[offset : offset + size] = part

    assert TestDevMemory.from_state(device.state()).state() == device.state()
    for offset in (*range(32), *range(0xFFE0, 0xFFF8)):
        assert device.read(offset, 8) == int.from_bytes(model[offset : offset + 8], "little")


@pytest.mark.parametrize(
    "make",
    [
        lambda: TestDev(state=TestDevState(1 << 32)),
        lambda: TestDevIrqs([IrqLine()] * 25),
        lambda: TestDevIrqs([], state=TestDevIrqsState(1 << 24)),
        lambda: TestDevMemory(state=TestDevMemoryState(bytes(0x10001))),
    ],
    ids=["register", "lines", "levels", "memory"],
)
def test_testdevs_that_cannot_be_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(UsageError, match="testdev"):
        make()
