"""Linux bzImages, by the boot protocol from 2.06 on.

The source is Linux's Documentation/arch/x86/boot.rst, and zero-page.rst for struct
boot_params. The real-mode part of the file is not run: its setup header is copied into
boot_params, and the kernel is entered at its 64-bit entry where XLF_KERNEL_64 offers it,
otherwise at the 32-bit one.
"""

from __future__ import annotations

import struct

import msgspec

from ..errors import ImageError
from ..memory import PAGE_SIZE, format_size
from .e820 import E820Entry, pack_boot_params
from .image import BootMemory, ImageSegment, LoadedImage, c_string

__all__ = ["SetupHeader", "is_bzimage", "load_linux", "read_header"]

_MAGIC_AT = 0x202
_MAGIC = b"HdrS"
_HEADER_AT = 0x1F1
#: struct boot_params has room for the header up to here.
_HEADER_LIMIT = 0x290
#: cmdline_size, the last field of protocol 2.06, ends here.
_HEADER_END_206 = 0x23C
_OLDEST = 0x206

_LOADED_HIGH = 0x01
_CAN_USE_HEAP = 0x80
_XLF_KERNEL_64 = 0x01
_UNDEFINED_LOADER = 0xFF
_VIDEO_NORMAL = 0xFFFF
#: The end of the setup heap, 0xE000, less 0x200: the protocol's sample configuration.
_HEAP_END_PTR = 0xE000 - 0x200

_LOAD_AT = 0x100000
#: The 64-bit entry lies so far behind the start of the protected-mode part.
_ENTRY64 = 0x200
_LONGEST_COMMAND_LINE = 0xFFFF
_GIB4 = 1 << 32
#: A range of all 2**64 bytes does not fit its field.
_LONGEST = (1 << 64) - 1


class SetupHeader(msgspec.Struct, frozen=True):
    """What the loader reads of a setup header, under the protocol's names.

    `version` is e.g. 0x20F for 2.15. Sizes are in bytes: `setup_size` is that of the real-mode
    part with the boot sector, `system_size` that of the rest. `end` is the header's, as an
    offset in the file. A field that the header's version does not have is 0, `pref_address`
    0x100000.
    """

    version: int
    end: int
    setup_size: int
    system_size: int
    loadflags: int
    initrd_addr_max: int
    kernel_alignment: int
    relocatable: bool
    xloadflags: int
    cmdline_size: int
    pref_address: int
    init_size: int

    @property
    def entry64(self) -> bool:
        """Whether there is a 64-bit entry, 0x200 behind the start (XLF_KERNEL_64)."""
        return bool(self.xloadflags & _XLF_KERNEL_64)


def is_bzimage(data: bytes) -> bool:
    """Whether `data` has Linux's boot flag and the setup header's magic."""
    return data[0x1FE:0x200] == b"\x55\xaa" and data[_MAGIC_AT : _MAGIC_AT + 4] == _MAGIC


def read_header(data: bytes, *, name: str) -> SetupHeader:
    """The setup header of a bzImage.

    Raises ImageError for no bzImage, a zImage, a protocol before 2.06, and a file that is
    shorter than its header says.
    """
    if not is_bzimage(data):
        raise ImageError(f"{name} is no Linux bzImage", hint="give arch/x86/boot/bzImage of a build")
    version = _word(data, 0x206, 2)
    if len(data) >= 0x208 and version < _OLDEST:
        raise ImageError(
            f"{name} has boot protocol {version >> 8}.{version & 0xFF:02}, and vmmsim needs 2.06 or later",
            hint="take a kernel from 2.6.22 on; this one starts with 16-bit code and needs a BIOS",
        )
    end = min(_MAGIC_AT + data[0x201], _HEADER_LIMIT)
    if len(data) < max(end, _HEADER_END_206):
        raise _truncated(name, len(data), max(end, _HEADER_END_206))
    if end < _HEADER_END_206:
        raise ImageError(f"{name} is damaged: its setup header ends at {end:#x}", hint="copy it again")

    def field(at: int, size: int, default: int = 0) -> int:
        return _word(data, at, size) if at + size <= end else default

    header = SetupHeader(
        version=version,
        end=end,
        setup_size=((data[_HEADER_AT] or 4) + 1) * 512,
        system_size=field(0x1F4, 4) * 16,
        loadflags=data[0x211],
        initrd_addr_max=field(0x22C, 4),
        kernel_alignment=field(0x230, 4),
        relocatable=bool(data[0x234]),
        xloadflags=field(0x236, 2) if version >= 0x20C else 0,
        cmdline_size=field(0x238, 4),
        pref_address=field(0x258, 8, _LOAD_AT) if version >= 0x20A else _LOAD_AT,
        init_size=field(0x260, 4) if version >= 0x20A else 0,
    )
    if not header.loadflags & _LOADED_HIGH:
        raise ImageError(
            f"{name} is a zImage, loaded below 1 MiB by its 16-bit setup and a BIOS, which vmmsim has not",
            hint="build a bzImage",
        )
    if not header.system_size:
        raise ImageError(f"{name} is damaged: it has no protected-mode part", hint="copy it again")
    # syssize counts in 16 bytes, so the last of them need not be whole (memtest86+'s are not).
    if len(data) <= header.setup_size + header.system_size - 16:
        raise _truncated(name, len(data), header.setup_size + header.system_size)
    return header


def load_linux(
    data: bytes,
    *,
    memory: BootMemory,
    initrd: bytes | None = None,
    append: str = "",
    acpi_rsdp: int = 0,
    text_mode: bool = False,
) -> LoadedImage:
    """The bzImage `data` with its boot_params, whose address is in RSI at the entry.

    The initrd lies as high as `initrd_addr_max` and the RAM below 4 GiB allow. Arguments
    are those of `load_kernel`. Raises ImageError as `read_header` does, and when the
    kernel, the initrd or the command line do not fit.
    """
    name = memory.name
    header = read_header(data, name=name)
    command = c_string(append, "command line")
    limit = min(header.cmdline_size, _LONGEST_COMMAND_LINE)
    if len(command) - 1 > limit:
        raise ImageError(
            f"{name}: the command line has {len(command) - 1} bytes, and this kernel takes {limit}",
            hint="shorten it",
        )
    system = data[header.setup_size : header.setup_size + header.system_size]
    load_at = _place_kernel(memory, header, system)
    params = bytearray(PAGE_SIZE)
    params[_HEADER_AT : header.end] = data[_HEADER_AT : header.end]
    initrd_at = 0
    if initrd:
        initrd_at = memory.put(
            initrd,
            "the initrd",
            low=_LOAD_AT,
            high=min(header.initrd_addr_max + 1, _GIB4),
            align=PAGE_SIZE,
            top=True,
        )
    command_at = memory.put(command, "the command line")
    _fill(params, memory, text_mode=text_mode)
    _fill_header(params, load_at, command_at, initrd_at, len(initrd or b""))
    struct.pack_into("<Q", params, 0x070, acpi_rsdp)
    params_at = memory.put(bytes(params), "boot_params", align=PAGE_SIZE)
    return LoadedImage(
        name=name,
        # The preset l64 already has the protocol's selectors and maps the first 4 GiB.
        state_changes={} if header.entry64 else memory.flat32(code=0x10, data=0x18),
        segments=memory.segments,
        entry=load_at + (_ENTRY64 if header.entry64 else 0),
        mode="l64" if header.entry64 else "p32",
        registers={"rsi": params_at, "rbx": 0, "rbp": 0, "rdi": 0},
    )


def _place_kernel(memory: BootMemory, header: SetupHeader, system: bytes) -> int:
    """Claim the kernel's place, and the memory that it unpacks itself into. Returns the address
    at which the file's protected-mode part lies."""
    align = max(header.kernel_alignment, PAGE_SIZE) if header.relocatable else 1
    need = max(header.init_size, len(system))
    load_at = runs_at = _LOAD_AT
    if header.relocatable:
        if align & (align - 1):
            raise ImageError(
                f"{memory.name} is damaged: its kernel_alignment is {align:#x}", hint="copy it again"
            )
        load_at = -(-max(header.pref_address, _LOAD_AT) // align) * align
        if load_at + need > _GIB4 or not memory.is_ram(load_at, need):
            # "If possible", says the protocol of pref_address. Below the one that it was linked
            # for, the kernel moves there, so another place must be above.
            load_at = memory.find(need, low=load_at, high=_GIB4, align=align) or load_at
        runs_at = load_at
    elif header.version >= 0x20A:
        runs_at = header.pref_address  # it moves itself there
    if not memory.is_ram(runs_at, need) or runs_at + need > _GIB4:
        raise ImageError(
            f"{memory.name} does not fit: it unpacks itself into {format_size(need)} at {runs_at:#x}, "
            f"and the guest's RAM is {memory}",
            hint=f"give at least {-(-(runs_at + need) // (1 << 20))}M with -m",
        )
    memory.claim(ImageSegment(load_at, system, len(system), "kernel"))
    memory.reserve(runs_at, need)
    return load_at


def _fill(params: bytearray, memory: BootMemory, *, text_mode: bool) -> None:
    """The machine's part of boot_params: screen and memory."""
    if text_mode:
        # screen_info: mode 3, 80 columns; EGA's BX 3 (256 KiB, colour), 25 lines, a VGA, 16 dots.
        struct.pack_into("<BB", params, 0x06, 3, 80)
        struct.pack_into("<H", params, 0x0A, 3)
        struct.pack_into("<BBH", params, 0x0E, 25, 1, 16)
    entries = [E820Entry(gpa, min(size, _LONGEST), kind) for gpa, size, kind in memory.entries]
    table = pack_boot_params(entries)
    upper = memory.upper_size >> 10
    struct.pack_into("<H", params, 0x002, min(upper, 0xFC00))  # ext_mem_k: INT 15h, AH=88h
    struct.pack_into("<I", params, 0x1E0, min(upper, 0xFFFFFFFF))  # alt_mem_k
    params[0x1E8] = len(entries)
    params[0x2D0 : 0x2D0 + len(table)] = table


def _fill_header(params: bytearray, load_at: int, command_at: int, initrd_at: int, initrd_size: int) -> None:
    """The fields of the setup header that a boot loader writes."""
    struct.pack_into("<H", params, 0x1FA, _VIDEO_NORMAL)
    params[0x210] = _UNDEFINED_LOADER
    params[0x211] |= _LOADED_HIGH | _CAN_USE_HEAP
    struct.pack_into("<I", params, 0x214, load_at)
    struct.pack_into("<II", params, 0x218, initrd_at, initrd_size)
    struct.pack_into("<H", params, 0x224, _HEAP_END_PTR)
    struct.pack_into("<I", params, 0x228, command_at)
    # Bits 32-63 of ramdisk_image, ramdisk_size and cmd_line_ptr: all lie below 4 GiB.
    struct.pack_into("<III", params, 0x0C0, initrd_at >> 32, initrd_size >> 32, command_at >> 32)


def _word(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "little")


def _truncated(name: str, size: int, wanted: int) -> ImageError:
    return ImageError(
        f"{name} is a truncated bzImage: {size} bytes of at least {wanted}", hint="build or copy it again"
    )
