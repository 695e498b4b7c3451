"""Exercise 3: the lock. See statement.md."""

LETTERS = "abcdefgh"


def unlock(machine) -> str:
    """Open the lock, and return its PIN."""
    raise NotImplementedError("unlock() of exercise 3")
