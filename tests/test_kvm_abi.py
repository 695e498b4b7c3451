"""kvm_abi.py against the kernel's own headers, as a C compiler reads them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from functools import reduce
from pathlib import Path

import pytest

from vmmsim.backends import kvm_abi as abi
from vmmsim.testing.slow import time_limit


def _probe_source() -> str:
    lines = ["#include <stdio.h>", "#include <stddef.h>", "#include <linux/kvm.h>", "int main(void) {"]
    for name in (*abi.IOCTLS, *abi.CONSTANTS):
        lines.append(f'  printf("{name} %llu\\n", (unsigned long long)KVM_{name});')
    for struct, (_, fields) in abi.STRUCTS.items():
        lines.append(f'  printf("sizeof {struct} %zu\\n", sizeof(struct {struct}));')
        for field in fields:
            lines.append(f'  printf("{struct}.{field} %zu\\n", offsetof(struct {struct}, {field}));')
    return "\n".join([*lines, "  return 0;", "}", ""])


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """What the headers say: name -> number."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("no C compiler on this Linux" if sys.platform == "linux" else "not Linux")
    if not Path("/usr/include/linux/kvm.h").exists():
        pytest.skip("no <linux/kvm.h>: install linux-libc-dev")
    directory = tmp_path_factory.mktemp("abi")
    source = directory / "probe.c"
    source.write_text(_probe_source())
    subprocess.run(
        [compiler, str(source), "-o", str(directory / "probe")], check=True, timeout=time_limit(60)
    )
    text = subprocess.run(
        [str(directory / "probe")], check=True, capture_output=True, text=True, timeout=time_limit(60)
    )
    return {
        name: int(value) for name, _, value in (line.rpartition(" ") for line in text.stdout.splitlines())
    }


def _offset(layout: type, path: str) -> int:
    def step(place: tuple[type, int], name: str) -> tuple[type, int]:
        kind, offset = place
        types = dict(f[:2] for f in kind._fields_)  # type: ignore[attr-defined]
        if name in types:
            return types[name], offset + getattr(kind, name).offset
        union = next(u for u in kind._anonymous_ if name in dict(types[u]._fields_))  # type: ignore[attr-defined]
        return step((types[union], offset + getattr(kind, union).offset), name)

    return reduce(step, path.split("."), (layout, 0))[1]


@pytest.mark.parametrize("name", [*abi.IOCTLS, *abi.CONSTANTS])
def test_number_is_the_headers(header: dict[str, int], name: str) -> None:
    assert getattr(abi, name) == header[name]


@pytest.mark.parametrize("struct", abi.STRUCTS)
def test_layout_is_the_headers(header: dict[str, int], struct: str) -> None:
    import ctypes

    layout, fields = abi.STRUCTS[struct]
    assert ctypes.sizeof(layout) == header[f"sizeof {struct}"]
    mine = {field: _offset(layout, field) for field in fields}
    assert mine == {field: header[f"{struct}.{field}"] for field in fields}


def test_every_number_of_the_file_is_compared() -> None:
    named = {n for n, v in vars(abi).items() if n.isupper() and isinstance(v, int)}
    assert named == {*abi.IOCTLS, *abi.CONSTANTS}
