"""Exercise 3, solved: one snapshot for each place of the PIN, and back to it after a wrong letter.

The questions: (1) The lock judges each letter alone: 4 places of 8 letters are 32 tries, not 8 * 8 * 8 * 8.
(2) Then one try is a whole PIN, and 4096 may be needed, each from one snapshot; or count the exits or the
instructions until the answer, if the lock stops at the first wrong letter without saying so. (3) Not by
itself: whatever it counts goes back, too. With SEV-SNP or TDX the CPU keeps the VMM from the guest's memory
and registers, so that they can be neither read nor put back.
"""

LETTERS = "abcdefgh"
PLACES = 4


def unlock(machine) -> str:
    """Open the lock, and return its PIN."""
    pin = ""
    for _ in range(PLACES):
        before = machine.snapshot()
        for letter in LETTERS:
            machine.serial.send(letter.encode())
            if machine.serial.expect(rb"[.?]").group() == b".":
                pin += letter
                break
            machine.restore(before, rewind=False)
    machine.serial.expect(b"!")
    return pin
