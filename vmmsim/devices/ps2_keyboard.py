"""A PS/2 keyboard with the US layout, seen from its cable: bytes come, bytes go.

From IBM's PS/2 Hardware Interface Technical Reference, "Keyboard" (101/102 keys): its
commands, its 16-byte buffer and its scan codes. Scan code sets 1 and 2 are here. Set 3 is
refused as an invalid parameter, and the commands F7h to FDh, which concern set 3 alone, are
acknowledged and change nothing. Key names are those of QEMU's `sendkey`.

What is deliberately unreal: a held key does not repeat (press it again), the self-test
after FFh is done at once, and the cursor keys send no shift codes of their own (E0 12) when
Shift or Num Lock is on: nothing here knows who holds what.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import msgspec

from ..errors import UsageError

__all__ = ["KEYS", "SET_2_TO_1", "Ps2Keyboard", "Ps2KeyboardState"]

#: Scan codes that the keyboard keeps until they are taken; the overrun code comes on top.
BUFFER_SIZE = 16
#: Answers to commands wait apart from scan codes and go first. No command has more than 3.
_REPLIES = 16

ACK, RESEND, SELF_TEST_PASSED, ECHO = 0xFA, 0xFE, 0xAA, 0xEE
IDENTITY = (0xAB, 0x83)
BREAK = 0xF0

SET_LEDS, SCAN_SET, READ_ID, SET_RATE = 0xED, 0xF0, 0xF2, 0xF3
ENABLE, DISABLE, DEFAULTS = 0xF4, 0xF5, 0xF6
SET_ALL_FIRST, SET_ALL_LAST, SET_KEY_FIRST, SET_KEY_LAST = 0xF7, 0xFA, 0xFB, 0xFD
RESET = 0xFF
_TAKE_A_PARAMETER = (SET_LEDS, SCAN_SET, SET_RATE, *range(SET_KEY_FIRST, SET_KEY_LAST + 1))
#: 10.9 characters a second after half a second.
DEFAULT_RATE = 0x2B

#: Scan code set 2 -> set 1, as IBM's keyboard controllers translate every byte.
SET_2_TO_1 = bytes.fromhex(
    "ff43413f3d3b3c58644442403e0f295965382a701d10025a66712c1f1e11035b"
    "672e2d201205045c68392f211413065d693130232215075e6a7232241608095f"
    "6b332517180b0a606c34352627190c616d7328741a0d626e3a361c1b752b6376"
    "55567778797a0e7b7c4f7d4b477e7f6f5253504c4d480145574e514a37494654"
    "808182415485"
) + bytes(range(0x86, 0x100))

_PLAIN = """
    esc 76 1 16 2 1e 3 26 4 25 5 2e 6 36 7 3d 8 3e 9 46 0 45 minus 4e equal 55 backspace 66
    tab 0d q 15 w 1d e 24 r 2d t 2c y 35 u 3c i 43 o 44 p 4d bracket_left 54 bracket_right 5b
    ret 5a ctrl 14 a 1c s 1b d 23 f 2b g 34 h 33 j 3b k 42 l 4b semicolon 4c apostrophe 52
    grave_accent 0e shift 12 backslash 5d z 1a x 22 c 21 v 2a b 32 n 31 m 3a comma 41 dot 49
    slash 4a shift_r 59 alt 11 spc 29 caps_lock 58 less 61
    f1 05 f2 06 f3 04 f4 0c f5 03 f6 0b f7 83 f8 0a f9 01 f10 09 f11 78 f12 07
    num_lock 77 scroll_lock 7e kp_multiply 7c kp_subtract 7b kp_add 79 kp_decimal 71
    kp_0 70 kp_1 69 kp_2 72 kp_3 7a kp_4 6b kp_5 73 kp_6 74 kp_7 6c kp_8 75 kp_9 7d
"""
_EXTENDED = """
    ctrl_r 14 alt_r 11 kp_enter 5a kp_divide 4a meta_l 1f meta_r 27 menu 2f
    insert 70 delete 71 home 6c end 69 pgup 7d pgdn 7a up 75 down 72 left 6b right 74
"""


def _keys(table: str, prefix: str) -> dict[str, tuple[bytes, bytes]]:
    words = table.split()
    return {
        name: (bytes.fromhex(prefix + code), bytes.fromhex(prefix + "f0" + code))
        for name, code in zip(words[::2], words[1::2], strict=True)
    }


#: Key name -> what it sends in scan code set 2 when it is pressed and when it is released.
KEYS: dict[str, tuple[bytes, bytes]] = {
    **_keys(_PLAIN, ""),
    **_keys(_EXTENDED, "e0"),
    "print": (bytes.fromhex("e012e07c"), bytes.fromhex("e0f07ce0f012")),
    # Pause sends both when it goes down, and nothing when it comes up.
    "pause": (bytes.fromhex("e11477e1f014f077"), b""),
}

_NAMED = {
    " ": "spc", "\n": "ret", "\r": "ret", "\t": "tab", "\b": "backspace", "\x1b": "esc",
    "-": "minus", "=": "equal", "[": "bracket_left", "]": "bracket_right", ";": "semicolon",
    "'": "apostrophe", "`": "grave_accent", "\\": "backslash", ",": "comma", ".": "dot", "/": "slash",
}  # fmt: skip
_SHIFTED = dict(zip('!@#$%^&*()_+{}:"~|<>?', "1234567890-=[];'`\\,./", strict=True))


def _key_of(character: str) -> tuple[str, bool]:
    """The key that types `character`, and whether Shift must be down."""
    shifted = character in _SHIFTED or "A" <= character <= "Z"
    plain = _SHIFTED.get(character, character.lower())
    name = _NAMED.get(plain, plain)
    if not character.isascii() or name not in KEYS:
        raise UsageError(f"ps2 keyboard: no key types {character!r}", hint="it has the US layout, for ASCII")
    return name, shifted


def _set_1(codes: bytes) -> bytes:
    """A key's set 2 codes in set 1, where a release is bit 7 and no byte of its own."""
    out = bytearray()
    release = 0
    for code in codes:
        if code == BREAK:
            release = 0x80
        else:
            out.append(SET_2_TO_1[code] | release)
            release = 0
    return bytes(out)


class Ps2KeyboardState(msgspec.Struct, frozen=True):
    """Everything the keyboard knows; the default is after power-on.

    `buffer` are scan codes not taken yet, oldest first, with one more for an overrun code;
    `replies` are answers, which go first. `command` is the one that waits for its parameter
    (0: none), `last` the byte that FEh sends again. `leds`: 1 Scroll, 2 Num, 4 Caps Lock.
    """

    scanning: bool = True
    scan_set: int = 2
    leds: int = 0
    rate: int = DEFAULT_RATE
    command: int = 0
    last: int = 0
    replies: tuple[int, ...] = ()
    buffer: tuple[int, ...] = ()


def _check(state: Ps2KeyboardState) -> None:
    if len(state.buffer) > BUFFER_SIZE + 1 or len(state.replies) > _REPLIES:
        raise UsageError(
            f"ps2 keyboard: {len(state.buffer)} scan codes and {len(state.replies)} replies in the state",
            hint=f"it keeps at most {BUFFER_SIZE + 1} and {_REPLIES}",
        )
    if any(not 0 <= byte <= 0xFF for byte in (*state.buffer, *state.replies, state.last)):
        raise UsageError("ps2 keyboard: a byte to send in the state is no byte", hint="use 0 to 255")
    if (
        state.scan_set not in (1, 2)
        or state.leds & ~7
        or state.rate & ~0x7F
        or (state.command and state.command not in _TAKE_A_PARAMETER)
    ):
        raise UsageError(
            f"ps2 keyboard: set {state.scan_set}, LEDs {state.leds:#x}, rate {state.rate:#x}, "
            f"command {state.command:#x} in the state",
            hint="set 1 or 2, three LEDs, a rate of seven bits, a command that takes a parameter",
        )


class Ps2Keyboard:
    """The keyboard. Its controller calls `send` and `take`; a host calls `press`, `release`, `type`.

    `on_ready`, set by the controller, is called when there is something new to take.
    """

    def __init__(self, *, state: Ps2KeyboardState | None = None) -> None:
        """Raises UsageError for a `state` that the keyboard cannot be in."""
        state = state or Ps2KeyboardState()
        _check(state)
        self.on_ready: Callable[[], None] | None = None
        self._scanning = state.scanning
        self._scan_set = state.scan_set
        self._leds = state.leds
        self._rate = state.rate
        self._command = state.command
        self._last = state.last
        self._replies = deque(state.replies)
        self._buffer = deque(state.buffer)

    @classmethod
    def from_state(cls, state: Ps2KeyboardState) -> Ps2Keyboard:
        """Raises UsageError for a state that the keyboard cannot be in."""
        return cls(state=state)

    def state(self) -> Ps2KeyboardState:
        return Ps2KeyboardState(
            scanning=self._scanning,
            scan_set=self._scan_set,
            leds=self._leds,
            rate=self._rate,
            command=self._command,
            last=self._last,
            replies=tuple(self._replies),
            buffer=tuple(self._buffer),
        )

    # What the host does.

    @property
    def leds(self) -> int:
        """The lights: 1 Scroll Lock, 2 Num Lock, 4 Caps Lock."""
        return self._leds

    def press(self, key: str) -> bool:
        """`key` (a name of KEYS) goes down. Answers whether its codes are on their way: they are
        lost while the guest has the keyboard disabled, and when the buffer has no room.

        Raises UsageError for a name that is no key.
        """
        return self._scan(self._codes(key)[0])

    def release(self, key: str) -> bool:
        """`key` comes up again; otherwise like `press`."""
        return self._scan(self._codes(key)[1])

    def type(self, text: str) -> int:
        """Press and release what types `text`; answers how many characters found room.

        The rest is not lost: the caller keeps it until the guest has read some. A character
        takes 3 to 6 of the 16 bytes. Raises UsageError, with nothing typed, for a character
        that the US layout has not.
        """
        keys = [_key_of(character) for character in text]
        if not self._scanning:
            return 0
        for done, (key, shifted) in enumerate(keys):
            down, up = self._codes(key)
            if shifted:
                shift_down, shift_up = self._codes("shift")
                down, up = shift_down + down, up + shift_up
            if len(self._buffer) + len(down + up) > BUFFER_SIZE:
                return done
            self._scan(down + up)
        return len(keys)

    def _codes(self, key: str) -> tuple[bytes, bytes]:
        codes = KEYS.get(key)
        if codes is None:
            raise UsageError(f"ps2 keyboard: no key {key!r}", hint="see vmmsim.devices.ps2_keyboard.KEYS")
        down, up = codes
        return (_set_1(down), _set_1(up)) if self._scan_set == 1 else (down, up)

    def _scan(self, codes: bytes) -> bool:
        if not self._scanning:
            return False
        room = len(self._buffer) + len(codes) <= BUFFER_SIZE
        if room:
            self._buffer.extend(codes)
        elif len(self._buffer) <= BUFFER_SIZE and not self._overrun():
            # A key whose codes do not all fit is dropped, and the overrun code tells.
            self._buffer.append(self._overrun_code())
        self._tell()
        return room

    def _overrun_code(self) -> int:
        return 0xFF if self._scan_set == 1 else 0x00

    def _overrun(self) -> bool:
        return bool(self._buffer) and self._buffer[-1] == self._overrun_code()

    def _tell(self) -> None:
        if self.on_ready is not None and (self._replies or self._buffer):
            self.on_ready()

    # The cable.

    def take(self) -> int | None:
        """The next byte for the computer, None when there is none."""
        if self._replies:
            self._last = self._replies.popleft()
        elif self._buffer:
            self._last = self._buffer.popleft()
        else:
            return None
        return self._last

    def send(self, byte: int) -> None:
        """A byte from the computer: a command, or the parameter of the one before."""
        command, self._command = self._command, 0
        # "If another command is received" instead of the parameter, it counts.
        if command and byte < SET_LEDS:
            self._parameter(command, byte)
        else:
            self._start(byte)
        self._tell()

    def _reply(self, *answer: int) -> None:
        if len(self._replies) + len(answer) <= _REPLIES:
            self._replies.extend(answer)

    def _start(self, byte: int) -> None:
        if byte == RESET:
            self._replies.clear()
            self._defaults()
            self._leds = 0
            self._scanning = True
            self._reply(ACK, SELF_TEST_PASSED)
        elif byte == RESEND:
            self._reply(self._last)
        elif byte == ECHO:
            self._reply(ECHO)
        elif byte == READ_ID:
            self._reply(ACK, *IDENTITY)
        elif byte in _TAKE_A_PARAMETER:
            self._command = byte
            self._reply(ACK)
        elif byte == ENABLE:
            self._buffer.clear()
            self._scanning = True
            self._reply(ACK)
        elif byte in (DISABLE, DEFAULTS):
            self._defaults()
            if byte == DISABLE:
                self._scanning = False
            self._reply(ACK)
        elif SET_ALL_FIRST <= byte <= SET_ALL_LAST:
            self._reply(ACK)
        else:
            self._reply(RESEND)

    def _parameter(self, command: int, byte: int) -> None:
        if command == SET_LEDS:
            self._leds = byte & 7
        elif command == SET_RATE:
            self._rate = byte & 0x7F
        elif command == SCAN_SET:
            if byte == 0:
                self._reply(ACK, self._scan_set)
                return
            if byte not in (1, 2):
                self._reply(RESEND)
                return
            self._scan_set = byte
            self._buffer.clear()
        else:
            self._command = command  # FBh to FDh take keys until another command comes
        self._reply(ACK)

    def _defaults(self) -> None:
        self._buffer.clear()
        self._scan_set = 2
        self._rate = DEFAULT_RATE
