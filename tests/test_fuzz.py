"""The fuzzer: cases, the runner, shrinking, campaigns on any executor, the corpus, the verb."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import msgspec
import pytest
from cli_tools import vmmsim
from hypothesis import given, settings

from vmmsim.backends import open_backend
from vmmsim.cpu.state import Registers
from vmmsim.cpu.validate import validate
from vmmsim.diff.campaign import Corpus, Range, Report, executor_factory, merge, run_campaign, work
from vmmsim.diff.case import (
    CODE,
    MODE_NAMES,
    PRESETS,
    SLOT,
    Case,
    Unit,
    decode_case,
    disassemble,
    encode_case,
)
from vmmsim.diff.encodings import rows, unit_of
from vmmsim.diff.findings import Finding, examine, listing
from vmmsim.diff.generate import generate
from vmmsim.diff.lanes import Lane
from vmmsim.diff.runner import Pair
from vmmsim.diff.shrink import shrink
from vmmsim.errors import UsageError
from vmmsim.memory import GuestMemory
from vmmsim.snapshot.container import load
from vmmsim.testing.slow import time_limit
from vmmsim.testing.strategies import cpu_states, instructions, page_tables, programs

JOBS = [Range("32", first, 100, "unicorn", "unicorn") for first in range(0, 600, 100)]


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with Pair(open_backend("kvm")[0], open_backend("unicorn")[0]) as opened:
        yield opened


def case(mode: str, code: str, **regs: int) -> Case:
    unit = unit_of(bytes.fromhex(code), mode)
    assert unit is not None
    return Case(mode=mode, units=(unit,), regs=Registers(**{"rsp": 0x7000, "rflags": 2, **regs}), seed=0)


# -- cases


@pytest.mark.parametrize("mode", MODE_NAMES)
def test_a_seed_is_the_same_case_for_ever_and_survives_its_file(mode: str) -> None:
    for seed in range(60):
        one = generate(mode, seed)
        assert one == generate(mode, seed) == decode_case(encode_case(one))
        state = one.state()
        validate(state)
        assert state.mode == PRESETS[mode].removesuffix("u")
        assert listing(one)


@pytest.mark.parametrize("mode", MODE_NAMES)
def test_capstone_confirms_each_encoding_of_the_table(mode: str) -> None:
    """As far as it can: what it does not know at all is named here."""
    bad: set[str] = set()
    for seed in range(400):
        for unit in generate(mode, seed).units:
            if any(text == "(bad)" for _, text in disassemble(mode, (unit,))):
                bad.add(unit.code.hex())
    assert not bad
    assert len(rows(mode)) > 200


@pytest.mark.parametrize("data", [b"", b"{}", b'{"mode": 5}', b"\xff", encode_case(generate("16", 1))[:-30]])
def test_a_file_that_is_no_case_is_refused(data: bytes) -> None:
    with pytest.raises(UsageError, match="no fuzz case"):
        decode_case(data)


def test_a_case_that_has_no_place_is_refused() -> None:
    small = generate("32", 1)
    replace = msgspec.structs.replace
    for wrong, match in (
        (replace(small, mode="48"), "no mode '48'"),
        (replace(small, units=(Unit(bytes(200)),)), "a program of 200 bytes"),
        (replace(small, memory=((0x2FFFF, b"ab"),)), "memory at"),
        (replace(small, regs=Registers(rflags=0)), "rflags"),
    ):
        with pytest.raises(UsageError, match=match):
            decode_case(encode_case(wrong))


# -- the runner


@pytest.mark.kvm
@pytest.mark.parametrize("mode", MODE_NAMES)
def test_what_the_table_explains_is_all_that_differs(pair: Pair, mode: str) -> None:
    """A sample of what `vmmsim fuzz` does; the seeds are always the same."""
    for seed in range(5000, 5300):
        one = generate(mode, seed)
        verdict = pair.run(one)
        if verdict.fields:
            found = examine(pair, one, verdict)
            assert found is None or found.known, (found.cause, listing(found.case), found.report)


@pytest.mark.kvm
@pytest.mark.parametrize(
    ("mode", "code", "end"),
    [
        ("32", "f7f1", "#0"),
        ("64", "0f0b", "#6"),
        ("64u", "f4", "#13"),
        ("16", "f7f1", "#0"),
        ("64u", "90", "end"),
    ],
)
def test_an_exception_ends_a_program_in_its_vector_on_both(
    pair: Pair, mode: str, code: str, end: str
) -> None:
    verdict = pair.run(case(mode, code))
    assert verdict.ends == (end, end)
    assert not verdict.fields


@pytest.mark.kvm
def test_a_program_that_never_ends_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmmsim.diff.lanes._SECONDS", 0.3)
    with Pair(open_backend("kvm")[0], open_backend("unicorn")[0]) as pair:
        verdict = pair.run(case("32", "ebfe"))
        assert verdict.ends == ("hung", "hung")
        assert pair.run(case("32", "f7f1")).ends == ("#0", "#0"), "and the next case runs"


@pytest.mark.unicorn
def test_cases_do_not_see_each_other() -> None:
    """A program that writes over the handlers, its own code and the GDT, and then another."""
    unicorn = open_backend("unicorn")[0]
    with Pair(unicorn, open_backend("unicorn")[0]) as pair:
        plain = case("32", "f7f1")
        before = pair.run(plain)
        for target in (0x2000, CODE, 0x20000, 0x4000):
            vandal = case("32", "f3aa", rdi=target, rcx=60, rax=0x90)
            assert not pair.run(vandal).fields
            assert pair.run(plain) == before


@pytest.mark.unicorn
def test_a_program_finds_nothing_of_others_at_their_places() -> None:
    """What a seed gives must not depend on which were run before: the code of others is gone."""
    lane = Lane(open_backend("unicorn")[0])
    try:
        reader = msgspec.structs.replace(case("32", "8b07", rdi=CODE), seed=1)
        for code in ("90", "c607ff"):  # the second writes to the reader's place
            other = case("32", code, rdi=CODE + SLOT)
            lane.enter(other)
            lane.run(other)
            lane.leave(other)
            lane.enter(reader)
            assert lane.run(reader).regs[0] == 0
            lane.leave(reader)
    finally:
        lane.close()


# -- shrinking


def test_shrinking_keeps_what_matters_and_drops_the_rest() -> None:
    """The least program for which the XCHG is there and RAX has a bit."""
    big = msgspec.structs.replace(
        generate("32", 7),
        units=tuple(u for c in ("90", "87d8", "40", "f8") for u in [unit_of(bytes.fromhex(c), "32")] if u),
    )
    big = msgspec.structs.replace(big, regs=msgspec.structs.replace(big.regs, rax=0x12345678))
    small = shrink(big, lambda c: b"\x87" in c.code and bool(c.regs.rax & 8))
    assert small.code == b"\x87\xd8"
    assert small.regs.rax == 0x78
    assert (small.regs.rbx, small.regs.rsi, small.memory) == (0, 0, ())


# -- campaigns


def fails_once(job: Range) -> Report:
    """A worker that dies of the second range, once."""
    flag = Path(os.environ["VMMSIM_TEST_FLAG"])
    if job.first == 100 and not flag.exists():
        flag.touch()
        os._exit(9)
    return work(job)


def test_merging_does_not_depend_on_the_order() -> None:
    one = generate("32", 1)

    def report(seed: int) -> Report:
        found = Finding(cause="x", mode="32", seed=seed, case=one)
        return Report(cases=1, findings={"32 x": found})

    forth, back = Report(), Report()
    for seed in (3, 1, 2):
        merge(forth, report(seed))
    for seed in (2, 1, 3):
        merge(back, report(seed))
    assert forth == back
    assert (forth.findings["32 x"].seed, forth.findings["32 x"].count, forth.cases) == (1, 3, 3)


@pytest.mark.unicorn
def test_the_same_seeds_give_the_same_findings_in_processes_whose_worker_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VMMSIM_TEST_FLAG", str(tmp_path / "died"))
    here = run_campaign(JOBS)
    there = run_campaign(
        JOBS, lambda: ProcessPoolExecutor(2, get_context("fork")), window=4, worker=fails_once
    )
    assert (tmp_path / "died").exists()
    assert here == there
    assert here.cases == 600


@pytest.mark.kvm
def test_ranges_give_the_same_findings_however_they_are_cut() -> None:
    whole = run_campaign([Range("32", 0, 300)])
    cut = run_campaign([Range("32", first, 60) for first in (240, 0, 120, 60, 180)])
    assert whole == cut
    assert whole.findings


@pytest.mark.unicorn
@pytest.mark.timeout(120)
def test_dask_runs_a_campaign() -> None:
    distributed = pytest.importorskip("distributed", reason="pip install vmmsim[dask]")
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with (
            distributed.LocalCluster(
                n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
            ) as cluster,
            distributed.Client(cluster) as client,
        ):
            there = run_campaign(JOBS[:3], client.get_executor, window=2)
    assert there == run_campaign(JOBS[:3])


@pytest.mark.parametrize("text", ["process:0", "process:x", "nowhere:f", "os:nothing", "os:sep", "os"])
def test_an_executor_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--executor"):
        executor_factory(text)


def test_a_corpus_goes_on_where_it_ended(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path / "c")
    found = Finding(cause="mov: register", mode="32", seed=3, case=generate("32", 3))
    corpus.add(Range("32", 100, 50), Report(cases=50, findings={"32 mov: register": found}))
    corpus.add(Range("32", 0, 50), Report(cases=50))
    corpus.save()
    again = Corpus(tmp_path / "c")
    assert list(again.missing("32", 0, 200)) == [(50, 50), (150, 50)]
    assert list(again.missing("64", 0, 10)) == [(0, 10)]
    assert again.report == corpus.report
    files = sorted(path.name for path in (tmp_path / "c").iterdir())
    assert files == ["32-mov-register-3.json", "32-mov-register-3.vsnap", "campaign.json"]
    assert decode_case((tmp_path / "c" / files[0]).read_bytes()) == found.case
    snapshot = load(tmp_path / "c" / files[1])
    assert snapshot is not None
    (tmp_path / "c" / "campaign.json").write_text('{"version"')
    with pytest.raises(UsageError, match="damaged"):
        Corpus(tmp_path / "c")


# -- the verb


@pytest.mark.kvm
def test_fuzz_says_what_is_known_and_keeps_a_corpus(tmp_path: Path) -> None:
    result = vmmsim("fuzz", "--mode", "32", "--cases", "500", "-o", str(tmp_path / "c"))
    assert result.returncode == 0
    assert b"lzcnt-and-tzcnt" in result.stdout
    assert b"500 cases" in result.stderr
    program = next((tmp_path / "c").glob("32-lzcnt*.json"))
    again = vmmsim("fuzz", "--replay", str(program))
    assert again.returncode == 0
    assert b"explained by lzcnt-and-tzcnt" in again.stdout
    assert vmmsim("fuzz", "--mode", "32", "--cases", "500", "-o", str(tmp_path / "c")).stdout == result.stdout


@pytest.mark.kvm
def test_fuzz_in_processes_says_the_same_as_in_this_one() -> None:
    options = ("fuzz", "--mode", "16", "--cases", "700", "--seed", "50")
    alone, two = vmmsim(*options), vmmsim(*options, "--executor", "process:2")
    assert (alone.returncode, alone.stdout) == (two.returncode, two.stdout)
    assert b"700 cases" in two.stderr


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--mode", "48"), 125),
        (("--executor", "process:none"), 125),
        (("--replay", "nowhere.json"), 127),
        (("--seconds", "soon"), 125),
        (("--a", "vmware"), 125),
    ],
)
def test_fuzz_refuses_what_makes_no_sense(options: tuple[str, ...], code: int) -> None:
    assert vmmsim("fuzz", "--a", "unicorn", *options).returncode == code


@pytest.mark.kvm
def test_ctrl_c_leaves_a_whole_corpus_and_prints_the_table(tmp_path: Path) -> None:
    corpus = tmp_path / "c"
    command = [
        sys.executable,
        "-m",
        "vmmsim",
        "fuzz",
        "--mode",
        "32",
        "--cases",
        "9999999",
        "-o",
        str(corpus),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + time_limit(40)
    while not (corpus / "campaign.json").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=time_limit(30))
    assert process.returncode == 130
    assert "lzcnt-and-tzcnt" in out
    assert "stopped by Ctrl-C" in err
    assert Corpus(corpus).report.cases > 0


# -- strategies


@pytest.mark.parametrize("mode", MODE_NAMES)
def test_strategies_make_valid_states_and_programs(mode: str) -> None:
    @settings(max_examples=15)
    @given(cpu_states(mode), programs(mode), instructions(mode))
    def valid(state: object, program: Case, unit: Unit) -> None:
        validate(state)  # type: ignore[arg-type]
        validate(program.state())
        assert unit_of(unit.code, mode) is not None

    valid()


@settings(max_examples=40)
@given(page_tables())
def test_page_tables_lead_where_they_say(tables: object) -> None:
    from vmmsim.cpu.modes import long64
    from vmmsim.cpu.paging import linear_to_gpa
    from vmmsim.testing.strategies import PageTables

    assert isinstance(tables, PageTables)
    state = long64(0x1000).state
    state.cr3 = tables.cr3

    def read(gpa: int, size: int) -> bytes:
        return tables.image[gpa - tables.cr3 : gpa - tables.cr3 + size]

    for linear, (gpa, size, _, _) in tables.pages.items():
        assert linear_to_gpa(state, linear, read) == gpa == tables.translate(linear)
        assert linear_to_gpa(state, linear + size - 1, read) == gpa + size - 1
    assert GuestMemory is not None
