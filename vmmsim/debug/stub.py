"""What gdb asks, and what it is answered: the packets of the remote protocol over a Controller.

"Debugging with GDB", appendix E.2 to E.4. A packet goes in, and a reply comes out, or an order
to run. All-stop mode, one process, a thread for each vCPU, numbered from 1. An error reply has
its reason in words (`E.reason`) for a debugger that says `error-message+` (gdb 16 and newer), and is a number
for others, which take words for garbage; `monitor error` then tells the words. What is worth a person's
notice goes to gdb's console.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from ..errors import DeviceError, VmmsimError
from ..exits import Exit
from .control import SIGTRAP, Controller, Stop
from .memory import read_linear, write_linear
from .monitor import monitor
from .rsp import PACKET_MAX
from .target import AMD64, RegisterFile

if TYPE_CHECKING:
    from ..cpu.state import CpuState
    from ..machine import Machine
    from .reverse import Reverse

__all__ = ["Resume", "Stub"]

#: Bytes of memory in one reply: hexadecimal, two digits each.
_MEMORY_MAX = PACKET_MAX // 2
_BAD = b"E.malformed packet"
_NOWHERE = b"E.there is no memory there"
#: Numbers for debuggers that take no words: errno's, as gdbserver sends them.
_NUMBERS = {_BAD: errno.EINVAL, _NOWHERE: errno.EFAULT}
#: A query's or a long command's name, and what follows.
_LONG = re.compile(rb"([qQv][A-Za-z]*\??)[:;,]?(.*)\Z", re.DOTALL)


class Resume(NamedTuple):
    """An order to run: `how` is continue, step, range, back-step or back-continue, or that the
    session is over: detach, kill. `cpu` is whom a step is of."""

    how: str
    cpu: int = 0
    start: int = 0
    end: int = 0


class Stub:
    """One session. `handle` takes a packet: bytes are the reply, a Resume is carried out with
    `resume`, which gives the packets to send. `no_acks` is set when acknowledgements are to end."""

    def __init__(
        self,
        machine: Machine,
        control: Controller,
        reverse: Reverse | None = None,
        registers: RegisterFile = AMD64,
    ) -> None:
        self.machine = machine
        self._registers = registers
        #: The debugger takes errors in words; and the words of the last one.
        self._words = False
        self.error = ""
        self.control = control
        self._reverse = reverse
        self.no_acks = False
        #: The thread of g, m and P, as a vCPU's number; and the last stop.
        self._cpu = control.current
        self._stop = Stop(SIGTRAP)
        #: Set when the guest has ended and was told to go on: the end of the session.
        self.finished: Exit | DeviceError | None = None
        self._long: dict[bytes, Callable[[bytes], bytes | Resume]] = {
            b"qSupported": self._supported,
            b"qXfer": self._xfer,
            b"qRcmd": self._monitor,
            b"vCont?": lambda _: b"vCont;c;C;s;S;t;r",
            b"vCont": self._vcont,
            b"vKill": lambda _: Resume("kill"),
            b"QStartNoAckMode": self._no_ack_mode,
            b"qC": lambda _: b"QC%x" % (self._cpu + 1),
            b"qAttached": lambda _: b"1",
            b"qfThreadInfo": lambda _: b"m" + b",".join(b"%x" % (i.number + 1) for i in machine.processors),
            b"qsThreadInfo": lambda _: b"l",
            b"qThreadExtraInfo": self._thread_name,
            b"qSymbol": lambda _: b"OK",
        }
        self._short: dict[int, Callable[[bytes], bytes | Resume]] = {
            ord("?"): lambda _: self._stop_reply(),
            ord("g"): lambda _: registers.read_all(control.state(self._cpu)).hex().encode(),
            ord("G"): self._write_registers,
            ord("p"): self._read_register,
            ord("P"): self._write_register,
            ord("m"): self._read_memory,
            ord("M"): self._write_memory,
            ord("X"): self._write_binary,
            ord("H"): self._set_thread,
            ord("T"): lambda body: b"OK" if self._thread(body) is not None else b"E.no such thread",
            ord("Z"): lambda body: self._point(body, True),
            ord("z"): lambda body: self._point(body, False),
            ord("c"): lambda body: self._old_resume("continue", body),
            ord("C"): lambda body: self._old_resume("continue", body.partition(b";")[2]),
            ord("s"): lambda body: self._old_resume("step", body),
            ord("S"): lambda body: self._old_resume("step", body.partition(b";")[2]),
            ord("b"): self._back,
            ord("D"): lambda _: Resume("detach"),
            ord("k"): lambda _: Resume("kill"),
        }

    # -- in and out

    def handle(self, packet: bytes) -> bytes | Resume:
        """The reply, empty for what is not known; or an order to run."""
        answer = self._handle(packet)
        if isinstance(answer, Resume) or not answer.startswith(b"E."):
            return answer
        self.error = answer[2:].decode("utf-8", "replace")
        return answer if self._words else b"E%02x" % _NUMBERS.get(answer, errno.EPERM)

    def _handle(self, packet: bytes) -> bytes | Resume:
        try:
            long = _LONG.match(packet)
            if long is not None:
                answer = self._long.get(long[1])
                return answer(long[2]) if answer is not None else b""
            command = self._short.get(packet[0]) if packet else None
            return command(packet[1:]) if command is not None else b""
        except VmmsimError as error:
            return _error(error)
        except (ValueError, IndexError, OverflowError):
            return _BAD

    def stopped(self, stop: Stop) -> list[bytes]:
        """The packets that tell of a stop: words for the console first."""
        self._stop = stop
        self._cpu = self.control.current
        told = [b"O" + f"vmmsim: {stop.text}\n".encode().hex().encode()] if stop.text else []
        if stop.end is not None:
            self.control.ended = stop.end
        return [*told, self._stop_reply()]

    def attached(self, stop: Stop) -> None:
        """What `?` is to answer."""
        self._stop = stop
        self._cpu = self.control.current

    def resume(self, order: Resume) -> list[bytes]:
        """Carry out an order to run; gives the packets to send."""
        control = self.control
        if order.how.startswith("back"):
            assert self._reverse is not None
            back = self._reverse.step if order.how == "back-step" else self._reverse.go
            try:
                stop = back()
            except VmmsimError as error:
                stop = Stop(SIGTRAP, text=str(error))
            return self.stopped(stop)
        if control.ended is not None:
            self.finished = control.ended
            return [b"W%02x" % self._code(control.ended)]
        if order.how == "continue":
            stop = control.go()
        elif order.how == "range":
            stop = control.step_range(order.cpu, order.start, order.end)
        else:
            stop = control.step(order.cpu)
        return self.stopped(stop)

    def _code(self, end: Exit | DeviceError) -> int:
        return self.machine.outcome(end).code

    def _stop_reply(self) -> bytes:
        stop = self._stop
        return b"T%02x%sthread:%x;" % (stop.signal, stop.why.encode(), self._cpu + 1)

    # -- queries

    def _supported(self, body: bytes) -> bytes:
        self._words = b"error-message+" in body.split(b";")
        features = [
            f"PacketSize={PACKET_MAX:x}", "QStartNoAckMode+", "qXfer:features:read+", "qXfer:threads:read+",
            "qXfer:memory-map:read+", "vContSupported+", "swbreak+", "hwbreak+",
        ]  # fmt: skip
        if self._reverse is not None:
            features += ["ReverseStep+", "ReverseContinue+"]
        return ";".join(features).encode()

    def _no_ack_mode(self, _: bytes) -> bytes:
        self.no_acks = True
        return b"OK"

    def _xfer(self, rest: bytes) -> bytes:
        kind, action, annex, span = rest.split(b":", 3)
        offset, length = (int(word, 16) for word in span.split(b","))
        documents = {
            (b"features", b"target.xml"): self._registers.description,
            (b"threads", b""): self._threads,
            (b"memory-map", b""): _memory_map,
        }
        document = documents.get((kind, annex))
        if document is None or action != b"read":
            return b"E00" if kind == b"features" else b""
        data = document()
        piece = data[offset : offset + min(length, _MEMORY_MAX)]
        return (b"m" if offset + len(piece) < len(data) else b"l") + piece

    def _threads(self) -> bytes:
        rows = "".join(
            f'<thread id="{item.number + 1:x}" core="{item.number}" name="vCPU {item.number}">'
            f"{item.status}</thread>"
            for item in self.machine.processors
        )
        return f'<?xml version="1.0"?><threads>{rows}</threads>'.encode()

    def _thread_name(self, body: bytes) -> bytes:
        cpu = self._thread(body)
        if cpu is None:
            return b"E.no such thread"
        return f"vCPU {cpu}, {self.machine.processors.items[cpu].status}".encode().hex().encode()

    def _monitor(self, body: bytes) -> bytes:
        line = bytes.fromhex(body.decode("ascii")).decode("utf-8", "replace")
        if line.strip() == "error":
            text = (self.error or "nothing was refused") + "\n"
        else:
            text = monitor(line, self.machine, self.control, self._cpu)
        return text.encode("utf-8", "replace")[: _MEMORY_MAX - 1].hex().encode() or b"OK"

    # -- threads

    def _thread(self, body: bytes) -> int | None:
        """A vCPU's number from a thread's; 0 and -1 are any: the current one. None: there is none."""
        if body in (b"0", b"-1", b""):
            return self._cpu
        number = int(body, 16) - 1
        return number if 0 <= number < len(self.machine.processors.items) else None

    def _set_thread(self, body: bytes) -> bytes:
        cpu = self._thread(body[1:])
        if cpu is None:
            return b"E.no such thread"
        if body[:1] == b"g":
            self._cpu = cpu
        return b"OK"

    # -- registers and memory

    def _state(self) -> CpuState:
        return self.control.state(self._cpu)

    def _changed(self) -> None:
        if self._reverse is not None:
            self._reverse.begin_anew()

    def _read_register(self, body: bytes) -> bytes:
        return self._registers.read(self._state(), int(body, 16)).hex().encode()

    def _write_register(self, body: bytes) -> bytes:
        number, _, value = body.partition(b"=")
        state = self._state().copy()
        self._registers.write(state, int(number, 16), bytes.fromhex(value.decode("ascii")))
        self.control.set_state(self._cpu, state)
        self._changed()
        return b"OK"

    def _write_registers(self, body: bytes) -> bytes:
        state = self._state().copy()
        self._registers.write_all(state, bytes.fromhex(body.decode("ascii")))
        self.control.set_state(self._cpu, state)
        self._changed()
        return b"OK"

    def _read_memory(self, body: bytes) -> bytes:
        address, size = (int(word, 16) for word in body.split(b","))
        data = read_linear(self._state(), self.machine.memory, address, min(size, _MEMORY_MAX))
        return data.hex().encode() if data or not size else _NOWHERE

    def _write_memory(self, body: bytes) -> bytes:
        where, _, digits = body.partition(b":")
        return self._store(where, bytes.fromhex(digits.decode("ascii")))

    def _write_binary(self, body: bytes) -> bytes:
        where, _, data = body.partition(b":")
        return self._store(where, data)

    def _store(self, where: bytes, data: bytes) -> bytes:
        address, size = (int(word, 16) for word in where.split(b","))
        if size != len(data):
            return _BAD
        if data:
            write_linear(self._state(), self.machine.memory, address, data)
            self.control.forget()
            self._changed()
        return b"OK"

    # -- points

    def _point(self, body: bytes, insert: bool) -> bytes:
        kind, address, size = (int(word, 16) for word in body.partition(b";")[0].split(b","))
        control = self.control
        if kind in (0, 1):
            (control.add_breakpoint if insert else control.remove_breakpoint)(kind, address)
        elif kind == 2:
            (control.add_watchpoint if insert else control.remove_watchpoint)(address, size)
        else:
            return b""
        return b"OK"

    # -- running

    def _old_resume(self, how: str, address: bytes) -> bytes | Resume:
        if address:
            return b"E.set rip, then go on"
        return Resume(how, self._cpu)

    def _vcont(self, rest: bytes) -> bytes | Resume:
        """The leftmost action that steps a thread is done; if there is none, all go on. `t` is what
        threads of all-stop mode are anyway."""
        order = None
        for action in rest.split(b";"):
            word, _, thread = action.partition(b":")
            letter = word[:1]
            cpu = self._thread(thread)
            if cpu is None:
                return b"E.no such thread"
            if letter in b"sS" and letter:
                return Resume("step", cpu)
            if letter == b"r":
                start, end = (int(number, 16) for number in word[1:].split(b","))
                return Resume("range", cpu, start, end)
            if letter in b"cC" and letter:
                order = Resume("continue", cpu)
            elif letter != b"t":
                return _BAD
        return order if order is not None else b"OK"

    def _back(self, body: bytes) -> bytes | Resume:
        if self._reverse is None or body not in (b"s", b"c"):
            return b""
        return Resume("back-step" if body == b"s" else "back-continue", self._cpu)

    @property
    def last(self) -> Stop:
        """The last stop."""
        return self._stop


def _error(error: VmmsimError) -> bytes:
    return b"E." + str(error).encode("utf-8", "replace").replace(b"\n", b" ")[:1000]


def _memory_map() -> bytes:
    """All of the linear addresses: which are mapped changes as the guest runs. No address is ROM
    for gdb, since no breakpoint is stored in memory."""
    return (
        b'<?xml version="1.0"?><memory-map>'
        b'<memory type="ram" start="0x0" length="0xffffffffffffffff"/></memory-map>'
    )
