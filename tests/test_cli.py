"""The verbs as a person uses them: what is on stdout, what on stderr, and the exit code."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cli_tools import EXIT_WITH, SPIN, no_kvm, vmmsim

from vmmsim import guests
from vmmsim.trace import read_trace

# run


def test_stdout_has_the_guests_output_and_nothing_else(backend_name: str) -> None:
    result = vmmsim("run", "lwn", "--backend", backend_name)

    assert result.stdout == b"4\n"
    assert result.returncode == 0


def test_the_backend_is_named_on_stderr_with_the_reason_and_quiet_silences_it(backend_name: str) -> None:
    loud = vmmsim("run", "loop", "-b", backend_name)
    quiet = vmmsim("run", "loop", "-b", backend_name, "-q")

    assert loud.stderr.decode() == f"vmmsim: backend {backend_name} (asked for)\n"
    assert quiet.stderr == b""


def test_auto_falls_back_to_unicorn_and_says_why() -> None:
    result = vmmsim("run", "loop", VMMSIM_KVM_DEVICE="/nonexistent")

    assert result.returncode == 0
    assert f"vmmsim: backend unicorn (kvm: {no_kvm('/nonexistent')}" in result.stderr.decode()


def test_the_environment_names_the_backend() -> None:
    result = vmmsim("run", "loop", VMMSIM_BACKEND="unicorn")

    assert b"backend unicorn (asked for)" in result.stderr


def test_stdin_is_the_guests_input(backend_name: str) -> None:
    result = vmmsim("run", "echo", "-b", backend_name, stdin=b"by pipe\nnever read")

    assert result.stdout == b"by pipe\n"


@pytest.mark.parametrize(("stdin", "output"), [("none", b""), ("example", b"hello, exits\n")])
def test_stdin_can_be_nothing_or_the_guests_own_example(stdin: str, output: bytes) -> None:
    result = vmmsim("run", "echo", "-b", "unicorn", "--stdin", stdin, stdin=b"unused\n")

    assert (result.stdout, result.returncode) == (output, 0)


def test_stdin_can_be_a_file(tmp_path: Path) -> None:
    typed = tmp_path / "typed"
    typed.write_bytes(b"from a file\n")

    assert vmmsim("run", "echo", "-b", "unicorn", "--stdin", typed).stdout == b"from a file\n"


def test_a_game_without_a_player_ends_cleanly(backend_name: str) -> None:
    result = vmmsim("run", "guess", "-b", backend_name, stdin=b"")

    assert result.returncode == 0
    assert result.stdout.endswith(b"Score: 0 won, 0 lost\n")


def test_a_seed_makes_the_game_the_same_on_both_backends(backend_name: str) -> None:
    here = vmmsim("run", "guess", "-b", backend_name, "--seed", "7", "--stdin", "example")
    again = vmmsim("run", "guess", "-b", "unicorn", "--seed", "7", "--stdin", "example")

    assert here.stdout == again.stdout != b""


def test_json_has_what_the_contract_promises(backend_name: str) -> None:
    result = vmmsim("run", "lwn", "-b", backend_name, "--json")
    report = json.loads(result.stdout)

    assert report["guest"] == "lwn"
    assert report["backend"] == backend_name
    assert report["provenance"].startswith(backend_name)
    assert (report["exit"], report["exit_code"]) == ("halt", 0)
    assert report["rip"] == 0x7C10
    # Only the portable engine of Unicorn counts when it was not asked to: 9, with the HLT.
    assert report["insns"] in (None, 9)
    assert report["exits"] == {"port_write": 2, "halt": 1}
    assert base64.b64decode(report["serial"]) == b"4\n"
    assert report["seconds"] > 0
    assert report["unclaimed"] == {"port": {"reads": 0, "writes": 0}, "mmio": {"reads": 0, "writes": 0}}
    assert result.stdout.count(b"\n") == 1


def test_json_counts_instructions_when_asked() -> None:
    report = json.loads(vmmsim("run", "loop", "-b", "unicorn", "--json", "--count-insns").stdout)

    # mov, then 2020 times dec and jnz, then hlt.
    assert report["insns"] == 1 + 2 * 2020 + 1


def test_serial_goes_to_a_file_or_nowhere(tmp_path: Path) -> None:
    out = tmp_path / "serial"

    assert vmmsim("run", "lwn", "-b", "unicorn", "--serial", f"file:{out}").stdout == b""
    assert out.read_bytes() == b"4\n"
    assert vmmsim("run", "lwn", "-b", "unicorn", "--serial", "none").stdout == b""


@pytest.mark.parametrize("code", [0, 1, 119])
def test_the_guests_code_is_the_exit_code(backend_name: str, tmp_path: Path, code: int) -> None:
    image = tmp_path / "guest"
    image.write_bytes(bytes.fromhex(EXIT_WITH.format(code)))

    assert vmmsim("run", image, "-b", backend_name).returncode == code


@pytest.mark.parametrize("code", [120, 124, 255])
def test_a_guests_code_beyond_119_is_told_and_becomes_119(tmp_path: Path, code: int) -> None:
    image = tmp_path / "guest"
    image.write_bytes(bytes.fromhex(EXIT_WITH.format(code)))
    result = vmmsim("run", image, "-b", "unicorn")

    assert result.returncode == 119
    assert f"the guest ended with code {code}, shown as 119" in result.stderr.decode()


def test_qemus_formula_for_the_exit_code(tmp_path: Path) -> None:
    image = tmp_path / "guest"
    image.write_bytes(bytes.fromhex(EXIT_WITH.format(16)))

    assert vmmsim("run", image, "-b", "unicorn", "--isa-debug-exit").returncode == 33


def test_a_triple_fault_is_120_with_a_post_mortem(backend_name: str) -> None:
    result = vmmsim("run", "fault", "-b", backend_name)
    text = result.stderr.decode()

    assert result.returncode == 120
    for part in ("post-mortem", "KVM_EXIT_SHUTDOWN", "mode=p32", "ud2", "IDT limit 0", "last exits"):
        assert part in text


@pytest.mark.parametrize("budget", [("--timeout", "0.2s"), ("--max-insns", "1000")])
def test_a_spent_budget_is_124(tmp_path: Path, budget: tuple[str, str]) -> None:
    image = tmp_path / "spin"
    image.write_bytes(SPIN)
    result = vmmsim("run", image, "-b", "unicorn", *budget)

    assert result.returncode == 124
    assert b"post-mortem: the budget" in result.stderr


def test_max_exits_stops_after_that_many(backend_name: str) -> None:
    result = vmmsim("run", "echo", "-b", backend_name, "--max-exits", "6", "--json", "--stdin", "example")
    report = json.loads(result.stdout)

    assert result.returncode == 124
    assert report["exit"] == "budget"
    assert sum(report["exits"].values()) == 6


def test_kvm_says_that_it_cannot_count_instructions() -> None:
    result = vmmsim("doctor", "--json")
    if not json.loads(result.stdout)["backends"]["kvm"]["usable"]:
        pytest.skip("no KVM here: " + json.loads(result.stdout)["backends"]["kvm"]["reason"])
    refused = vmmsim("run", "loop", "-b", "kvm", "--max-insns", "10")

    assert refused.returncode == 125
    assert b"vmmsim: error:" in refused.stderr
    assert b"Traceback" not in refused.stderr


def test_entry_can_be_a_number(tmp_path: Path) -> None:
    image = tmp_path / "guest"
    # mov al,1; out 0xf4,al; mov al,2; out 0xf4,al
    image.write_bytes(bytes.fromhex("b001e6f4b002e6f4"))

    result = vmmsim("run", image, "-b", "unicorn", "--load", "0x8000", "--entry", "0x8004")

    assert result.returncode == 2


def test_mode_says_how_a_flat_binary_starts(tmp_path: Path) -> None:
    image = tmp_path / "guest"
    # mov rax, 0x100000003 (10 bytes, REX.W); shr rax, 32; out 0xf4, al: 1 in long mode only
    image.write_bytes(bytes.fromhex("48b80300000001000000 48c1e820 e6f4"))

    assert vmmsim("run", image, "-b", "unicorn", "--mode", "l64").returncode == 1


def test_a_builtin_name_is_the_guest_and_a_path_is_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop").write_bytes(bytes.fromhex(EXIT_WITH.format(42)))

    named, pathed = vmmsim("run", "loop", "-b", "unicorn"), vmmsim("run", "./loop", "-b", "unicorn")

    assert named.returncode == 0
    assert b"for the file write ./loop" in named.stderr
    assert pathed.returncode == 42


def test_trace_writes_each_exit_and_the_end(backend_name: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    vmmsim("run", "echo", "-b", backend_name, "--stdin", "example", "--trace", path)
    trace = read_trace(path)

    assert (trace.header.guest, trace.header.backend) == ("echo", backend_name)
    assert len(trace.exits) == 26
    assert (trace.exits[0].kind, trace.exits[0].address, trace.exits[0].value) == (
        "mmio_read",
        0x1000,
        ord("h"),
    )
    assert trace.end is not None
    assert (trace.end.kind, trace.end.rip) == ("halt", 0x7C17)


# exits


def test_each_exit_is_a_line(backend_name: str) -> None:
    result = vmmsim("exits", "lwn", "-b", backend_name)
    lines = result.stdout.decode().splitlines()

    assert " ".join(lines[0].split()) == "exit kind KVM's name where size value RIP instruction"
    assert [" ".join(line.split()) for line in lines[1:]] == [
        "1 port_write KVM_EXIT_IO port 0x03f8 uart 1 byte 0x34 '4' rip 0x7c0c out dx, al",
        "2 port_write KVM_EXIT_IO port 0x03f8 uart 1 byte 0x0a \\n rip 0x7c0f out dx, al",
        "3 halt KVM_EXIT_HLT rip 0x7c10 hlt",
    ]
    assert result.returncode == 0


def test_a_read_shows_rip_at_the_instruction_and_a_write_behind_it(backend_name: str) -> None:
    lines = vmmsim("exits", "echo", "-b", backend_name, "--json", stdin=b"k\n").stdout.splitlines()
    first, second = json.loads(lines[0]), json.loads(lines[1])

    assert (first["kind"], first["rip"], first["insn"]) == ("mmio_read", 0x7C00, "mov al, byte ptr [0x1000]")
    assert (second["kind"], second["insn"]) == ("mmio_write", "mov byte ptr [0x1020], al")
    assert second["rip"] > first["rip"] + 3
    assert (first["device"], second["device"], second["value"]) == ("char-in", "char-out", ord("k"))


@pytest.mark.parametrize("name", ["guess", "ring3", "hello64", "hello32", "widths"])
def test_every_exit_of_the_guests_shows_its_instruction(backend_name: str, name: str) -> None:
    output = vmmsim("exits", name, "-b", backend_name, "--json", "--stdin", "example").stdout
    exits = [json.loads(line) for line in output.splitlines()]

    unknown = [exit for exit in exits if exit["insn"] is None and "_" in exit["kind"]]
    assert len(exits) > 10
    assert len(unknown) <= len(exits) // 20, unknown


def test_both_backends_list_the_same_exits(backend_name: str) -> None:
    arguments = ("exits", "guess", "--seed", "3", "--stdin", "example", "--json")
    here, there = vmmsim(*arguments, "-b", backend_name), vmmsim(*arguments, "-b", "unicorn")

    assert here.stdout == there.stdout
    assert here.stdout.count(b"\n") > 500


def test_a_narrow_terminal_wraps_between_the_parts() -> None:
    result = vmmsim("exits", "echo", "-b", "unicorn", "--limit", "2", stdin=b"k\n", COLUMNS="40")
    lines = result.stdout.decode().splitlines()

    assert max(map(len, lines)) <= 40
    assert any("mov al, byte ptr [0x1000]" in line for line in lines)


def test_limit_ends_the_listing_with_code_0() -> None:
    result = vmmsim("exits", "guess", "-b", "unicorn", "--limit", "5")

    assert len(result.stdout.splitlines()) == 1 + 5
    assert result.returncode == 0


def test_exits_of_a_fault_ends_with_the_post_mortem(backend_name: str) -> None:
    result = vmmsim("exits", "fault", "-b", backend_name)

    assert result.returncode == 120
    assert b"shutdown" in result.stdout
    assert b"post-mortem" in result.stderr


def test_exits_stops_in_time(tmp_path: Path, backend_name: str) -> None:
    image = tmp_path / "spin"
    image.write_bytes(SPIN)

    assert vmmsim("exits", image, "-b", backend_name, "--timeout", "200ms").returncode == 124


# demo, doctor, guests, devices, asm


def test_the_demo_teaches_six_steps_without_a_terminal() -> None:
    result = vmmsim("demo")
    text = result.stdout.decode()

    assert result.returncode == 0, result.stderr
    for number in range(1, 7):
        assert f"\n{number}. " in text
    assert "halt (KVM_EXIT_HLT), rax=0, rip=7" in text
    assert "You won!" in text
    assert "differ" not in text
    assert "NOT" not in text
    assert "NOT the same" not in text


def test_the_demo_works_without_kvm() -> None:
    result = vmmsim("demo", VMMSIM_KVM_DEVICE="/nonexistent")

    assert result.returncode == 0
    assert f"Not here: kvm ({no_kvm('/nonexistent')}" in result.stdout.decode()
    assert b"nothing to compare" in result.stdout


def test_doctor_tells_of_each_backend_and_its_capabilities() -> None:
    report = json.loads(vmmsim("doctor", "--json").stdout)

    assert report["backends"]["unicorn"]["usable"]
    assert report["backends"]["unicorn"]["provenance"].startswith("unicorn-")
    assert report["backends"]["unicorn"]["capabilities"]["insn_budget"] is True
    assert report["libraries"]["msgspec"]
    assert report["auto"] in ("kvm", "unicorn")


def test_doctor_for_people_names_the_fix_of_what_is_missing() -> None:
    result = vmmsim("doctor", VMMSIM_KVM_DEVICE="/nonexistent")
    text = result.stdout.decode()

    assert result.returncode == 0
    assert f"kvm: not usable: {no_kvm('/nonexistent')}" in text
    assert "to mend it:" in text
    assert "--backend auto takes unicorn" in text
    assert "insn_budget" in text


def test_doctor_says_which_engine_of_unicorn_is_in_use() -> None:
    text = vmmsim("doctor", VMMSIM_UNICORN="portable").stdout.decode()

    assert "portable" in text
    assert "VMMSIM_UNICORN" in text


@pytest.mark.parametrize("works", [True, False])
def test_doctor_says_what_kvm_can_where_it_can_something(
    monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    from vmmsim.backends import kvm_probe

    found = SimpleNamespace(xcr0=3, refuses=() if works else tuple(kvm_probe._PROBES))
    monkeypatch.setattr(kvm_probe, "_findings", lambda backend: found)
    backend: Any = SimpleNamespace(
        provenance="this CPU", gpa_bits=48, max_vcpus=1, late_windows=True, gives_msrs=True
    )
    assert ("kvm can" in dict(kvm_probe.report(backend))) is works


def test_doctor_refuses_an_engine_that_is_none_as_run_does() -> None:
    for verb in (["doctor"], ["run", "lwn", "-b", "unicorn"]):
        result = vmmsim(*verb, VMMSIM_UNICORN="bogus")
        assert result.returncode == 125
        assert b"VMMSIM_UNICORN is 'bogus'" in result.stderr


def test_guests_lists_every_guest() -> None:
    text = vmmsim("guests").stdout.decode()
    listed = json.loads(vmmsim("guests", "--json").stdout)

    assert [line.split()[0] for line in text.splitlines()[1:]] == guests.names()
    assert [guest["name"] for guest in listed] == guests.names()


def test_guests_prints_a_source() -> None:
    assert vmmsim("guests", "--source", "loop").stdout.decode() == guests.load("loop").source


def test_devices_lists_addresses() -> None:
    text = vmmsim("devices").stdout.decode()

    assert "char-in        mmio  0x00001000" in text
    assert "0x03f8-0x03ff" in text
    assert b"scratch" not in vmmsim("devices", "--model", "bare").stdout


def test_asm_makes_what_run_runs(tmp_path: Path) -> None:
    pytest.importorskip("keystone", reason="the extra asm is not installed")
    source, image = tmp_path / "guest.asm", tmp_path / "guest.bin"
    source.write_text("mov al, 17 ; the code\nout 0xf4, al\n")

    assert vmmsim("asm", source, "-o", image).returncode == 0
    assert image.read_bytes() == bytes.fromhex(EXIT_WITH.format(17))
    assert vmmsim("run", image, "-b", "unicorn").returncode == 17
    assert vmmsim("asm", source).stdout == b"b0 11 e6 f4\n"
