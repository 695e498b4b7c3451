"""From a key of a Windows console to the bytes that a terminal sends for it.

A console gives key events (KEY_EVENT_RECORD of the Console API). A guest at a serial line has a terminal at
its other end, which sends characters, and for other keys the escape sequences of a VT220 as xterm has them
(XTerm Control Sequences, "PC-Style Function Keys"). Characters are UTF-8.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Key", "Translator"]

_ESC = b"\x1b"
#: dwControlKeyState.
_RIGHT_ALT, _LEFT_ALT, _RIGHT_CTRL, _LEFT_CTRL, _SHIFT = 0x01, 0x02, 0x04, 0x08, 0x10
#: Virtual-key codes.
_BACK, _TAB, _RETURN, _MENU, _SPACE, _PACKET = 0x08, 0x09, 0x0D, 0x12, 0x20, 0xE7
#: CSI letter, with modifiers CSI 1 ; m letter.
_LETTERS = {0x26: b"A", 0x28: b"B", 0x27: b"C", 0x25: b"D", 0x24: b"H", 0x23: b"F", 0x0C: b"E"}
#: SS3 letter, with modifiers CSI 1 ; m letter: F1 to F4.
_FUNCTION = {0x70: b"P", 0x71: b"Q", 0x72: b"R", 0x73: b"S"}
#: CSI number ~, with modifiers CSI number ; m ~: Insert, Delete, Page Up, Page Down, F5 to F12.
_NUMBERS = {
    0x2D: 2, 0x2E: 3, 0x21: 5, 0x22: 6, 0x74: 15, 0x75: 17, 0x76: 18, 0x77: 19, 0x78: 20, 0x79: 21, 0x7A: 23,
    0x7B: 24,
}  # fmt: skip


class Key(NamedTuple):
    """One key event: whether the key goes down or up, its virtual-key code, its UTF-16 code unit (0: none),
    the state of the modifiers, and how often it repeats."""

    down: bool
    code: int
    char: int
    state: int
    repeat: int = 1


class Translator:
    """Bytes for keys, in the order in which they come. A character beyond 16 bits comes in two events."""

    def __init__(self) -> None:
        self._high = 0

    def bytes_of(self, key: Key, *, carriage_return: bool) -> bytes:
        """What the guest is to have; Enter is CR for a serial line, else LF. b"" for a key that says
        nothing (Shift, a dead key, most keys that go up)."""
        if not key.down and not (key.code == _MENU and key.char):  # Alt with digits types when Alt goes up
            return b""
        return self._once(key, carriage_return) * max(1, key.repeat)

    def _once(self, key: Key, carriage_return: bool) -> bytes:
        alt = bool(key.state & (_LEFT_ALT | _RIGHT_ALT))
        ctrl = bool(key.state & (_LEFT_CTRL | _RIGHT_CTRL))
        shift = bool(key.state & _SHIFT)
        if not key.char or key.code == _TAB:
            found = _special(key.code, shift, alt, ctrl)
            if found:
                return found
        if not key.char:
            return b""
        if key.code == _BACK:
            data = b"\x08" if ctrl else b"\x7f"
        elif key.code == _RETURN:
            data = b"\r" if carriage_return else b"\n"
        else:
            data = self._character(key.char)
        # AltGr comes as Alt with Ctrl, and its character is typed without either.
        return _ESC + data if data and alt and not ctrl and key.code not in (_MENU, _PACKET) else data

    def _character(self, unit: int) -> bytes:
        if 0xD800 <= unit < 0xDC00:
            self._high = unit
            return b""
        high, self._high = self._high, 0
        if 0xDC00 <= unit < 0xE000:
            if not high:
                return b""
            return chr(0x10000 + ((high - 0xD800) << 10) + unit - 0xDC00).encode()
        return chr(unit).encode()


def _special(code: int, shift: bool, alt: bool, ctrl: bool) -> bytes:
    modifiers = 1 + shift + 2 * alt + 4 * ctrl
    if code in _LETTERS or code in _FUNCTION:
        letter = _LETTERS.get(code) or _FUNCTION[code]
        if modifiers > 1:
            return b"\x1b[1;%d%b" % (modifiers, letter)
        return (b"\x1b[" if code in _LETTERS else b"\x1bO") + letter
    if code in _NUMBERS:
        return b"\x1b[%d%b~" % (_NUMBERS[code], b";%d" % modifiers if modifiers > 1 else b"")
    if code == _TAB and shift:
        return b"\x1b[Z"
    if code == _SPACE and ctrl:
        return b"\0"
    return b""
