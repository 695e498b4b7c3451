"""The Unicorn backend: x86 by emulation, on every host that Unicorn runs on.

Guest memory is the host's, mapped by pointer. Everything that is not RAM or ROM is one
MMIO region a hole, with no rights: Unicorn then calls the protection hook with the true
address and size of each access before it cuts it up.

There are two ways to drive the engine: `native` (on some hosts: machine-code thunks and
the CPU structure's own bytes, `unicorn_native`) and `portable` (the documented API only).
VMMSIM_UNICORN=portable or =native forces one.
"""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING

from ..cpu.cpuid import Table, table
from ..errors import BackendUnavailable, HostError, UsageError, VmmsimError
from ..layout import MAX_CPUS
from .base import Availability, Backend, Capabilities, Vcpu, Vm, VmOptions

if TYPE_CHECKING:
    from unicorn.unicorn_py3.unicorn import Uc

    from ..memory import Region
    from .unicorn_bank import Bank
    from .unicorn_vcpu import UnicornVcpu

__all__ = ["UnicornBackend", "UnicornVm"]

_TOP = 1 << 52
#: Bytes of translated code an engine may keep.
_CODE_BUFFER = 16 << 20
_ENGINES = ("native", "portable")
#: The releases of Unicorn that vmmsim drives: from the first on, below the second.
_OLDEST, _BEYOND = (2, 1, 4), (3, 0, 0)
# Double quotes: in single ones Windows' cmd takes > and < for redirections.
_INSTALL = 'pip install "unicorn>=2.1.4,<3"'


def _choose(engine: str | None) -> tuple[str, str]:
    """(engine, why), by what was asked for, VMMSIM_UNICORN, and what this host allows."""
    if engine == "portable":
        return "portable", "asked for"
    wanted = os.environ.get("VMMSIM_UNICORN", "")
    if wanted and wanted not in _ENGINES:
        raise UsageError(f"VMMSIM_UNICORN is '{wanted}'", hint="set it to native or portable, or not at all")
    if wanted == "portable":
        return "portable", "forced by VMMSIM_UNICORN"
    from .unicorn_native.vcpu import native_usable

    usable, reason = native_usable()
    if usable:
        return "native", reason
    if wanted == "native":
        raise BackendUnavailable(
            "unicorn", f"the native engine cannot be used: {reason}", hint="unset VMMSIM_UNICORN"
        )
    return "portable", reason


class UnicornBackend(Backend):
    """See the module. Opening it loads the unicorn package. `engine`: `portable`, or None to choose."""

    name = "unicorn"

    def __init__(self, engine: str | None = None) -> None:
        found = self.availability()
        if not found.usable:
            raise BackendUnavailable("unicorn", found.reason, hint=found.fix)
        from .unicorn_context import context_usable

        usable, reason = context_usable()
        if not usable:
            raise BackendUnavailable("unicorn", reason, hint=_other_build())
        self.engine, self.engine_reason = _choose(engine)

    @classmethod
    def availability(cls) -> Availability:
        try:
            import unicorn
        except ModuleNotFoundError as error:
            if error.name != "unicorn":
                return _cannot_load(error)
            import sysconfig

            if sysconfig.get_platform() == "win-arm64":
                reason = "the unicorn package is missing: it has no wheel for Windows on ARM"
                fix = (
                    f"install Python for Windows on x86-64, which this Windows runs too, and there {_INSTALL}"
                )
                return Availability(usable=False, reason=reason, fix=fix)
            return Availability(usable=False, reason="the unicorn package is missing", fix=_INSTALL)
        except (ImportError, OSError) as error:
            return _cannot_load(error)
        version = _library_version()
        if not _OLDEST <= version < _BEYOND:
            return Availability(
                usable=False,
                reason=f"this is unicorn {_dotted(version)}, and vmmsim needs {_dotted(_OLDEST)} or newer "
                f"(below {_BEYOND[0]})",
                fix=_foreign_library() or _INSTALL,
            )
        return Availability(usable=True, reason=f"unicorn {unicorn.__version__} is installed")

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            insn_budget=True,
            cancel_latency_ms=50.0,
            max_vcpus=MAX_CPUS,
            gpa_bits=48,
            segment_state="exact",
            delivers_exceptions=True,
            segment_limits=False,
            xcr0=3,
            native_user_code=False,
            single_step="everywhere",
            breakpoints=1 << 16,
        )

    @property
    def provenance(self) -> str:
        import unicorn

        return f"unicorn-{unicorn.__version__}/{self.engine}"

    def create_vm(self, options: VmOptions | None = None) -> UnicornVm:
        options = options or VmOptions()
        if not 1 <= options.vcpus <= MAX_CPUS:
            raise UsageError(
                f"a machine has 1 to {MAX_CPUS} vCPUs here, not {options.vcpus}",
                hint="see capabilities.max_vcpus",
            )
        return UnicornVm(self, options)

    def doctor(self) -> list[tuple[str, str]]:
        import unicorn

        version = _dotted(_library_version())
        if version != unicorn.__version__:
            version += f", called by the Python package's {unicorn.__version__}"
        found = [
            ("version", version),
            ("engine", f"{self.engine}: {self.engine_reason}"),
        ]
        if self.engine == "portable":
            from .unicorn_portable.free import free_usable

            usable, reason = free_usable()
            found.append(("free code", reason if usable else f"none, each instruction is counted: {reason}"))
        return found


def _library_version() -> tuple[int, int, int]:
    """Major, minor and patch of the library that is loaded; the package beside it may have another."""
    import unicorn

    number: int = unicorn.uc_version()[2]
    return number >> 24 & 0xFF, number >> 16 & 0xFF, number >> 8 & 0xFF


def _dotted(version: tuple[int, int, int]) -> str:
    return ".".join(map(str, version))


def _cannot_load(error: Exception) -> Availability:
    reason = f"the unicorn package cannot be loaded: {error}"
    return Availability(usable=False, reason=reason, fix=_foreign_library() or _INSTALL)


def _foreign_library() -> str:
    """What to do where another library than the package's own is asked for; "" where it is not."""
    path = os.environ.get("LIBUNICORN_PATH")
    return f"unset LIBUNICORN_PATH, by which the library is that in {path}" if path else ""


def _other_build() -> str:
    """What to do about a library of the right version that is not built as PyPI's is."""
    oldest = _dotted(_OLDEST)
    return _foreign_library() or f"pip install --force-reinstall unicorn=={oldest}, or use backend kvm"


class UnicornVm(Vm):
    """Guest-physical memory as one engine sees it, and its vCPU."""

    def __init__(self, backend: UnicornBackend, options: VmOptions) -> None:
        self.backend = backend
        self.options = options
        self._regions: list[Region] = []
        #: What drives the engine, and, where several vCPUs take turns in it, they.
        self._vcpu: UnicornVcpu | None = None
        self._bank: Bank | None = None
        self._cpuid: dict[int, Table] = {}
        self._closed = False
        self.uc = self._make_engine()

    @property
    def regions(self) -> tuple[Region, ...]:
        """RAM and ROM, ascending."""
        return tuple(self._regions)

    def _make_engine(self) -> Uc:
        from unicorn import UcError

        from .unicorn_buffer import build

        try:
            return build(_CODE_BUFFER)
        except UcError as error:
            raise HostError(f"Unicorn cannot make an engine: {error}", hint="is memory short?") from error

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("the VM is closed", hint="make another with create_vm()")

    def create_vcpu(self) -> Vcpu:
        self._check_open()
        made = len(self._bank.vcpus) if self._bank is not None else int(self._vcpu is not None)
        if made >= self.options.vcpus:
            raise UsageError(
                f"this VM has its {made} vCPUs", hint="say with VmOptions(vcpus=) how many there will be"
            )
        if self._bank is not None:
            return self._bank.add()
        if self.backend.engine == "native":
            from .unicorn_native.vcpu import NativeVcpu

            self._vcpu = NativeVcpu(self)
        else:
            from .unicorn_portable.vcpu import PortableVcpu

            self._vcpu = PortableVcpu(self)
        self._map_holes(self._vcpu)
        if self.options.vcpus == 1:
            return self._vcpu
        from .unicorn_bank import Bank

        self._bank = Bank(self._vcpu)
        return self._bank.add()

    def map_memory(self, region: Region) -> None:
        self._check_open()
        self._regions.append(region)
        self._regions.sort(key=lambda r: r.gpa)
        try:
            if self._vcpu is None:
                self._map(region)
            else:
                self._rebuild()
        except BaseException:
            self._regions.remove(region)
            raise

    def unmap_memory(self, region: Region) -> None:
        self._check_open()
        self._regions.remove(region)
        if self._vcpu is None:
            self.uc.mem_unmap(region.gpa, region.size)
        else:
            self._rebuild()

    def _map(self, region: Region) -> None:
        from unicorn import UC_PROT_ALL, UC_PROT_EXEC, UC_PROT_READ, UcError

        anchor = ctypes.c_char.from_buffer(region.buffer)
        address = ctypes.addressof(anchor)
        del anchor  # or the mapping could never be closed
        try:
            self.uc.mem_map_ptr(region.gpa, region.size, UC_PROT_ALL, address)
            if region.readonly:  # Unicorn discards writes only if it is protected afterwards
                self.uc.mem_protect(region.gpa, region.size, UC_PROT_READ | UC_PROT_EXEC)
        except UcError as error:
            raise HostError(
                f"Unicorn cannot map {region!r}: {error}", hint="use fewer or smaller regions"
            ) from error

    def _rebuild(self) -> None:
        """Put the vCPU into a new engine with the memory as it is now. To take away a hole,
        Unicorn would flush each of its pages by itself, for years."""
        assert self._vcpu is not None
        old, self.uc = self.uc, self._make_engine()
        try:
            for region in self._regions:
                self._map(region)
            (self._bank or self._vcpu).move(self.uc)
        except VmmsimError:
            self.uc = old
            raise
        self._map_holes(self._vcpu)

    def _map_holes(self, vcpu: UnicornVcpu) -> None:
        """Cover all that is not memory."""
        from .unicorn_traps import VMCB, VMCB_SIZE

        at = 0
        taken = [*((r.gpa, r.size) for r in self._regions), *vcpu.reserved, (VMCB, VMCB_SIZE), (_TOP, 0)]
        for gpa, size in taken:
            if at < gpa:
                vcpu.map_hole(at, gpa - at)
            at = gpa + size

    def cpuid_table(self, number: int) -> Table:
        """What CPUID answers on vCPU `number`."""
        if number not in self._cpuid:
            self._cpuid[number] = table(apic=self.options.apic, apic_id=number, cpus=self.options.vcpus)
        return self._cpuid[number]

    def owns_msr(self, index: int) -> bool:
        """Whether an MSR is the platform's."""
        return any(first <= index < first + count for first, count in self.options.msrs)

    def read_physical(self, gpa: int, size: int) -> bytes:
        """Guest memory as it is now; UsageError where there is none."""
        region = self.region_at(gpa)
        if region is None or gpa + size > region.end:
            raise UsageError(f"there is no memory at {gpa:#x}", hint="read memory, not holes")
        return region.buffer[gpa - region.gpa : gpa - region.gpa + size]

    def region_at(self, gpa: int) -> Region | None:
        for region in self._regions:
            if region.gpa <= gpa < region.end:
                return region
        return None

    def holds(self, gpa: int, size: int) -> bool:
        region = self.region_at(gpa)
        return region is not None and gpa + size <= region.end

    def memory_written(self, gpa: int, size: int) -> None:
        if self._vcpu is not None:
            self._vcpu.host_wrote(gpa, size)

    def close(self) -> None:
        if self._vcpu is not None:
            self._vcpu.close()
            self._vcpu = None
        self._closed = True
        self._regions.clear()
