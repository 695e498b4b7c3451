"""The names of the exception vectors (SDM vol. 3, table 6-1)."""

from __future__ import annotations

__all__ = ["ERROR_CODE_VECTORS", "VECTOR_NAMES", "vector_name"]

VECTOR_NAMES = {
    0: "#DE",
    1: "#DB",
    2: "NMI",
    3: "#BP",
    4: "#OF",
    5: "#BR",
    6: "#UD",
    7: "#NM",
    8: "#DF",
    10: "#TS",
    11: "#NP",
    12: "#SS",
    13: "#GP",
    14: "#PF",
    16: "#MF",
    17: "#AC",
    18: "#MC",
    19: "#XM",
}

#: Vectors whose exceptions push an error code.
ERROR_CODE_VECTORS = frozenset({8, 10, 11, 12, 13, 14, 17})


def vector_name(vector: int) -> str:
    """`#GP` for 13, `INT 0x21` for a vector that has no name."""
    return VECTOR_NAMES.get(vector, f"INT {vector:#x}")
