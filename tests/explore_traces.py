"""Traces that are made up, for the explorer: of any length, with all that a record can have."""

from __future__ import annotations

import random

from vmmsim.trace.records import (
    Code,
    CodeLine,
    DeviceInfo,
    End,
    Event,
    ExitRecord,
    Header,
    Jump,
    MemoryChange,
    RegionInfo,
    Trace,
)

START = {
    **dict.fromkeys(("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp"), 0),
    "rsp": 0x7C00, "rip": 0x7C00, "rflags": 2, "cr0": 0x10, "cr3": 0, "cr4": 0, "efer": 0,
    "cs": 0, "ds": 0, "ss": 0,
}  # fmt: skip
DEVICES = (
    DeviceInfo("uart", "port", 0x3F8, 8, "uart16550"),
    DeviceInfo("char-out", "mmio", 0x1020, 1, "char_out"),
    DeviceInfo("char-in", "mmio", 0x1000, 1, "char_in"),
    DeviceInfo("lapic", "mmio", 0xFEE00000, 0x1000, "lapic"),
)
#: (kind, address, size, device, instruction, its bytes)
_SITES = (
    ("port_write", 0x3F8, 1, "uart", "out dx, al", "ee"),
    ("port_read", 0x3FD, 1, "uart", "in al, dx", "ec"),
    ("mmio_write", 0x1020, 1, "char-out", "mov byte ptr [0x1020], al", "a22010"),
    ("mmio_read", 0x1000, 1, "char-in", "mov al, byte ptr [0x1000]", "a00010"),
    ("mmio_write", 0xFEE000B0, 4, "lapic", "mov dword ptr [ebx], eax", "678903"),
    ("port_write", 0x80, 1, "", "out 0x80, al", "e680"),
)
TEXT = "The quick brown fox jumps over the lazy dog.\n"


def header(**fields: object) -> Header:
    given: dict[str, object] = {
        "guest": "made-up", "backend": "unicorn", "provenance": "unicorn/2.1.4 native", "detailed": True,
        "machine": "bare", "clock": "host", "devices": DEVICES, "regions": (RegionInfo(0, 1 << 20),),
        "start": START, "vmmsim": "0.1.0",
    }  # fmt: skip
    return Header(**{**given, **fields})  # type: ignore[arg-type]


def detailed(exits: int, *, seed: int = 1, jumps: int = 3, cpus: int = 1, looks: bool = True) -> Trace:
    """A detailed trace of `exits` accesses; its `jumps` restores go back to one snapshot at a tenth."""
    draw = random.Random(seed)
    records: list[ExitRecord | Event | Jump | Code] = []
    for number, (_, _, _, _, text, code) in enumerate(_SITES, 1):
        base = 0x7C00 + 0x40 * number
        size = len(code) // 2
        records.append(
            Code(number, base, (
                CodeLine(base - 4, "89c8", "mov ax, cx"), CodeLine(base - 2, "3c04", "cmp al, 4"),
                CodeLine(base, code, text), CodeLine(base + size, "7404", "je 0x7c20"),
                CodeLine(base + size + 2, "f4", "hlt"),
            ))
        )  # fmt: skip
    kept = max(1, exits // 10)
    back = {exits * (number + 2) // (jumps + 2) for number in range(jumps)} if exits > 20 else set()
    lsr = 0x60
    for n in range(1, exits + 1):
        # Phases, as a guest has them: it prints, then polls, then reads.
        site = draw.choice((0, 0, 0, 2, 2, 5) if n * 12 // max(exits, 1) % 3 else (1, 1, 3, 4, 0))
        kind, address, size, device, _, code = _SITES[site]
        letter = ord(TEXT[n % len(TEXT)])
        value = letter if size == 1 else draw.getrandbits(8 * size)
        printed = chr(letter) if site in (0, 2) else ""
        rip = 0x7C00 + 0x40 * (site + 1) + (len(code) // 2 if kind.endswith("write") else 0)
        state: dict[str, object] = {}
        if site == 1:
            lsr ^= 1
            state = {"lsr": lsr, "rx": [letter] * (n % 3)}
        memory = (MemoryChange(0x7BF0 + n % 8, 4, f"{n:08x}", f"{n + 1:08x}"),) if n % 3 == 0 else ()
        records.append(
            ExitRecord(
                n, kind, address, size, value, cpu=n % cpus, rip=rip, device=device,  # type: ignore[arg-type]
                guest_ns=draw.randrange(200, 9000), vmm_ns=draw.randrange(800, 6000),
                regs={"rax": value, "rcx": exits - n, "rip": rip, "rflags": 2 | draw.choice((0, 0x40, 0x81))},
                code=site + 1, output=printed, then="interrupt 0x20" if n % 97 == 0 else "",
                looked=looks, state=state if looks else {}, memory=memory if looks else (),
            )
        )  # fmt: skip
        if n % 500 == 250:
            records.append(Event(n, "halt", "", rip=rip, guest_ns=900, vmm_ns=40_000, then="interrupt 0x20"))
        if n == kept:
            records.append(Jump(n, "snapshot", 1, n, "before the game"))
        if n in back:
            records.append(Jump(n, "restore", 1, kept, "", {"rcx": exits - kept, "rax": 0}))
    return Trace(header(cpus=cpus), tuple(records), End(exits, "halt", "halt", 0x7D44))


def plain(exits: int) -> Trace:
    """What format 1 has: accesses only."""
    records = tuple(
        ExitRecord(n, *_SITES[n % len(_SITES)][:3], n & 0xFF)  # type: ignore[arg-type]
        for n in range(1, exits + 1)
    )
    return Trace(
        Header(format=1, guest="old", backend="kvm", provenance="kvm/vmx"), records, End(exits, "halt")
    )


HOSTILE = (
    "</script><script>window.pwned=1</script>",
    '<img src=x onerror="window.pwned=2">',
    "'\"--><svg onload=window.pwned=3>",
    "\u202egnp.exe\u2066\u200b\x00\x1b[31m\x07\ud800",
    "@data@ @script@ &amp; ${window.pwned=4} {{constructor}}",
    "A" * 400,
)


def hostile() -> Trace:
    """Every text of a trace tries to be markup."""
    text = "\n".join(HOSTILE)
    name = HOSTILE[0] + HOSTILE[1]
    records = (
        Code(1, 0x7C00, (CodeLine(0x7C00, "ee", HOSTILE[1]),)),
        ExitRecord(
            1, "port_write", 0x3F8, 1, 0x3C, rip=0x7C01, device=name, guest_ns=5, vmm_ns=5,
            regs={HOSTILE[0]: 1, "rax": 2}, code=1,
            output=text, then=HOSTILE[0], looked=True, state={HOSTILE[0]: {HOSTILE[1]: HOSTILE[2]}},
            memory=(MemoryChange(0, 1, "00", "3c"),),
        ),
        Event(1, HOSTILE[0], text),
        Jump(1, "snapshot", 1, 1, text),
        Jump(1, "restore", 1, 1, text),
    )  # fmt: skip
    head = header(
        guest=name, backend=name, provenance=name, machine=name, clock=name, vmmsim=name,
        start={"rax": 0, HOSTILE[1]: 5}, devices=(DeviceInfo(name, "port", 0x3F8, 8, name),),
    )  # fmt: skip
    return Trace(head, records, End(1, HOSTILE[0], text))
