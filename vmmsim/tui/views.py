"""What each pane shows, as lines of text for a width and a height; nothing of a terminal.

What is marked is marked by a character, too: colour alone says nothing to some people, and is not
there for others (https://no-color.org).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.text import Text

from ..cpu.state import GPR_NAMES, CpuState
from ..errors import VmmsimError
from ..exit_text import kvm_name, place, value
from ..exits import Access, Exit, MsrRead, MsrWrite
from .records import Record

if TYPE_CHECKING:
    from ..machine import Machine
    from .listing import Listing
    from .stepper import Stepper

__all__ = ["code", "console", "devices", "exit_at_hand", "log", "log_line", "memory", "registers"]

_FLAGS = ((0, "CF"), (2, "PF"), (4, "AF"), (6, "ZF"), (7, "SF"), (8, "TF"), (9, "IF"), (10, "DF"), (11, "OF"))
_LMA = 1 << 10
#: Instructions shown before the next one, of so many lines.
_BEFORE = 3


def code(stepper: Stepper, listing: Listing, state: CpuState, width: int, height: int) -> list[Text]:
    """Disassembly: `=>` is next, `>` made the exit at hand, `b` has a breakpoint."""
    insns = listing.around(state, max(0, (height - 1) // _BEFORE), height)
    here = state.linear_rip
    if not insns or insns[-1].address < here:
        data = listing.bytes_at(state, here)
        text = data.hex(" ") if data else "no memory here"
        return [Text(f"=> {here:#x}  {text}", "bold")]
    names = {address: name for name, address in stepper.symbols.items()}
    points = {point.address for point in stepper.points if point.kind == "code"}
    last = stepper.records.last
    maker = last.insn.address if stepper.at_exit and last is not None and last.insn is not None else None
    lines = []
    for insn in insns:
        mark = "=>" if insn.address == here else " >" if insn.address == maker else "  "
        line = Text(f"{'b' if insn.address in points else ' '}{mark} ")
        line.append(f"{insn.address:#x} ", "dim")
        if width >= 52:
            line.append(f"{insn.code.hex():<14.14} ", "dim")
        line.append(_short(insn.text))
        if insn.address in names:
            line.append(f"  <{names[insn.address]}>", "italic")
        if insn.address in (here, maker):
            line.stylize("bold")
        lines.append(line)
    return lines[:height]


def _short(text: str) -> str:
    """Capstone's Intel syntax in fewer columns."""
    for word in ("byte", "word", "dword", "qword"):
        text = text.replace(f" {word} ptr ", f" {word} ")
    return text.replace(", ", ",")


def registers(state: CpuState, before: CpuState | None, width: int) -> list[Text]:
    """Registers; `*` has changed since `before`."""
    wide = bool(state.efer & _LMA)
    digits = 16 if wide else 8
    names = list(GPR_NAMES if wide else GPR_NAMES[:8])
    cells = [(name if wide else "e" + name[1:], name, digits) for name in names]
    cells += [("rip" if wide else "eip", "rip", digits)]
    columns = max(1, (width + 1) // (digits + 6))
    rows = -(-len(cells) // columns)
    lines = []
    for row in range(rows):
        line = Text()
        for at in range(row, len(cells), rows):
            label, name, size = cells[at]
            now = getattr(state, name)
            changed = before is not None and getattr(before, name) != now
            line.append(
                f"{'*' if changed else ' '}{label:<3} {now & (1 << 4 * size) - 1:0{size}x} ", _mark(changed)
            )
        lines.append(line)
    changed = before is not None and before.rflags != state.rflags
    flags = " ".join(name for bit, name in _FLAGS if state.rflags >> bit & 1) or "-"
    lines.append(Text(f"{'*' if changed else ' '}flags {flags}", _mark(changed)))
    for group in (("cs", "ds", "ss"), ("es", "fs", "gs")):
        line = Text()
        for name in group:
            changed = before is not None and getattr(before, name) != getattr(state, name)
            line.append(
                f"{'*' if changed else ' '}{name} {getattr(state, name).selector:04x} ", _mark(changed)
            )
        lines.append(line)
    control = Text()
    for name in ("cr0", "cr2", "cr3", "cr4"):
        changed = before is not None and getattr(before, name) != getattr(state, name)
        control.append(f"{'*' if changed else ' '}{name} {getattr(state, name):x} ", _mark(changed))
    return [*lines, control]


def _mark(changed: bool) -> str:
    return "bold yellow" if changed else ""


def exit_at_hand(stepper: Stepper) -> list[Text]:
    """What the CPU has handed to the VMM, by which instruction, and what becomes of it."""
    record = stepper.records.last
    if record is None:
        return [Text("no exit yet: the guest has not begun"), Text("s goes to its first exit", "dim")]
    head = Text(f"{record.number}  ", "bold")
    head.append(f"{kvm_name(record.exit.kvm)}  ", "bold")
    head.append(_what(record))
    by = Text("by ", "dim")
    if record.insn is not None:
        by.append(f"{record.insn.address:#x}  {record.insn.text}")
    else:
        by.append(f"code before {record.rip:#x}" if record.rip is not None else "(passed without a look)")
    return [head, by, _becomes(stepper, record)]


def _what(record: Record) -> str:
    exit = record.exit
    if not isinstance(exit, Access):
        return exit.describe()
    verb = "write of" if exit.is_write else "read of"
    text = f"{verb} {exit.size} byte{'s' if exit.size > 1 else ''} at {place(type(exit), exit.address)}"
    return f"{text} ({record.device})" + (f" = {_value(exit)}" if exit.is_write else "")


def _becomes(stepper: Stepper, record: Record) -> Text:
    exit = record.exit
    if stepper.ended is not None:
        return Text(stepper.verdict(), "bold")
    if stepper.pending is not None:
        if stepper.waits:
            return Text("waits for a character: t types it, a answers by hand", "bold")
        if exit.is_write if isinstance(exit, Access) else False:
            return Text("the device has not seen it: d gives it, a keeps it away", "bold")
        return Text("you are the VMM: a answers by hand, d lets the device", "bold")
    if not isinstance(exit, Access):
        if not stepper.halted:
            return Text("the guest runs on", "dim")
        waits = ", or for input (t)" if stepper.waits else ""
        return Text(f"the vCPU waits for an interrupt{waits}")
    who = "by hand" if record.by_hand else f"by {record.device}"
    if exit.is_write:
        return Text("kept from the device" if record.by_hand else f"taken {who}", "dim")
    return Text(f"answered {_value(exit)} {who}", "dim")


def _value(exit: Access) -> str:
    if not exit.answered and not exit.is_write:
        return "?"
    if isinstance(exit, (MsrRead, MsrWrite)) and exit.faulted:
        return "#GP"
    return value(exit.size, exit.value)  # type: ignore[attr-defined]


def log_line(record: Record, width: int) -> Text:
    """One exit in a line: `<` is a read, `>` a write, `h` was answered by hand."""
    exit: Exit = record.exit
    mark = "h" if record.by_hand else " "
    if not isinstance(exit, Access):
        return Text(f"{record.number:>5}{mark} {exit.describe()}"[:width])
    arrow = ">" if exit.is_write else "<"
    where = f"{exit.space[0]}:{exit.address:#x}"
    number = _value(exit)
    text = f"{record.number:>5}{mark}{arrow} {where} {number}"
    return Text(f"{text:<28} {record.device}"[:width] if width >= 34 else f"{text} {record.device}"[:width])


def log(stepper: Stepper, cursor: int | None, width: int, height: int) -> list[Text]:
    """The exits so far, the last one below, or such that `cursor` can be seen."""
    records = stepper.records
    end = records.count if cursor is None else max(cursor, min(records.count, cursor + height // 2))
    lines = []
    for record in records.tail(height, end=end):
        line = log_line(record, width)
        if record.number == cursor:
            line.pad_right(max(0, width - len(line.plain)))
            line.stylize("reverse")
        elif record.number == records.count and stepper.at_exit:
            line.stylize("bold")
        lines.append(line)
    return lines


def console(data: bytes, width: int, height: int) -> list[Text]:
    """The end of what the guest has printed; control characters as a terminal without cursor would."""
    text = data[-(width + 1) * height * 4 :].decode("utf-8", "replace").replace("\r\n", "\n")
    lines: list[str] = []
    for line in text.split("\n"):
        line = "".join(c if c.isprintable() else " " if c == "\t" else "" for c in line.rpartition("\r")[2])
        lines += [line[at : at + width] for at in range(0, len(line), width)] or [""]
    return [Text(line) for line in lines[-height:]]


def memory(machine: Machine, at: int, width: int, height: int) -> list[Text]:
    """A hexdump by guest-physical address."""
    row = next((count for count in (16, 8, 4) if width >= 10 + 4 * count), 2)
    lines = []
    for address in range(at, at + row * height, row):
        count = next((n for n in range(row, 0, -1) if machine.memory.contains(address, n)), 0)
        data = machine.memory.read(address, count) if count else b""
        shown = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in data)
        text = data.hex(" ") if data else "no memory"
        lines.append(Text.assemble((f"{address:08x} ", "dim"), f"{text:<{3 * row}}", shown))
    return lines


def devices(machine: Machine) -> list[Text]:
    """Each device, where it is, and its state."""
    where: dict[str, str] = {}
    for name, bus in (("port", machine.ports), ("gpa", machine.mmio)):
        for mapping in bus.mappings:
            where.setdefault(mapping.name, f"{name} {mapping.start:#x}")
    try:
        states = machine.device_states()
    except VmmsimError as error:
        return [Text(error.message)]
    lines = []
    for name, state in states.items():
        lines.append(Text.assemble((name, "bold"), f"  {where.get(name, '')}"))
        fields = [
            f"{field}={_field(getattr(state, field))}" for field in getattr(state, "__struct_fields__", ())
        ]
        if fields:
            lines.append(Text("  " + " ".join(fields)))
    return lines or [Text("this machine has no devices")]


def _field(found: Any) -> str:
    if isinstance(found, bool) or found is None:
        return {True: "yes", False: "no", None: "-"}[found]
    if isinstance(found, int):
        return f"{found:#x}"
    if isinstance(found, (bytes, bytearray)):
        return (found.hex() if len(found) <= 16 else f"{found[:16].hex()}... {len(found)} bytes") or "empty"
    if isinstance(found, (list, tuple)):
        inside = ",".join(_field(item) for item in found[:8])
        return f"[{inside}{',...' if len(found) > 8 else ''}]"
    fields = getattr(found, "__struct_fields__", None)
    if fields is not None:
        return "(" + " ".join(f"{field}={_field(getattr(found, field))}" for field in fields) + ")"
    return str(found)
