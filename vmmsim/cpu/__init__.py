"""The CPU as software sees it: state, modes, descriptors, page walk. Knows no backend."""

from .state import CpuState, Events, FpuState, Registers, Segment, Table

__all__ = ["CpuState", "Events", "FpuState", "Registers", "Segment", "Table"]
