"""A debugger's packets and what they are answered, without sockets, on every backend."""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmmsim import Machine
from vmmsim.debug.control import Controller
from vmmsim.debug.reverse import reverse_for
from vmmsim.debug.stub import Resume, Stub
from vmmsim.debug.target import AMD64, I386, RegisterFile
from vmmsim.errors import UsageError
from vmmsim.exits import Breakpoint, GuestExit, Halt
from vmmsim.loaders.flat import load_flat

REGISTERS = AMD64.registers
#: hello64: the far jump into 32-bit code, and into 64-bit code (guests/hello64).
AT_P32, AT_L64 = 0x7C1C, 0x7C8C


class Debugger:
    """Plays gdb."""

    def __init__(
        self,
        machine: Machine,
        *,
        reverse: bool = False,
        registers: RegisterFile = AMD64,
        features: str = "error-message+",
    ) -> None:
        self.machine = machine
        self.registers = registers.registers
        self.control = Controller(machine)
        self.back = reverse_for(machine, self.control) if reverse else None
        self.stub = Stub(machine, self.control, self.back, registers)
        self.ask(f"qSupported:multiprocess+;{features};xmlRegisters=i386")

    def ask(self, packet: str | bytes) -> str:
        answer = self.stub.handle(packet.encode() if isinstance(packet, str) else packet)
        if isinstance(answer, Resume):
            answer = self.stub.resume(answer)[-1]
        return answer.decode("latin-1")

    def register(self, name: str) -> int:
        number = next(i for i, r in enumerate(self.registers) if r.name == name)
        return int.from_bytes(bytes.fromhex(self.ask(f"p{number:x}")), "little")

    def put(self, name: str, value: int) -> str:
        number, register = next((i, r) for i, r in enumerate(self.registers) if r.name == name)
        return self.ask(f"P{number:x}={value.to_bytes(register.size, 'little').hex()}")


def flat(code: str, backend: str, *, mode: str = "real", **fields: object) -> Machine:
    machine = Machine(backend=backend, memory=1 << 20, **fields)
    machine.load(load_flat(bytes.fromhex(code), name="test", load_address=0x8000, mode=mode))
    return machine


#: mov cx, 5; xor ax, ax; again (8005): inc ax; mov [0x9000], ax; out 0x10, al; loop again; hlt
LOOP = "b90500 31c0 40 a30090 e610 e2f8 f4"


@pytest.fixture
def hello(backend_name: str) -> Iterator[Debugger]:
    with Machine.for_guest("hello64", backend=backend_name) as machine:
        yield Debugger(machine)


@pytest.fixture
def loop(backend_name: str) -> Iterator[Debugger]:
    with flat(LOOP, backend_name) as machine:
        yield Debugger(machine)


def test_the_description_is_one_of_gdbs_features_and_numbers_every_register() -> None:
    root = ElementTree.fromstring(re.sub(rb"<!DOCTYPE[^>]*>", b"", AMD64.description()))
    registers = [reg for feature in root.iter("feature") for reg in feature.iter("reg")]
    assert [int(reg.get("regnum", "")) for reg in registers] == list(range(len(REGISTERS)))
    # "Debugging with GDB", G.5.4: the 24 registers of i386.core in 64-bit mode come first.
    names = [reg.get("name") for reg in registers]
    assert names[:8] == ["rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp"]
    assert names[16:24] == ["rip", "eflags", "cs", "ss", "ds", "es", "fs", "gs"]
    assert names[40] == "xmm0"
    assert names[56] == "mxcsr"
    assert names[57:59] == ["fs_base", "gs_base"]


def test_a_debugger_goes_with_the_guest_from_real_to_long_mode(hello: Debugger) -> None:
    assert hello.ask("?") == "T05thread:1;"
    assert hello.register("cr0") & 1 == 0
    for address, bits in ((AT_P32, 0), (AT_L64, 1)):
        assert hello.ask(f"Z0,{address:x},1") == "OK"
        assert hello.ask("vCont;c") == "T05swbreak:;thread:1;"
        assert hello.register("rip") == address
        assert hello.register("cr0") & 1
        assert hello.register("efer") >> 10 & 1 == bits
        assert len(hello.ask("g")) == 2 * sum(r.size for r in REGISTERS)
        assert hello.ask(f"z0,{address:x},1") == "OK"
    assert hello.ask("vCont;c").startswith("T0f")
    assert hello.machine.output.data == b"Hello from long mode\n"
    assert hello.ask("vCont;c") == "W00"
    assert hello.stub.finished == GuestExit(0)


def test_steps_are_of_one_instruction(hello: Debugger) -> None:
    seen = []
    for _ in range(3):
        assert hello.ask("vCont;s:1") == "T05thread:1;"
        seen.append(hello.register("rip"))
    assert seen == [0x7C01, 0x7C03, 0x7C05]
    assert hello.ask("vCont;r7c05,7c17:1;c") == "T05thread:1;"
    assert hello.register("rip") == 0x7C17
    assert hello.ask("s") == "T05thread:1;"


def test_a_step_ends_at_every_kind_of_access(backend_name: str) -> None:
    # in al, 0x10; out 0x10, al; mov al, [ebx]; mov [ebx], al; lock inc byte ptr [ebx]; nop; hlt
    with flat("e410 e610 8a03 8803 f0fe03 90 f4", backend_name, mode="p32") as machine:
        state = machine.vcpu.state()
        state.rbx = 0xF0000000
        machine.vcpu.set_state(state)
        debugger = Debugger(machine)
        rips = []
        while debugger.ask("s").startswith("T05") and len(rips) < 12:
            rips.append(debugger.register("rip"))
        assert rips == [0x8002, 0x8004, 0x8006, 0x8008, 0x800B, 0x800C]


def test_a_breakpoint_in_a_loop_stops_each_time(loop: Debugger) -> None:
    where = 0x8005
    assert loop.ask(f"Z1,{where:x},1") == "OK"
    for turn in range(5):
        assert loop.ask("c") == "T05hwbreak:;thread:1;"
        assert loop.register("rip") == where
        assert loop.register("rax") & 0xFFFF == turn
        loop.ask("s")
    assert loop.ask("c").startswith("T0f")


def test_a_breakpoint_in_an_interrupts_handler_stops_at_each(backend_name: str) -> None:
    with Machine.for_guest("timer-real", backend=backend_name) as machine:
        debugger = Debugger(machine)
        handler = 0x7C45  # where guests/timer-real has `tick`
        debugger.ask(f"Z0,{handler:x},1")
        for _ in range(10):
            assert debugger.ask("c") == "T05swbreak:;thread:1;"
            assert debugger.register("rip") == handler
            assert debugger.ask("s") == "T05thread:1;"
        assert debugger.ask("c").startswith("T0f")
        assert machine.output.data == b"." * 10 + b"\n"


def test_breakpoints_beyond_those_of_the_cpu_stop_too(loop: Debugger) -> None:
    for at in range(0x9100, 0x9110):
        assert loop.ask(f"Z0,{at:x},1") == "OK"
    loop.ask("Z0,8005,1")
    stops = 0
    while loop.ask("c").startswith("T05swbreak"):
        stops += 1
        loop.ask("s")
    assert stops == 5


def test_a_watchpoint_stops_behind_the_store(loop: Debugger) -> None:
    assert loop.ask("Z2,9000,2") == "OK"
    for turn in (1, 2):
        assert loop.ask("c") == "T05watch:9000;thread:1;"
        assert loop.ask("m9000,2") == f"{turn:02x}00"
    assert loop.ask("z2,9000,2") == "OK"
    assert loop.ask("c").startswith("T0f")
    assert loop.ask("Z3,9000,2") == ""
    assert loop.ask("Z4,9000,2") == ""


def test_without_breakpoints_none_are_left_behind(loop: Debugger) -> None:
    loop.ask("Z0,8005,1")
    loop.ask("c")
    loop.control.clear()
    assert not isinstance(loop.machine.run(), Breakpoint)
    assert loop.machine.memory.read_int(0x9000, 2) == 5


def test_a_step_of_no_vcpu_is_refused(loop: Debugger) -> None:
    for number in (-1, 1):
        with pytest.raises(UsageError, match="there is no vCPU"):
            loop.machine.step(number)


def test_steps_leave_no_counting_behind(backend_name: str) -> None:
    with flat(LOOP, backend_name) as machine:
        machine.step()
        assert machine.run() == Halt()
        assert machine.vcpu.insns is None


def test_registers_and_memory_are_read_and_written(hello: Debugger) -> None:
    code = hello.machine.memory.read(0x7C00, 16)
    assert hello.ask("m7c00,10") == code.hex()
    assert hello.ask("M9000,4:01020304") == "OK"
    assert hello.ask(b"X9004,3:\x00#}") == "OK"
    assert hello.machine.memory.read(0x9000, 7) == b"\1\2\3\4\0#}"
    assert hello.put("rbx", 0x1122334455667788) == "OK"
    assert hello.put("xmm3", 0x0102030405060708090A0B0C0D0E0F10) == "OK"
    assert hello.put("rip", 0x7C03) == "OK"
    assert hello.register("rip") == 0x7C03
    assert hello.machine.vcpu.registers().rbx == 0x1122334455667788
    assert hello.machine.vcpu.state().fpu.xmm[3] == 0x0102030405060708090A0B0C0D0E0F10
    everything = hello.ask("g")
    assert hello.ask("G" + everything) == "OK"
    assert hello.ask("g") == everything
    # What cannot be is refused, and nothing has changed.
    assert hello.put("cr0", 0x80000000).startswith("E.")
    assert hello.ask("g") == everything


def test_a_segments_base_is_in_rip(backend_name: str) -> None:
    with flat("90 90 f4", backend_name) as machine:
        state = machine.vcpu.state()
        state.cs = type(state.cs)(0x800, 0x8000, 0xFFFF, state.cs.attr)
        state.rip = 0
        machine.vcpu.set_state(state)
        debugger = Debugger(machine)
        assert debugger.register("rip") == 0x8000
        assert debugger.register("cs_base") == 0x8000
        debugger.ask("Z0,8002,1")
        assert debugger.ask("c") == "T05swbreak:;thread:1;"
        assert machine.vcpu.registers().rip == 2
        assert debugger.put("rip", 0x8001) == "OK"
        assert machine.vcpu.registers().rip == 1


def test_memory_goes_through_the_guests_page_tables(backend_name: str) -> None:
    with Machine.for_guest("demand-paging", backend=backend_name) as machine:
        machine.run()
        debugger = Debugger(machine)
        assert debugger.ask("m800000000000,4").startswith("E.")  # not canonical
        assert debugger.ask(f"m{machine.cpu.rip:x},1") != ""
        assert "is not mapped" in text_of(debugger, "translate 0x800000000000")


def test_beyond_4_gib_there_is_nothing_outside_long_mode(backend_name: str) -> None:
    with flat("90 90 f4", backend_name) as machine:
        debugger = Debugger(machine)
        assert debugger.ask("m8000,3") == "9090f4"
        assert debugger.ask("m100008000,3").startswith("E.")
        assert debugger.ask("M100008000,1:00").startswith("E.")
        assert machine.memory.read(0x8000, 1) == b"\x90"


@pytest.mark.parametrize("features", ["swbreak+", "error-message-"])
def test_who_takes_no_words_gets_numbers(backend_name: str, features: str) -> None:
    with flat("90 90 f4", backend_name) as machine:
        debugger = Debugger(machine, features=features)
        # "Debugging with GDB", E.2: `E NN`, two hexadecimal digits.
        asked = ["m100008000,3", "M0,2:00", "p", "p999", "T99", "c8000", "Z2,0,zz", "vCont;s:99", "H g99"]
        answers = {word: debugger.ask(word) for word in asked}
        assert {word: a for word, a in answers.items() if not re.fullmatch("E[0-9a-f]{2}", a)} == {}
        assert answers["m100008000,3"] == "E0e"  # EFAULT
        debugger.ask("p999")
        assert "there is no register 2457" in text_of(debugger, "error")


def test_a_32_bit_description_has_the_low_halves(backend_name: str) -> None:
    root = ElementTree.fromstring(re.sub(rb"<!DOCTYPE[^>]*>", b"", I386.description()))
    assert root.findtext("architecture") == "i386"
    names = [reg.get("name") for feature in root.iter("feature") for reg in feature.iter("reg")]
    # "Debugging with GDB", G.5.4: i386.core in 32-bit mode.
    assert names[:8] == ["eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi"]
    assert names[8:16] == ["eip", "eflags", "cs", "ss", "ds", "es", "fs", "gs"]
    assert names[32:41] == [*(f"xmm{n}" for n in range(8)), "mxcsr"]
    with flat("b8efbeadde 8b15 0c800000 f4 78563412", backend_name, mode="p32") as machine:
        debugger = Debugger(machine, registers=I386)
        # gdb's own i386 layout begins with 16 registers of 4 bytes and 8 of 10.
        assert len(debugger.ask("g")) == 2 * sum(r.size for r in I386.registers)
        assert debugger.ask("vCont;s:1").startswith("T05")
        assert debugger.register("eax") == 0xDEADBEEF
        assert debugger.put("eax", 0xFFFFFFFF) == "OK"
        assert machine.vcpu.registers().rax == 0xFFFFFFFF
        assert debugger.register("eip") == 0x8005
        assert debugger.ask("vCont;s:1").startswith("T05")
        assert debugger.register("edx") == 0x12345678


def text_of(debugger: Debugger, line: str) -> str:
    return bytes.fromhex(debugger.ask("qRcmd," + line.encode().hex())).decode()


def test_monitor_tells_what_gdb_cannot(hello: Debugger, tmp_path, monkeypatch) -> None:
    assert "monitor gpa" in text_of(hello, "")
    assert text_of(hello, "gpa 0x7c00 2").startswith("000000007c00  fa 31")
    assert "guest-physical 0x7c00, <RAM" in text_of(hello, "translate 0x7c00")
    assert "=> 0x00007c00" in text_of(hello, "disas")
    assert "mode=real" in text_of(hello, "cpu")
    assert "debug-exit" in text_of(hello, "devices")
    assert "there is no 'frobnicate'" in text_of(hello, "frobnicate")
    assert "monitor gpa" in text_of(hello, "gpa")
    assert "no memory" in text_of(hello, "gpa 0xfffffff000")
    monkeypatch.chdir(tmp_path)
    assert text_of(hello, "snapshot now.vmmsnap") == "snapshot now.vmmsnap\n"
    assert "cannot be written" in text_of(hello, "snapshot now.vmmsnap")
    assert "cannot be written" in text_of(hello, "snapshot /etc/new")
    assert (tmp_path / "now.vmmsnap").exists()


def test_a_crash_is_a_signal_and_can_be_looked_at(backend_name: str) -> None:
    with flat("0f011d00900000 0f0b", backend_name, mode="p32") as machine:
        debugger = Debugger(machine)
        assert debugger.ask("c")[:3] in ("T0b", "T04")
        assert debugger.register("rip") == 0x8007
        assert debugger.ask("c") in ("W78", "W79")  # vmmsim's exit codes 120 and 121


def test_backwards_by_steps_and_to_breakpoints(backend_name: str) -> None:
    counted = backend_name == "unicorn"
    clock = "insns" if counted else "exits"
    with flat(LOOP, backend_name, clock=clock, count_insns=counted) as machine:
        debugger = Debugger(machine, reverse=True)
        assert "ReverseStep+;ReverseContinue+" in debugger.ask("qSupported:x")
        forward = []
        for _ in range(20):
            forward.append((debugger.register("rip"), debugger.register("rcx"), debugger.ask("m9000,2")))
            debugger.ask("s")
        for want in reversed(forward):
            assert debugger.ask("bs") == "T05thread:1;"
            assert (debugger.register("rip"), debugger.register("rcx"), debugger.ask("m9000,2")) == want
        assert debugger.ask("bs") == "T05replaylog:begin;thread:1;"
        assert debugger.ask("c").startswith("T0f")  # to the end, HLT
        debugger.ask("Z0,8005,1")
        for turn in (4, 3, 2, 1, 0):
            assert debugger.ask("bc") == "T05swbreak:;thread:1;"
            assert debugger.register("rax") & 0xFFFF == turn
        assert debugger.ask("bc") == "T05replaylog:begin;thread:1;"
        assert debugger.register("rip") == 0x8000


@pytest.mark.unicorn
def test_backwards_to_the_store_that_changed_a_value() -> None:
    with flat(LOOP, "unicorn", clock="insns", count_insns=True) as machine:
        debugger = Debugger(machine, reverse=True)
        debugger.ask("c")
        debugger.ask("Z2,9000,2")
        assert debugger.ask("bc") == "T05watch:9000;thread:1;"
        assert debugger.ask("m9000,2") == "0400"
        assert debugger.register("rax") & 0xFFFF == 5


def test_who_changes_the_past_begins_a_new_one(backend_name: str) -> None:
    counted = backend_name == "unicorn"
    with flat(LOOP, backend_name, clock="insns" if counted else "exits", count_insns=counted) as machine:
        debugger = Debugger(machine, reverse=True)
        debugger.ask("s")
        assert debugger.put("rcx", 2) == "OK"
        debugger.ask("s")
        assert debugger.ask("bs") == "T05thread:1;"
        assert debugger.register("rcx") == 2
        assert debugger.ask("bs") == "T05replaylog:begin;thread:1;"


@pytest.mark.unicorn
@pytest.mark.parametrize("guest", ["timer-real", "timer-long"])
def test_backwards_through_interrupts(guest: str) -> None:
    with Machine.for_guest(guest, backend="unicorn", clock="insns", count_insns=True) as machine:
        debugger = Debugger(machine, reverse=True)
        forward = []
        for _ in range(165):
            assert debugger.ask("s") == "T05thread:1;"
            forward.append((machine.vcpu.registers(), machine.vcpu.insns))
        for want in forward[-2:-40:-1]:
            assert debugger.ask("bs") == "T05thread:1;"
            assert (machine.vcpu.registers(), machine.vcpu.insns) == want


@pytest.mark.kvm
def test_backwards_on_kvm_there_are_no_interrupts() -> None:
    with (
        Machine.for_guest("timer-real", backend="kvm", clock="exits") as machine,
        pytest.raises(UsageError, match="take no interrupts"),
    ):
        Debugger(machine, reverse=True)


@pytest.mark.unicorn
def test_what_does_not_repeat_has_no_way_back() -> None:
    with flat(LOOP, "unicorn") as machine, pytest.raises(UsageError, match="the same way twice"):
        Debugger(machine, reverse=True)
    with (
        Machine.for_guest("smp-ping-pong", backend="unicorn", clock="insns") as machine,
        pytest.raises(UsageError, match="several vCPUs"),
    ):
        Debugger(machine, reverse=True)


def test_two_vcpus_are_two_threads(backend_name: str) -> None:
    with Machine.for_guest("smp-ping-pong", backend=backend_name) as machine:
        debugger = Debugger(machine)
        assert debugger.ask("qfThreadInfo") == "m1,2"
        assert debugger.ask("qsThreadInfo") == "l"
        assert bytes.fromhex(debugger.ask("qThreadExtraInfo,2")) == b"vCPU 1, waits"
        assert '<thread id="2" core="1" name="vCPU 1">' in debugger.ask("qXfer:threads:read::0,fff")
        assert debugger.ask("T3") == "E.no such thread"
        assert debugger.ask("T2") == "OK"
        debugger.ask("Z0,8000,1")  # where the second begins, in real mode
        assert debugger.ask("vCont;c") == "T05swbreak:;thread:2;"
        assert debugger.ask("qC") == "QC2"
        assert debugger.register("cr0") & 1 == 0
        assert debugger.ask("Hg1") == "OK"
        assert debugger.register("cr0") & 1 == 1
        debugger.ask("z0,8000,1")
        assert debugger.ask("vCont;s:2;c") == "T05thread:2;"
        assert debugger.register("rip") == 0x8002
        assert debugger.ask("vCont;c").startswith("T0f")
        assert machine.output.data == b"AB" * 20 + b"\n"


@pytest.mark.kvm
def test_native_user_code_is_refused_with_the_reason() -> None:
    with Machine.for_guest("ring3", backend="kvm") as machine:
        if machine.backend.capabilities.single_step != "emulated":
            pytest.skip("this host's KVM steps everywhere")
    with flat("90 90 f4", "kvm", mode="l64u") as machine:
        debugger = Debugger(machine)
        answer = debugger.stub.handle(b"vCont;s:1")
        assert isinstance(answer, Resume)
        told = debugger.stub.resume(answer)
        assert b"natively" in bytes.fromhex(told[0][1:].decode())
        assert debugger.register("rip") == 0x8000


def test_a_breakpoint_in_native_user_code_is_refused_and_seen_elsewhere(backend_name: str) -> None:
    with flat("90 90 e6 f4", backend_name, mode="l64u") as machine:
        debugger = Debugger(machine)
        answer = debugger.ask("Z0,8001,1")
        if machine.backend.capabilities.native_user_code:
            assert answer.startswith("E.a breakpoint at 0x8001")
            assert "natively" in answer
            # Where no user code can be: of an address that is not mapped nothing is known.
            assert debugger.ask("Z0,ffffffff80000000,1") == "OK"
        else:
            assert answer == "OK"
            assert debugger.ask("vCont;c") == "T05swbreak:;thread:1;"
            assert debugger.register("rip") == 0x8001


def test_a_breakpoint_in_a_page_of_the_kernel_is_seen(backend_name: str) -> None:
    with flat("90 90 f4", backend_name, mode="l64") as machine:
        debugger = Debugger(machine)
        assert debugger.ask("Z0,8001,1") == "OK"
        assert debugger.ask("vCont;c") == "T05swbreak:;thread:1;"


@pytest.mark.unicorn
@given(st.data())
def test_whatever_is_asked_there_is_an_answer(data: st.DataObject) -> None:
    with flat("90 f4", "unicorn") as machine:
        debugger = Debugger(machine)
        head = st.sampled_from(
            ["", "?", "g", "G", "p", "P", "m", "M", "X", "H", "T", "Z", "z", "c", "s", "C", "S", "b", "q",
             "Q",
             "v", "vCont;", "qXfer:", "qXfer:features:read:target.xml:", "qRcmd,", "qThreadExtraInfo,", "R",
             "P10=", "m0,", "Z0,", "Z2,0,", "vCont;r", "X0,1:", "M0,1:"]
        )  # fmt: skip
        tails = st.one_of(st.binary(max_size=20), st.from_regex(rb"[0-9a-f,:;=-]{0,20}", fullmatch=True))
        for _ in range(10):
            answer = debugger.stub.handle(data.draw(head).encode() + data.draw(tails))
            assert isinstance(answer, (bytes, Resume))
            assert not isinstance(answer, bytes) or len(answer) <= 0x4000


def test_every_register_is_its_own(hello: Debugger) -> None:
    state = hello.machine.vcpu.state()
    for number, register in enumerate(REGISTERS):
        if register.name in ("ftag", "cs", "ss", "ds", "es", "fs", "gs"):
            continue  # these have a meaning beside their number
        changed = state.copy()
        value = register.get(state) ^ 1
        AMD64.write(changed, number, value.to_bytes(register.size, "little"))
        assert [r.name for r in REGISTERS if r.get(changed) != r.get(state)] == (
            ["rip", "cs_base"] if register.name == "cs_base" else [register.name]
        )
