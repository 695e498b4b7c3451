"""The assemblers: keystone in a child process, NASM and GNU as as programs. Text in, bytes or Failed."""

from __future__ import annotations

import atexit
import contextlib
import json
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from abc import ABC, abstractmethod
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from ..errors import NotSupported
from .source import NASM, UNIX, Dialect

__all__ = ["MOST_TEXT", "TOOLS", "Failed", "Tool", "tool_for"]

#: Seconds for one assembly; characters of a source.
_PATIENCE = 20.0
MOST_TEXT = 1 << 20


class Failed(Exception):
    """The source does not assemble: `line` is the number of the line, if the tool names it. `missing`: only a
    symbol is missing."""

    def __init__(self, text: str, *, line: int = 0, missing: bool = False) -> None:
        super().__init__(text)
        self.line = line
        self.missing = missing


class Tool(ABC):
    """An assembler. `title` is its name and version for people."""

    name: str
    dialect: Dialect = UNIX

    @property
    @abstractmethod
    def title(self) -> str: ...

    @abstractmethod
    def missing(self) -> str:
        """What has to be installed for it, or "" if it is there."""

    @abstractmethod
    def assemble(self, text: str, bits: int, address: int) -> bytes:
        """Raises Failed."""


class Keystone(Tool):
    """keystone-engine, in a child that is kept for the next source."""

    name = "keystone"

    def __init__(self) -> None:
        self._child: subprocess.Popen[str] | None = None
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._lock = threading.Lock()

    @property
    def title(self) -> str:
        try:
            return f"keystone {version('keystone-engine')}"
        except PackageNotFoundError:
            return "keystone"

    def missing(self) -> str:
        return "" if find_spec("keystone") else "pip install vmmsim[asm]"

    def assemble(self, text: str, bits: int, address: int) -> bytes:
        with self._lock:
            answer = json.loads(self._ask(json.dumps({"text": text, "bits": bits, "address": address})))
        if "error" in answer:
            raise Failed(answer["error"], missing=answer["missing"])
        return bytes.fromhex(answer["code"])

    def _ask(self, request: str) -> str:
        child = self._started()
        how = "keystone ended in the middle of it"
        try:
            assert child.stdin is not None
            child.stdin.write(request + "\n")
            child.stdin.flush()
            answer = self._answers.get(timeout=_PATIENCE)
        except OSError:
            answer = ""
        except queue.Empty:
            answer, how = "", f"keystone was not done in {_PATIENCE:g} s"
        if not answer:
            self.close()
            raise Failed(how)
        return answer

    def _started(self) -> subprocess.Popen[str]:
        if self._child is None or self._child.poll() is not None:
            self.close()
            self._answers = queue.SimpleQueue()
            self._child = child = subprocess.Popen(
                [sys.executable, "-m", "vmmsim.asm.keystone_child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
            )
            threading.Thread(target=_read, args=(child, self._answers), daemon=True).start()
            atexit.register(self.close)
        return self._child

    def close(self) -> None:
        """End the child."""
        child, self._child = self._child, None
        if child is not None:
            atexit.unregister(self.close)
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()


def _read(child: subprocess.Popen[str], answers: queue.SimpleQueue[str]) -> None:
    """Lines as they come, and "" for the end."""
    assert child.stdout is not None
    with contextlib.suppress(OSError, ValueError):
        for line in child.stdout:
            answers.put(line)
    answers.put("")


class _Program(Tool):
    """An assembler that is a program on the PATH."""

    package: str

    @property
    def title(self) -> str:
        return _first_line([self.name, "-v" if self.name == "nasm" else "--version"])

    def missing(self) -> str:
        return "" if shutil.which(self.name) else f"install it (Debian: apt install {self.package})"

    def _run(self, words: list[str], directory: str) -> None:
        try:
            done = subprocess.run(
                words, cwd=directory, capture_output=True, text=True, timeout=_PATIENCE, check=False,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise Failed(f"{words[0]} was not done in {_PATIENCE:g} s") from error
        except OSError as error:
            raise Failed(f"{words[0]} cannot be run: {error.strerror}") from error
        if done.returncode:
            said = next((line for line in done.stderr.splitlines() if "rror" in line), done.stderr.strip())
            place = re.search(r"source:(\d+):\s*(?:error:|Error:)?\s*(.*)", said)
            raise Failed(
                place[2] if place else said or f"{words[0]} failed", line=int(place[1]) if place else 0
            )


class Nasm(_Program):
    """NASM, in its own syntax."""

    name, package, dialect = "nasm", "nasm", NASM

    def assemble(self, text: str, bits: int, address: int) -> bytes:
        head = "" if re.search(r"^\s*\[?\s*bits\s", text, re.I | re.M) else f"bits {bits}\n"
        head += "" if re.search(r"^\s*\[?\s*org\s", text, re.I | re.M) else f"org {address}\n"
        with tempfile.TemporaryDirectory(prefix="vmmsim-asm-") as folder:
            Path(folder, "source").write_text(head + "%line 0 source\n" + text, encoding="utf-8")
            self._run(["nasm", "-f", "bin", "-o", "code", "source"], folder)
            return Path(folder, "code").read_bytes()


class GnuAs(_Program):
    """GNU as in Intel's syntax without prefixes, and GNU ld for the addresses."""

    name, package = "as", "binutils"

    def missing(self) -> str:
        if not shutil.which("as") or not shutil.which("ld"):
            return super().missing() or "install GNU ld (Debian: apt install binutils)"
        return "" if "GNU" in self.title else "this system's `as` is not GNU's: take nasm or keystone"

    def assemble(self, text: str, bits: int, address: int) -> bytes:
        kind = ("--64", "elf_x86_64") if bits == 64 else ("--32", "elf_i386")
        head = f".intel_syntax noprefix\n.code{bits}\n.text\n.globl _start\n_start:\n"
        with tempfile.TemporaryDirectory(prefix="vmmsim-asm-") as folder:
            Path(folder, "source").write_text(head + '# 1 "source"\n' + text, encoding="utf-8")
            self._run(["as", kind[0], "-o", "object", "source"], folder)
            self._run(
                ["ld", "-m", kind[1], f"-Ttext={address:#x}", "--oformat", "binary", "-o", "code", "object"],
                folder,
            )
            return Path(folder, "code").read_bytes()


def _first_line(words: list[str]) -> str:
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=_PATIENCE, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return words[0]
    return (done.stdout.splitlines() or [words[0]])[0]


#: By the words of `vmmsim asm --with`.
TOOLS: dict[str, Tool] = {tool.name: tool for tool in (Keystone(), Nasm(), GnuAs())}


def tool_for(name: str) -> Tool:
    """The tool of a name. NotSupported when it is not installed, ImageError never."""
    tool = TOOLS[name]
    missing = tool.missing()
    if missing:
        raise NotSupported(f"the assembler {name} is not installed", hint=missing)
    return tool
