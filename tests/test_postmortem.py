"""The post-mortem, exit codes, and the search for the instruction behind an exit."""

from __future__ import annotations

import pytest

from vmmsim import DeviceError, Machine, budget
from vmmsim.disasm import CodeReader, ExitLocator
from vmmsim.exits import (
    EXITS,
    Access,
    BudgetSpent,
    Cancelled,
    Exit,
    FetchUnmapped,
    GuestException,
    GuestExit,
    Halt,
    MmioRead,
    PortWrite,
    Refused,
    Shutdown,
    Unsupported,
)
from vmmsim.loaders import load_bytes
from vmmsim.outcome import exit_code, outcome
from vmmsim.postmortem import hints, postmortem

SAMPLES: dict[type[Exit], tuple[Exit, int, bool]] = {
    Halt: (Halt(), 0, False),
    Shutdown: (Shutdown(), 120, True),
    FetchUnmapped: (FetchUnmapped(0x5000), 121, True),
    GuestException: (GuestException(13, 0), 121, True),
    Refused: (Refused("no"), 121, True),
    Unsupported: (Unsupported(99), 121, True),
    GuestExit: (GuestExit(5), 5, False),
    Cancelled: (Cancelled(), 130, False),
    BudgetSpent: (BudgetSpent("exits", 5), 124, True),
}


@pytest.mark.parametrize("cls", EXITS)
def test_each_exit_has_its_code(cls: type[Exit]) -> None:
    exit, code, abnormal = SAMPLES.get(cls, (PortWrite(0, 1, 0), 121, True))

    assert exit_code(exit) == code
    assert outcome(exit).abnormal == abnormal


def test_a_triple_fault_is_never_success() -> None:
    assert exit_code(Shutdown()) != 0
    assert exit_code(Shutdown("#UD")) != 0


@pytest.mark.parametrize(("code", "becomes"), [(0, 0), (119, 119), (120, 119), (255, 119)])
def test_the_guests_code(code: int, becomes: int) -> None:
    result = outcome(GuestExit(code))

    assert result.code == becomes
    assert (str(code) in result.note) == (code != becomes)


def machine(code: str, mode: str = "real", **arguments: object) -> Machine:
    made = Machine(backend="unicorn", memory=1 << 20, **arguments)  # type: ignore[arg-type]
    made.load(load_bytes(bytes.fromhex(code), load_address=0x7C00, mode=mode))
    return made


@pytest.mark.unicorn
def test_the_last_32_exits_with_device_and_number() -> None:
    # mov al,'A'; 40 times: out 0xe9, al; then int3 in p32 without an IDT
    with machine("b041" + "e6e9" * 40 + "0f0b", "p32") as m:
        end = m.run()
        text = postmortem(m, end)

    assert isinstance(end, Shutdown)
    assert "last exits 32 of 40" in text
    assert "      9 write 1 port 0x00e9 = 0x41  debug-console" in text
    assert "     40 write 1" in text
    assert "      8 write" not in text


@pytest.mark.unicorn
def test_a_device_that_raises_is_named_with_access_and_rip() -> None:
    class Broken:
        widths = frozenset({1})

        def read(self, offset: int, size: int) -> int:
            raise ValueError("out of ink")

        def write(self, offset: int, size: int, value: int) -> None:
            raise ValueError("out of paper")

    with machine("e477f4") as m:
        m.attach_port(0x77, 1, Broken(), "printer")
        with pytest.raises(DeviceError) as caught:
            m.run()
        text = postmortem(m, caught.value)

    assert "device 'printer' raised ValueError" in text
    assert "a 1-byte read at port 0x0077" in text
    assert "out of ink" in text
    assert "the error is in the device model" in text
    assert "registers" in text


@pytest.mark.unicorn
def test_a_spinning_guest_without_exits_is_told_from_one_that_polls() -> None:
    with machine("ebfe") as m:
        spun = m.run(budget=budget.insns(100))
        assert "no exit at all" in " ".join(hints(m, spun, m.vcpu.state()))
    # again: in al, 0x99; jmp again
    with machine("e499ebfc") as m:
        polled = m.run(budget=budget.exits(50))
        assert "reads port 0x99 again and again" in " ".join(hints(m, polled, m.vcpu.state()))
        # Nothing of KVM's is named where KVM has none.
        assert f"exit       budget on {m.backend.provenance}" in postmortem(m, polled).splitlines()


@pytest.mark.unicorn
def test_a_start_at_nothing_is_asked_about() -> None:
    with machine("f4") as m:
        state = m.vcpu.state()
        assert "was anything loaded" not in " ".join(hints(m, Shutdown(), state))
        state.rip = 0
        assert "was anything loaded" in " ".join(hints(m, Shutdown(), state))


@pytest.mark.unicorn
def test_rip_outside_memory_is_said_and_nothing_raises() -> None:
    with machine("ea00000001") as m:
        end = m.run()
        text = postmortem(m, end)

    assert isinstance(end, FetchUnmapped)
    assert "0x1000: no memory here" in text


# The instruction behind an exit.


def behind(code: str, mode: str, *, learn: bool, **registers: int) -> list[str | None]:
    """What the locator says of each exit of `code`."""
    found: list[str | None] = []
    with machine(code, mode, extra_devices=("scratch",)) as m:
        for name, value in registers.items():
            setattr(m.cpu, name, value)
        locator = ExitLocator(m.memory)
        if learn:
            locator.learn(m.vcpu.state().linear_rip)
        while isinstance(exit := m.step_exit(), Access):
            insn = locator.instruction(m.vcpu.state(), exit)
            found.append(insn.text if insn else None)
            m.answer(exit)
    return found


@pytest.mark.unicorn
@pytest.mark.parametrize(
    ("code", "mode", "registers", "expected"),
    [
        ("a20010f4", "real", {}, ["mov byte ptr [0x1000], al"]),
        ("e6e9f4", "real", {}, ["out 0xe9, al"]),
        ("eef4", "real", {"rdx": 0xE9}, ["out dx, al"]),
        ("8807f4", "real", {"rbx": 0x1020}, ["mov byte ptr [bx], al"]),
        ("c605201000004bf4", "p32", {}, ["mov byte ptr [0x1020], 0x4b"]),
        ("898b00000d00f4", "p32", {"rbx": 8}, ["mov dword ptr [ebx + 0xd0000], ecx"]),
        ("498906f4", "l64", {"r14": 0xD0000}, ["mov qword ptr [r14], rax"]),
        ("4288842200000d00f4", "l64", {"rdx": 2, "r12": 1}, ["mov byte ptr [rdx + r12 + 0xd0000], al"]),
    ],
)
@pytest.mark.parametrize("learn", [True, False], ids=["from the entry", "by the operand"])
def test_a_write_shows_the_instruction_before_rip(
    code: str, mode: str, registers: dict[str, int], expected: list[str], learn: bool
) -> None:
    assert behind(code, mode, learn=learn, **registers) == expected


@pytest.mark.unicorn
def test_a_repeated_store_shows_itself_for_each_element() -> None:
    # mov ecx, 3; mov edi, 0xd0000; rep stosb; hlt
    found = behind("b903000000bf00000d00f3aaf4", "p32", learn=True)

    assert found == ["rep stosb byte ptr es:[edi], al"] * 3


@pytest.mark.unicorn
def test_no_guess_where_nothing_fits() -> None:
    with machine("f4") as m:
        locator = ExitLocator(m.memory)
        assert locator.instruction(m.vcpu.state(), PortWrite(0x3F8, 1, 65)) is None
        read = MmioRead(0x1000, 1)
        assert locator.instruction(m.vcpu.state(), read) is None


@pytest.mark.unicorn
def test_code_is_read_up_to_the_end_of_memory() -> None:
    with machine("f4") as m:
        state = m.vcpu.state()
        assert CodeReader(m.memory).read(state, 0x0FFE, 16) == bytes(2)
        assert CodeReader(m.memory).read(state, 0x1000, 16) == b""


@pytest.mark.unicorn
@pytest.mark.parametrize(
    ("code", "mode", "text", "repeats"),
    [
        ("f2a5", "l64", "repne movsd dword ptr [rdi], dword ptr [rsi]", True),
        ("f3f2a5", "p32", "repne movsd dword ptr es:[edi], dword ptr [esi]", True),
        ("f266a5", "real", "repne movsd dword ptr es:[di], dword ptr [si]", True),
        ("f3a5", "l64", "rep movsd dword ptr [rdi], dword ptr [rsi]", True),
        ("f0f20fb10b", "l64", "lock cmpxchg dword ptr [rbx], ecx", False),
        ("f0f30fb10b", "p32", "lock cmpxchg dword ptr [ebx], ecx", False),
        ("f20f10c0", "l64", "movsd xmm0, xmm0", False),
        ("f390", "l64", "pause", False),
    ],
)
def test_the_text_has_the_prefixes_that_the_cpu_obeys(code: str, mode: str, text: str, repeats: bool) -> None:
    """capstone 5 leaves some out: SDM vol. 2, REP: F2 repeats MOVS as F3 does."""
    with machine(code, mode) as m:
        state = m.vcpu.state()
        insn = CodeReader(m.memory).decode(state, state.linear_rip)[0]

    assert insn.code.hex() == code
    assert insn.text == text
    assert insn.repeats == repeats
