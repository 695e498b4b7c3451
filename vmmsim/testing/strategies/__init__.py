"""Hypothesis strategies for guests, CPU states, devices, page tables and interrupts.

    from hypothesis import given
    from vmmsim.testing.strategies import programs

    @given(programs("64u"))
    def test_both_cpus_agree(case):
        assert not pair.run(case).fields

hypothesis is imported here and nowhere else in vmmsim: `pip install hypothesis`, or vmmsim[test].
"""

from __future__ import annotations

from .code import instructions, programs
from .cpu import cpu_states, fpu_states, registers
from .devices import DeviceScript, Step, device_scripts, interrupt_schedules, run_script
from .pages import PageTables, page_tables

__all__ = [
    "DeviceScript",
    "PageTables",
    "Step",
    "cpu_states",
    "device_scripts",
    "fpu_states",
    "instructions",
    "interrupt_schedules",
    "page_tables",
    "programs",
    "registers",
    "run_script",
]
