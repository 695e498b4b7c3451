"""CPU states that are valid in a chosen mode: what `set_state` of any backend takes."""

from __future__ import annotations

from hypothesis import strategies as st

from ...cpu.state import GPR_NAMES, CpuState, FpuState, Registers
from ...diff.case import DATA, DATA_SIZE, MODE_NAMES, STACK, base_state
from ...errors import UsageError

__all__ = ["cpu_states", "fpu_states", "registers"]

#: CF, PF, AF, ZF, SF, DF, OF.
_FLAGS = (0, 2, 4, 6, 7, 10, 11)
#: Registers that hold addresses of the bench's data, so that memory operands mostly find it.
_POINTERS = ("rbx", "rsi", "rdi", "rbp", "r13", "r14")
_SINGLES = (0, 1 << 31, 0x3F800000, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7FA00001, 1, 0x7F7FFFFF)


def _wide(mode: str) -> bool:
    if mode not in MODE_NAMES:
        raise UsageError(f"there is no mode '{mode}'", hint=f"choose from {', '.join(MODE_NAMES)}")
    return mode in ("64", "64u")


def registers(mode: str, *, pointers: bool = True) -> st.SearchStrategy[Registers]:
    """General registers and RFLAGS; RIP is 0. The stack pointer is the bench's; with `pointers` RBX,
    RSI, RDI, RBP (and R13, R14) are addresses of its data. Shrinks to zeros."""
    bits = 64 if _wide(mode) else 32
    names = GPR_NAMES if bits == 64 else GPR_NAMES[:8]
    edges = [
        v
        for n in (7, 8, 15, 16, 31, 32, 63, 64)
        if n <= bits
        for v in ((1 << n) - 1, 1 << n)
        if v < 1 << bits
    ]
    number = st.integers(0, 255) | st.sampled_from(edges) | st.integers(0, (1 << bits) - 1)
    address = st.integers(DATA + 0x200, DATA + DATA_SIZE - 0x200)
    fields = {name: address if pointers and name in _POINTERS else number for name in names}
    fields["rsp"] = st.integers(0, 7).map(lambda n: STACK - 8 * n)
    flags = st.sets(st.sampled_from(_FLAGS)).map(lambda bits: 2 | sum(1 << bit for bit in bits))
    return st.builds(Registers, **fields, rflags=flags)


def fpu_states() -> st.SearchStrategy[FpuState]:
    """x87 and SSE: a stack of some registers, all exceptions masked, any rounding, and numbers on the
    edges in XMM0 to XMM7."""
    xmm = st.lists(st.sampled_from(_SINGLES) | st.integers(0, (1 << 32) - 1), min_size=4, max_size=4).map(
        lambda parts: sum(part << 32 * i for i, part in enumerate(parts))
    )
    number = st.builds(
        lambda sign, exponent, fraction: sign << 79 | exponent << 64 | 1 << 63 | fraction,
        st.integers(0, 1), st.integers(0x3FC0, 0x4040), st.integers(0, (1 << 63) - 1),
    )  # fmt: skip
    rounding = st.integers(0, 3)

    def build(stack: list[int], values: list[int], x87: int, sse: int) -> FpuState:
        top = 8 - len(stack)
        return FpuState(
            fcw=0x37F & ~0xC00 | x87 << 10,
            fsw=(top & 7) << 11,
            ftw=sum(1 << i for i in range(top, 8)),
            mxcsr=0x1F80 | sse << 13,
            st=[*stack, *[0] * (8 - len(stack))],
            xmm=[*values, *[0] * 8],
        )

    return st.builds(
        build, st.lists(number, max_size=8), st.lists(xmm, min_size=8, max_size=8), rounding, rounding
    )


def cpu_states(mode: str, *, fpu: bool = True) -> st.SearchStrategy[CpuState]:
    """Whole states of `mode` (16, 32, 64, 64u), valid by `vmmsim.cpu.validate`: the bench's segments,
    tables and control registers, with any registers, CR2, CR8, shadow of STI and, with `fpu`, x87 and SSE
    state."""
    wide = _wide(mode)

    def build(general: Registers, float_state: FpuState | None, cr2: int, cr8: int, shadow: bool) -> CpuState:
        state = base_state(mode).copy()
        for name in Registers.__struct_fields__:
            setattr(state, name, getattr(general, name))
        state.rip = base_state(mode).rip
        if float_state is not None:
            state.fpu = float_state
        state.cr2, state.cr8 = cr2, cr8
        if shadow:
            state.rflags |= 1 << 9
            state.events.sti_shadow = True
        return state

    address = st.integers(0, (1 << 47) - 1 if wide else 0xFFFFFFFF)
    return st.builds(
        build,
        registers(mode),
        fpu_states() if fpu else st.none(),
        address,
        st.integers(0, 15) if wide else st.just(0),
        st.booleans(),
    )
