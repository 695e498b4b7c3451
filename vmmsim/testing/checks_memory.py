"""Checks: memory that comes and goes, code that changes, bytes that both sides share."""

from __future__ import annotations

from ..backends.base import Backend
from ..exits import FetchUnmapped, Halt, MmioRead, MmioWrite
from .bench import CODE, DATA, HOLE, Bench
from .checks import per_mode, registry

__all__ = ["CHECKS"]

CHECKS, check = registry()

_LOAD = bytes.fromhex("8b06")  # mov eax, [esi] (rsi)
_STORE = bytes.fromhex("8906")  # mov [esi], eax


@per_mode(CHECKS, "p32", "l64", "l64u")
def a_region_added_becomes_memory(backend: Backend, mode: str) -> None:
    """A hole exits, then memory is added to the stopped machine: no exit any more."""
    with Bench(backend, mode, _LOAD + _LOAD, regs={"rsi": HOLE}) as bench:
        exit = bench.expect(MmioRead)
        assert isinstance(exit, MmioRead)
        exit.reply(1)
        assert bench.vcpu.registers().rax == 1
        bench.memory.add(HOLE, 0x1000)
        bench.memory.write_int(HOLE, 4, 0x12345678)
        end = bench.run()
        assert not isinstance(end, MmioRead), end.describe()
        assert bench.vcpu.registers().rax == 0x12345678


@per_mode(CHECKS, "p32", "l64", "l64u")
def a_region_removed_becomes_mmio(backend: Backend, mode: str) -> None:
    """Memory that the guest used is taken away from the stopped machine: accesses exit."""
    code = _STORE + b"\xe6\x80" + _LOAD + _STORE
    with Bench(backend, mode, code, regs={"rsi": HOLE, "rax": 0x55}) as bench:
        region = bench.memory.add(HOLE, 0x1000)
        bench.run()
        assert bench.memory.read_int(HOLE, 4) == 0x55
        bench.memory.remove(region)
        exit = bench.expect(MmioRead)
        assert isinstance(exit, MmioRead)
        assert (exit.address, exit.size) == (HOLE, 4), exit.describe()
        exit.reply(0x66)
        assert bench.expect(MmioWrite) == MmioWrite(HOLE, 4, 0x66)


@check
def code_in_a_region_that_is_removed(backend: Backend) -> None:
    """Code that ran is gone with its region: the fetch fails, nothing cached runs on."""
    # call eax; hlt; the called code is inc ebx; ret
    with Bench(backend, "p32", bytes.fromhex("ffd0f4"), regs={"rax": HOLE}) as bench:
        region = bench.memory.add(HOLE, 0x1000)
        bench.memory.write(HOLE, bytes.fromhex("43c3"))
        bench.expect(Halt)
        bench.memory.remove(region)
        bench.set(rip=CODE)
        exit = bench.expect(FetchUnmapped)
        assert isinstance(exit, FetchUnmapped)
        assert exit.address == HOLE
        assert bench.vcpu.registers().rbx == 1


@check
def many_regions_come_and_go(backend: Backend) -> None:
    """A page added, used and removed 100 times: each time fresh zeros."""
    with Bench(backend, "p32", _LOAD + bytes.fromhex("c70601000000"), regs={"rsi": HOLE}) as bench:
        for number in range(100):
            region = bench.memory.add(HOLE, 0x1000)
            bench.expect(Halt)
            assert bench.vcpu.registers().rax == 0, f"round {number}: stale memory"
            assert bench.memory.read_int(HOLE, 4) == 1
            bench.memory.remove(region)
            bench.set(rip=CODE, rax=7)


@check
def memory_high_above(backend: Backend) -> None:
    """RAM at 1 GiB below 4 GiB and a second region behind it are one memory to the guest."""
    at = 0xC0000000
    with Bench(backend, "p32", _STORE + _LOAD, regs={"rsi": at + 0xFFE, "rax": 0x04030201}) as bench:
        bench.memory.add(at, 0x1000)
        bench.memory.add(at + 0x1000, 0x1000)
        bench.expect(Halt)
        assert bench.memory.read(at + 0xFFE, 4) == bytes([1, 2, 3, 4])
        assert bench.vcpu.registers().rax == 0x04030201


@check
def memory_beyond_4_gib(backend: Backend) -> None:
    """RAM at 2**39 is reached through the guest's page tables."""
    at = 1 << 39
    if backend.capabilities.gpa_bits <= 39:
        at = 1 << 32
    with Bench(
        backend, "l64", bytes.fromhex("488906488b1e"), regs={"rsi": 0xFFC00000, "rax": 0x1122334455667788}
    ) as bench:
        bench.memory.add(at, 0x200000)
        # Map the 2 MiB page at linear FFC00000 there: PDE 510 of the fourth page directory.
        state = bench.vcpu.state()
        pml4 = state.cr3 & ~0xFFF
        pdpt = bench.memory.read_int(pml4, 8) & ~0xFFF
        directory = bench.memory.read_int(pdpt + 3 * 8, 8) & ~0xFFF
        entry = bench.memory.read_int(directory + 510 * 8, 8)
        bench.memory.write_int(directory + 510 * 8, 8, at | entry & 0xFFF)
        bench.expect(Halt)
        assert bench.memory.read_int(at, 8) == 0x1122334455667788
        assert bench.vcpu.registers().rbx == 0x1122334455667788


@per_mode(CHECKS, "p32", "l64", "l64u")
def host_writes_to_code_take_effect(backend: Backend, mode: str) -> None:
    """Code that the guest has run is changed by the host: the new code runs."""
    # mov al, 1; out 0x80, al
    with Bench(backend, mode, bytes.fromhex("b001e680"), end=False) as bench:
        for value in (1, 2, 3, 250):
            bench.memory.write(CODE + 1, bytes([value]))
            bench.set(rip=CODE)
            exit = bench.run()
            assert getattr(exit, "value", None) == value, f"expected {value}: {exit.describe()}"


@per_mode(CHECKS, "real", "p32", "l64", "l64u")
def self_modifying_code(backend: Backend, mode: str) -> None:
    """A store into the instructions just ahead is seen by them (SDM vol. 3, 11.6)."""
    # l: inc byte [imm]; mov al, 0; out 0x80, al; jmp l, where imm is the byte of the MOV.
    store = {
        "real": "fe060510",  # inc byte [0x1005]
        "p32": "fe0507100000",  # inc byte [0x1007]
        "l64": "fe042508100000",  # inc byte [0x1008]
    }["l64" if mode == "l64u" else mode]
    body = store + "b000" + "e680"
    back = f"{256 - len(bytes.fromhex(body)) - 2:02x}"
    with Bench(backend, mode, bytes.fromhex(body + "eb" + back), end=False) as bench:
        for wanted in range(1, 6):
            exit = bench.run()
            assert getattr(exit, "value", None) == wanted, f"round {wanted}: {exit.describe()}"


@check
def the_guests_stores_are_in_the_hosts_buffer(backend: Backend) -> None:
    """A region's buffer is the guest's memory itself, both ways, without a copy."""
    with Bench(backend, "p32", _LOAD + bytes.fromhex("408906"), regs={"rsi": DATA}) as bench:
        region = bench.memory.region_at(DATA)
        assert region is not None
        region.buffer[DATA] = 41
        bench.expect(Halt)
        assert region.buffer[DATA] == 42
