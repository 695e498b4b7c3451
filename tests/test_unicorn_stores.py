"""The native engine's quick stores: a guest that changes its code executes what it has written.

The code that is changed is `mov eax, N; ret` at physical 0x20000, which a loop rewrites, calls
and adds up.
"""

from __future__ import annotations

import struct

import pytest

pytest.importorskip("unicorn")

from vmmsim.asm import assemble
from vmmsim.backends.unicorn_native import tlb
from vmmsim.backends.unicorn_native.vcpu import native_usable
from vmmsim.budget import seconds
from vmmsim.cpu.modes import setup
from vmmsim.exits import Halt
from vmmsim.machine import Machine
from vmmsim.testing.slow import time_limit

pytest.importorskip("keystone", reason="keystone-engine has no wheel for this platform")
pytestmark = [
    pytest.mark.unicorn,
    pytest.mark.skipif(not native_usable()[0], reason=f"no native engine: {native_usable()[1]}"),
]

CODE, PAGE, ALIAS, TABLES = 0x4000, 0x20000, 0x90000, 0x80000
PRESENT_WRITABLE, NX = 3, 1 << 63
#: RBX is the sum. What stands at the start fills the TLB with entries for data.
LOOP = """
xor ebx, ebx
mov ecx, 300
{before}
again:
mov dword ptr [{store} + 1], ecx
call {page}
add rbx, rax
dec ecx
jnz again
hlt
"""


@pytest.fixture(autouse=True)
def native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMMSIM_UNICORN", "native")


def paged(rights: int) -> Machine:
    """1 MiB mapped onto itself, but ALIAS onto PAGE, in 64-bit mode."""
    machine = Machine(backend="unicorn", memory=1 << 20)
    leaves = [page << 12 | PRESENT_WRITABLE for page in range(256)]
    leaves[ALIAS >> 12] = PAGE | rights
    for level, entries in enumerate(([TABLES + 0x1007], [TABLES + 0x2007], [TABLES + 0x3007], leaves)):
        machine.memory.write(TABLES + 0x1000 * level, struct.pack(f"<{len(entries)}Q", *entries))
    state = setup("l64", CODE, 1 << 20).state
    state.cr3 = TABLES
    state.efer |= 1 << 11
    machine.memory.write(PAGE, bytes.fromhex("b800000000c3"))
    machine.vcpu.set_state(state)
    return machine


def total(machine: Machine, code: str) -> int:
    machine.memory.write(CODE, assemble(code, 64, CODE))
    assert machine.run(budget=seconds(time_limit(30))) == Halt()
    return machine.cpu.rbx


@pytest.mark.parametrize(
    "before", ["", "mov rdx, {page}\nmov rdx, [rdx]", "mov [{store} + 16], ecx", "call {page}"]
)
@pytest.mark.parametrize(
    ("store", "rights"),
    [(PAGE, PRESENT_WRITABLE), (ALIAS, PRESENT_WRITABLE), (ALIAS, PRESENT_WRITABLE | NX)],
    ids=["by its own address", "by another address", "by another address, not executable"],
)
def test_rewritten_code_is_what_executes(store: int, rights: int, before: str) -> None:
    with paged(rights) as machine:
        code = LOOP.format(before=before, store=store, page=PAGE).format(store=store, page=PAGE)

        assert total(machine, code) == sum(range(301))


def test_code_that_rewrites_the_instruction_behind_it_executes_the_new_one() -> None:
    with paged(PRESENT_WRITABLE) as machine:
        code = """
            xor ebx, ebx
            mov ecx, 100
        again:
            mov dword ptr [rip + 1], ecx
            mov eax, 0x55555555
            add rbx, rax
            dec ecx
            jnz again
            hlt
        """

        assert total(machine, code) == sum(range(101))


def test_a_page_that_the_host_rewrites_is_executed_anew() -> None:
    with paged(PRESENT_WRITABLE) as machine:
        for value in range(1, 5):
            machine.memory.write(PAGE, b"\xb8" + value.to_bytes(4, "little") + b"\xc3")
            machine.cpu.rip = CODE
            assert total(machine, f"call {PAGE}\nmov rbx, rax\nmov [{PAGE + 64}], ecx\nhlt") == value


def test_without_its_symbols_stores_are_slow_and_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tlb, "symbol", lambda name: None)
    with paged(PRESENT_WRITABLE) as machine:
        assert machine.vcpu._guard is None  # type: ignore[attr-defined]
        assert total(machine, LOOP.format(before="", store=PAGE, page=PAGE)) == sum(range(301))


def test_it_is_in_use_where_the_library_is_the_one_that_is_known() -> None:
    import unicorn

    if unicorn.__version__ != "2.1.4":
        pytest.skip("another build of Unicorn may be laid out in another way")
    with paged(PRESENT_WRITABLE) as machine:
        assert machine.vcpu._guard is not None  # type: ignore[attr-defined]
