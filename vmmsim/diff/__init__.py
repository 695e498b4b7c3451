"""Comparing two runs: what may differ is a named divergence, everything else is a finding."""

from __future__ import annotations

from .compare import Difference, TraceStep, compare_memory, compare_states, compare_traces
from .divergences import Divergence, divergence, divergences, ignored_bits

__all__ = [
    "Difference",
    "Divergence",
    "TraceStep",
    "compare_memory",
    "compare_states",
    "compare_traces",
    "divergence",
    "divergences",
    "ignored_bits",
]
