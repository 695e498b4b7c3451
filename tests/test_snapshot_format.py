"""The format of version 1 stays as it is: constants, golden files, a reader that knows the page alone."""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from snapshot_reader import File, integer, parse, read
from snapshot_samples import GOLDEN, PAGE, child, pattern, sample

from vmmsim.cpu.msrs import STATE_MSRS
from vmmsim.cpu.state import CpuState
from vmmsim.snapshot import container, encode, format, pack
from vmmsim.snapshot.container import load, save
from vmmsim.snapshot.pages import MemoryImage

DOCS = Path(__file__).resolve().parent.parent / "docs" / "snapshot-format.md"
#: The golden files' bytes. A file that must load for ever must not change either.
GOLDEN_HASHES = {
    "v1.vsnap": "9da7aea6d288dc56d3036d71175f40640a67ba86ad3d023293df324d2e2d58e9",
    "v1-child.vsnap": "299ad9a1e87ec85757ee8b5bff1700f852c0f1861c7ae82035ecf6ecf1024865",
}


def test_the_constants_are_pinned() -> None:
    """Who changes one of these changes the version, docs/snapshot-format.md, and adds golden files."""
    assert (format.VERSION, pack.PACK_VERSION) == (1, 1)
    assert (format.NAME, pack.PACK_NAME) == ("vmmsim-snapshot", "vmmsim-snapshot-pack")
    assert format.MAGIC.hex(" ") == "89 56 4d 53 0d 0a 1a 0a"
    assert pack.PACK_MAGIC.hex(" ") == "89 56 4d 50 0d 0a 1a 0a"
    assert (format.LINE_SIZE, format.HEADER_SIZE, format.RUN_SIZE) == (64, 256, 64)
    assert (format.DATA, format.ZERO) == (1, 2)
    assert (format.MOST_MANIFEST, format.MOST_RUN, format.MOST_RUNS) == (16 << 20, 4 << 20, 1 << 22)
    assert pack.CODECS == {"zlib": 1, "zstd": 2}
    assert format._HEADER.format == "<8sIIQQQQQQ32s32s32x"
    assert format._RUN.format == "<QQQII32s"
    assert pack._HEAD.format == "<8sIIQQ32x"


def test_the_manifests_fields_are_pinned() -> None:
    """A new field is for LATER_FIELDS (or a new version): older files do not have it."""
    assert encode.Manifest.__struct_fields__ == (
        "writer", "parent", "parent_name", "config", "cpus", "clock", "input_position", "random_state",
        "generation", "current", "provenance", "regions", "devices",
    )  # fmt: skip
    assert len(CpuState.__struct_fields__) == 18 + 8 + 2 + 7 + 1 + 2 + 1 + 1 + 1 + 1
    assert sorted(STATE_MSRS) == [0x174, 0x175, 0x176, 0x277, *range(0xC0000081, 0xC0000085), 0xC0000102]


def test_the_first_line_is_text_of_64_bytes() -> None:
    line = (GOLDEN / "v1.vsnap").read_bytes()[:64]

    assert line == b"vmmsim-snapshot 1 vmmsim/0.1.0".ljust(63) + b"\n"
    assert format.first_line()[:18] == b"vmmsim-snapshot 1 "
    assert len(format.first_line()) == len(format.first_line(pack.PACK_NAME)) == 64


def test_files_of_a_version_with_a_long_name_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(format, "__version__", "10.11.12.dev1234+g0123456789abcdef.d20261125.and.so.on")
    save(sample(), tmp_path / "a")
    pack.pack(tmp_path / "a", tmp_path / "p")
    pack.unpack(tmp_path / "p", tmp_path / "b")

    assert load(tmp_path / "b") == sample()


def test_the_same_snapshot_is_the_same_file(tmp_path: Path) -> None:
    assert save(sample(), tmp_path / "a") == save(sample(), tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("name", sorted(path.name for path in GOLDEN.glob("*.vsnap")))
def test_golden_files_are_unchanged(name: str) -> None:
    assert hashlib.sha256((GOLDEN / name).read_bytes()).hexdigest() == GOLDEN_HASHES[name]


def test_the_golden_file_of_version_1_loads_for_ever() -> None:
    """If this fails because a struct has got a field: list it in LATER_FIELDS of snapshot/codec.py."""
    found = load(GOLDEN / "v1.vsnap")

    assert found == sample()
    assert found.cpus[0].state.rax == 0x1122334455667788
    assert found.cpus[0].state.fpu.st[7] == 0x3FFF8000000000000001
    assert found.devices["uart"].rx == (0x68, 0x69)
    assert bytes(found.memory.page(0x9F000)) == pattern(3)
    assert found.memory.read(0x7C00, 6).hex(" ") == "b0 41 e6 e9 90 f4"


def test_the_golden_incremental_file_of_version_1_loads_for_ever() -> None:
    parent = load(GOLDEN / "v1.vsnap")

    found = load(GOLDEN / "v1-child.vsnap")

    assert found == child(parent)
    assert found.memory.read(0x7C00, 6).hex(" ") == "b0 41 e6 e9 90 cc"
    assert bytes(found.memory.page(0x9000)) == bytes(PAGE)
    assert bytes(found.memory.page(0x8000)) == pattern(1)


# The independent reader.


def test_the_independent_reader_imports_nothing_of_vmmsim() -> None:
    tree = ast.parse((Path(__file__).parent / "snapshot_reader.py").read_text(encoding="utf-8"))
    modules = {
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
    }

    assert modules == {"__future__", "hashlib", "json", "struct", "pathlib", "typing"}


def test_the_independent_reader_reads_the_golden_file() -> None:
    file = read(GOLDEN / "v1.vsnap")

    cpu = file.manifest["cpus"][0]["state"]
    assert integer(cpu["rax"]) == 0x1122334455667788
    assert integer(cpu["rip"]) == 0x7C05
    assert integer(cpu["fpu"]["xmm"][15]) == (1 << 128) - 1
    assert integer(cpu["msrs"]["0xc0000102"]) == 0x7FFFFFFFF000
    assert cpu["events"]["interrupt"] == 0x20
    assert file.manifest["devices"]["kbc.keyboard"]["buffer"] == [0x1C, 0xF0, 0x1C]
    assert file.manifest["clock"]["now_ns"] == 77_000
    assert file.pages[0x7000][0xC00:0xC06].hex(" ") == "b0 41 e6 e9 90 f4"
    assert sorted(file.pages) == [0x7000, 0x8000, 0x9000, 0x9F000, 0xF0000, 0xFF000]
    assert file.pages[0xFF000] == pattern(5)


def test_the_independent_reader_reads_the_golden_incremental_file() -> None:
    file = read(GOLDEN / "v1-child.vsnap")

    assert file.manifest["parent"] == parse((GOLDEN / "v1.vsnap").read_bytes()).id
    assert file.pages[0x9000] == bytes(PAGE)
    assert file.pages[0x50000] == pattern(6)
    assert file.pages[0x8000] == pattern(1)


def same(file: File, memory: MemoryImage) -> bool:
    return {gpa: page for gpa, page in file.pages.items() if any(page)} == {
        gpa: bytes(page) for gpa, page in memory.present() if any(page)
    }


@given(
    pages=st.dictionaries(
        st.sampled_from(range(0, 0xA0000, PAGE)), st.sampled_from([pattern(n) for n in range(3)])
    ),
    more=st.dictionaries(
        st.sampled_from(range(0, 0xA0000, PAGE)), st.sampled_from([bytes(PAGE), pattern(9)]), max_size=9
    ),
)
@settings(max_examples=30)
def test_the_independent_reader_reads_what_vmmsim_writes(
    pages: dict[int, bytes], more: dict[int, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("files")
    first = sample()
    first = msgspec.structs.replace(first, memory=MemoryImage.of_pages(first.memory.regions, pages))
    save(first, directory / "a")
    parent = load(directory / "a")
    second = MemoryImage.of_pages(first.memory.regions, {**pages, **more})
    save(msgspec.structs.replace(first, memory=second), directory / "b", parent=parent)

    assert same(read(directory / "a"), first.memory)
    assert same(read(directory / "b"), second)
    assert read(directory / "b").id == load(directory / "b").id == container.open_file(directory / "b").id


def test_the_page_of_the_format_names_every_field() -> None:
    text = DOCS.read_text(encoding="utf-8")
    cpu = {
        "rbx",
        "rcx",
        "rdx",
        "rsi",
        "rdi",
        "rsp",
        "rbp",
        *(f"r{n}" for n in range(8, 15)),
    }  # `rax` to `r15`
    wanted = {*encode.Manifest.__struct_fields__, *CpuState.__struct_fields__} - cpu
    for part in (
        CpuState().fpu,
        CpuState().events,
        CpuState().cs,
        sample().clock,
        sample().provenance,
        sample().config,
    ):
        wanted |= set(part.__struct_fields__)

    assert [name for name in sorted(wanted) if f"`{name}`" not in text] == []
