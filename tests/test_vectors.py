"""Vectors recorded from hardware, on each CPU: at least so many come out as they were recorded."""

from __future__ import annotations

import contextlib
import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cli_tools import vmmsim
from hypothesis import given, settings
from hypothesis import strategies as st

from vmmsim.backends import open_backend
from vmmsim.diff import divergences
from vmmsim.diff.device_scripts import read_scripts, run_script
from vmmsim.diff.vector_misses import REASONS, reason_of
from vmmsim.diff.vector_run import Miss, VectorRunner
from vmmsim.diff.vector_table import pass_table
from vmmsim.diff.vectors import Fault, Vector, VectorError, read_vectors, vector_files

VECTORS = Path(__file__).parents[2] / "shared" / "vectors"
recorded = pytest.mark.skipif(not VECTORS.exists(), reason=f"the recorded vectors are not here: {VECTORS}")

#: Opcodes by what they do, of which each set must pass so many with 1 vector of each opcode.
GROUPS = {
    "arithmetic": [f"{base + low:02X}" for base in range(0, 0x40, 8) for low in range(6)],
    "decimal": ["27", "2F", "37", "3F", "D4", "D5"],
    "stack": [f"{op:02X}" for op in (*range(0x50, 0x60), 0x06, 0x07, 0x0E, 0x16, 0x17, 0x1E, 0x1F)],
    "jumps": [f"{op:02X}" for op in (*range(0x70, 0x80), *range(0xE0, 0xE4), 0xE8, 0xE9, 0xEA, 0xEB)],
    "moves": [f"{op:02X}" for op in (*range(0x88, 0x8C), *range(0xA0, 0xA4), *range(0xB0, 0xC0))],
    "strings": ["A4", "A5", "A6", "A7", "AA", "AB", "AC", "AD", "AE", "AF"],
}
#: (set, what kvm_pvm refuses or differs in) -> how many of a group pass at least, of 2 of each opcode.
LEAST = {
    "80286": {"arithmetic": 94, "decimal": 12, "stack": 46, "jumps": 48, "moves": 48, "strings": 20},
    "8086": {"arithmetic": 88, "decimal": 12, "stack": 40, "jumps": 46, "moves": 47, "strings": 16},
}
LEAST_ON_KVM = {"arithmetic": 88, "decimal": 2, "stack": 40, "strings": 16}


@recorded
@pytest.mark.parametrize("cpu", ["80286", "8086"])
def test_the_first_two_vectors_of_each_opcode_of_a_group(backend_name: str, cpu: str) -> None:
    backend, _ = open_backend(backend_name)
    wanted = {op for group in GROUPS.values() for op in group}
    vectors = (v for v in read_vectors(VECTORS / "sst" / f"{cpu}.jsonl.gz") if v.op in wanted)
    table = pass_table(backend, cpu, vectors, limit=2)

    assert [str(miss) for miss in table.findings] == []
    passed = {
        name: sum(table.rows[op].passed for op in ops if op in table.rows) for name, ops in GROUPS.items()
    }
    least = LEAST[cpu] | (LEAST_ON_KVM if backend_name == "kvm" else {})
    assert {name: n for name, n in passed.items() if n < least[name]} == {}


@recorded
@pytest.mark.unicorn
def test_the_set_of_the_80286_passes_where_unicorn_alone_does_not() -> None:
    # 7,661 of 7,800 (98.2 %) pass; 95.8 % do without exceptions. Every sixth is run here.
    every = [v for n, v in enumerate(read_vectors(VECTORS / "sst" / "80286.jsonl.gz")) if not n % 6]
    table = pass_table(open_backend("unicorn")[0], "80286", every)

    assert table.total == 1300
    assert table.passed >= 1278
    assert set(table.misses) <= {reason.id for reason in REASONS if "80286" in reason.cpus}


#: Reasons that are about no CPU under vmmsim and no generation: what a KVM refuses, and the vectors' own.
_NO_ENTRY = {"kvm-refuses", "into-itself", "reserved-forms"}


def test_a_reason_is_a_change_of_the_architecture_or_an_entry_of_divergences() -> None:
    named = {r.id for r in REASONS if not r.id.startswith(("8086-", "80286-"))}
    assert named - divergences().keys() == _NO_ENTRY


@recorded
@pytest.mark.parametrize(
    ("code", "registers", "reason"),
    [
        ("2e362e3e3e8184df1d9376f4", (), "80286-length"),
        ("3902f4", (("cs", 1, 2), ("ip", 3, 4)), "80286-limits"),
        ("6df4", (("di", 0xFFFD, 0xFFFF),), "80286-limits"),
        ("f3a5f4", (("cx", 2, 3), ("si", 1, 0xFFFF), ("di", 5, 3)), "80286-limits"),
        ("366ff4", (("si", 1, 0xFFFF), ("cs", 1, 2), ("ip", 3, 4)), "80286-limits"),
        ("abf4", (("di", 1, 0xFFFF), ("ip", 3, 4)), ""),
        ("adf4", (("ax", 1, 2), ("si", 1, 0xFFFF)), ""),
        ("3902f4", (("ax", 1, 2),), ""),
        ("8907f4", (("di", 0xFFFD, 0xFFFF),), ""),
    ],
)
def test_what_an_80286_had_another_exception_for(code: str, registers: Any, reason: str) -> None:
    some = next(v for v in read_vectors(VECTORS / "sst" / "80286.jsonl.gz") if v.exception)
    vector = msgspec.structs.replace(some, hex=code, exception=Fault(13, 0))
    assert reason_of(Miss(vector, registers, (), ""), "80286", "kvm") == reason


#: Of AF, CF and the others that a shift or rotate sets.
_CF, _PF, _AF, _ZF, _SF, _OF = 1, 4, 0x10, 0x40, 0x80, 0x800


@recorded
@pytest.mark.parametrize("backend", ["kvm", "unicorn"])
def test_a_chip_may_have_its_own_undefined_flags_of_shifts_and_rotates_and_no_others(backend: str) -> None:
    """As each other CPU might have it: every recorded shift with one flag the other way (SDM vol. 2, SAL)."""
    seen = Counter[str]()
    for vector in read_vectors(VECTORS / "sst" / "80286.jsonl.gz"):
        opcode, _, reg = vector.op.partition(".")
        if opcode not in ("C0", "C1", "D0", "D1", "D2", "D3") or vector.exception or 0xF0 in vector.code:
            continue
        if opcode in ("C0", "C1"):
            count = vector.code[-2] & 0x1F  # an immediate byte, before the HLT
        else:
            count = 1 if opcode in ("D0", "D1") else vector.init.regs["cx"] & 0x1F
        size = 8 if opcode in ("C0", "D0", "D2") else 16
        for flag in (_CF, _PF, _AF, _ZF, _SF, _OF):
            miss = Miss(vector, (("flags", 0, flag),), (), "")
            wanted = ""
            if int(reg) < 4 and count > 1 and flag == _OF:
                wanted = "flags-of-rotates"
            elif int(reg) > 3 and opcode in ("C0", "C1", "D2", "D3"):
                undefined = (flag == _AF and count) or (flag == _OF and count > 1)
                if undefined or (flag == _CF and count >= size and int(reg) != 7):
                    wanted = "flags-of-shifts"
            assert reason_of(miss, "80286", backend) == wanted, (str(vector), count, hex(flag))
            seen[wanted] += 1
        # and a register is never a flag's matter
        both = Miss(vector, (("flags", 0, _OF), ("bx", 1, 2)), (), "")
        assert reason_of(both, "80286", backend) == ""
    assert seen["flags-of-rotates"] > 200
    assert seen["flags-of-shifts"] > 400


@recorded
def test_a_chip_whose_shifts_have_another_overflow_leaves_nothing_unexplained() -> None:
    """A backend that gives OF of each shift or rotate by more than 1 the other way, run and told."""
    of_c0 = [v for v in read_vectors(VECTORS / "sst" / "80286.jsonl.gz") if v.op.startswith("C0.")]
    other = [
        msgspec.structs.replace(
            v, final=msgspec.structs.replace(v.final, regs=v.final.regs | {"flags": _flags(v) ^ _OF})
        )
        for v in of_c0
        if v.exception is None and 0xF0 not in v.code and v.code[-2] & 0x1F > 1
    ]
    table = pass_table(open_backend("unicorn")[0], "80286", other)
    assert table.total > 150
    assert table.findings == []
    # Unicorn has OF of RCL and RCR by more than 1 otherwise, for 18 vectors.
    assert table.misses["flags-of-rotates"] + table.misses["flags-of-shifts"] >= table.total - 18


def _flags(vector: Vector) -> int:
    return vector.final.regs.get("flags", vector.init.regs["flags"])


@recorded
@pytest.mark.unicorn
def test_counting_instructions_changes_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = [v for n, v in enumerate(read_vectors(VECTORS / "sst" / "80286.jsonl.gz")) if not n % 20]
    missed: list[list[str]] = []
    for engine, counted in (("native", False), ("native", True), ("portable", False)):
        monkeypatch.setenv("VMMSIM_UNICORN", engine)
        with VectorRunner(open_backend("unicorn")[0], "80286", counted=counted) as runner:
            missed.append([str(miss) for v in vectors if (miss := runner.run(v)) is not None])
    assert missed[0] == missed[1] == missed[2]


@recorded
@pytest.mark.parametrize("script", ["uart_loopback", "pit_mode0", "pit_mode3", "pic_init", "pic_irr_pit",
                                    "rtc_regs", "kbc", "fwcfg", "port_unmapped", "uart_reset", "uart_dlab",
                                    "uart_scratch", "pit_ch2", "pit_readback", "pit_mode1",
                                    "pit_mode2"])  # fmt: skip
def test_a_register_script_of_qemu_through_the_ports_of_a_pc(script: str) -> None:
    scripts = read_scripts(VECTORS / "devices" / "pc.json")
    result = run_script(script, scripts[script], backend="unicorn")

    assert result.reads == sum(verb.startswith("in") for verb, _, _ in scripts[script])
    assert [str(read) for read in result.findings] == []


def test_every_recorded_script_is_replayed() -> None:
    if not VECTORS.exists():
        pytest.skip(f"the recorded vectors are not here: {VECTORS}")
    names = test_a_register_script_of_qemu_through_the_ports_of_a_pc.pytestmark[0].args[1]
    assert sorted(read_scripts(VECTORS / "devices" / "pc.json")) == sorted(names)


def test_a_device_that_answers_otherwise_is_a_finding() -> None:
    steps: Any = [("outb", 0x3FF, 0x55), ("inb", 0x3FF, 0x54)]
    result = run_script("made up", steps, backend="unicorn")

    assert [str(read) for read in result.findings] == ["made up step 1: port 0x3ff gave 0x54, ours 0x55"]


REGS = dict.fromkeys(("ax", "bx", "cx", "dx", "ss", "ds", "es", "sp", "bp", "si", "di"), 0)


def vector(code: str, *, final: dict[str, int], ram: list[Any] | None = None, **regs: int) -> dict[str, Any]:
    """ADD AL, BL and the like at 0:1000h."""
    init = {**REGS, "cs": 0, "ip": 0x1000, "flags": 2, **regs}
    bytes_ = [[0x1000 + at, byte] for at, byte in enumerate(bytes.fromhex(code))]
    return {
        "op": code[:2].upper(), "i": 0, "name": "made up", "bytes": code, "flags_mask": 0xFFFF,
        "init": {"regs": init, "ram": bytes_ + (ram or [])}, "final": {"regs": final, "ram": []},
    }  # fmt: skip


ADD = vector("00d8f4", final={"ax": 3, "flags": 6, "ip": 0x1003}, ax=1, bx=2)


def as_file(directory: Path, *records: Any, name: str = "80286.jsonl") -> Path:
    path = directory / name
    path.write_bytes(b"".join(json.dumps(r).encode() + b"\n" for r in records))
    return path


def test_what_differs_is_told_by_register_and_address(backend_name: str, tmp_path: Path) -> None:
    wrong = vector("8807f4", final={"ax": 1, "ip": 0x1003}, ax=0x41, bx=0x2000)
    first, second = read_vectors(as_file(tmp_path, ADD, wrong))
    with VectorRunner(open_backend(backend_name)[0], "80286") as runner:
        assert runner.run(first) is None
        miss = runner.run(second)
        assert miss is not None
        assert miss.registers == (("ax", 1, 0x41),)
        assert miss.memory == ((0x2000, 0xF4, 0x41),)
        assert str(miss) == "88 #0 made up: ax 0001 is 0041, [02000] f4 is 41"
        assert runner.run(first) is None  # and nothing of it is left


def test_a_vector_that_never_ends_is_given_up(backend_name: str, tmp_path: Path) -> None:
    (spins,) = read_vectors(as_file(tmp_path, vector("ebfe", final={})))
    with VectorRunner(open_backend(backend_name)[0], "80286") as runner:
        miss = runner.run(spins)
    assert miss is not None
    assert "stopped" in miss.end or "cancelled" in miss.end


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bytes": "zz"}, "no instruction in hexadecimal"),
        ({"bytes": ""}, "no instruction in hexadecimal"),
        ({"flags_mask": 65536}, "more than 16 bits"),
        ({"init": {"regs": {}, "ram": []}}, "each register once"),
        ({"final": {"regs": {"eax": 1}, "ram": []}}, "does not have"),
        ({"final": {"regs": {}, "ram": [[0x10FFF0, 0]]}}, "memory must be bytes"),
        ({"final": {"regs": {}, "ram": [[0, 256]]}}, "memory must be bytes"),
        ({"exception": {"vector": 300, "flags_address": 0}}, "exception"),
        ({"op": 3}, "not a vector"),
    ],
)
def test_a_broken_vector_names_its_line(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    path = as_file(tmp_path, ADD, {**ADD, **change})
    with pytest.raises(VectorError, match=f"80286.jsonl, line 2: .*{words}"):
        list(read_vectors(path))


@settings(max_examples=100)
@given(st.data())
def test_any_damage_is_a_vector_or_a_vector_error(tmp_path_factory: Any, data: st.DataObject) -> None:
    whole = gzip.compress(json.dumps(ADD).encode() + b"\n", mtime=0)
    at = data.draw(st.integers(0, len(whole) - 1))
    damaged = bytearray(whole[: data.draw(st.integers(at + 1, len(whole)))])
    damaged[at] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "8086.jsonl.gz"
    path.write_bytes(damaged)
    with contextlib.suppress(VectorError):
        assert all(isinstance(v, Vector) for v in read_vectors(path))


@pytest.mark.parametrize(
    "text", [b"", b"[]", b'{"a": [["outb", 70000, 0]]}', b'{"a": [["inb", 1, 256]]}', b"\xff"]
)
def test_a_file_that_has_no_scripts_is_told(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "pc.json"
    path.write_bytes(text)
    if text == b"[]":
        path.write_bytes(b"[1]")
    with pytest.raises(VectorError):
        read_scripts(path)


def test_where_there_is_nothing_the_error_says_what_it_looked_for(tmp_path: Path) -> None:
    assert vector_files(tmp_path) == []
    with pytest.raises(VectorError, match="there is no"):
        vector_files(tmp_path / "none")
    result = vmmsim("vectors", tmp_path, "-b", "unicorn")
    assert result.returncode == 125
    assert b"80286.jsonl.gz" in result.stderr


def test_the_verb_prints_a_table_or_json_and_says_122_for_a_finding(tmp_path: Path) -> None:
    wrong = {**ADD, "op": "01", "final": {"regs": {"ax": 4, "flags": 6, "ip": 0x1003}, "ram": []}}
    as_file(tmp_path, ADD, wrong)
    (tmp_path / "pc.json").write_text('{"scratch": [["outb", 1023, 85], ["inb", 1023, 85]]}')
    shown = vmmsim("vectors", tmp_path, "-b", "unicorn")
    assert shown.returncode == 122
    text = shown.stdout.decode()
    assert "00      1/1     100.0 %" in text
    assert "NOT EXPLAINED 1" in text
    assert "01 #0 made up: ax 0004 is 0003" in text
    assert "scratch  1/1" in text

    told = vmmsim("vectors", tmp_path, "-b", "unicorn", "--json", "--limit", "1")
    report = json.loads(told.stdout)
    assert Counter(report["sets"][0]["misses"]) == Counter(unexplained=1)
    assert report["scripts"] == [{"script": "scratch", "reads": 1, "differ": []}]
