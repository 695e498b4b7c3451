"""What the test suite says of its own backends: skipped with a reason, failed on demand, counted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_tools import no_kvm

from vmmsim.testing.slow import time_limit

HERE = Path(__file__).parent


def run(*arguments: str, device: str) -> subprocess.CompletedProcess[str]:
    """This suite's test of closing a machine twice, where /dev/kvm is `device`."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(
        [*command, str(HERE / "test_machine.py"), "-k", "close_twice"],
        cwd=HERE.parent,
        # Without what CI asks of the outer run.
        env={**os.environ, "VMMSIM_KVM_DEVICE": device, "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        timeout=time_limit(60),
    )


def test_without_kvm_its_tests_are_skipped_with_the_reason_and_counted() -> None:
    done = run(device="/no/such/kvm")
    assert done.returncode == 0, done.stdout
    assert "on kvm: 0, on unicorn: 1, on unicorn-portable: 1; skipped on kvm: 1" in done.stdout
    assert "backend 'kvm': " in done.stdout
    assert no_kvm("/no/such/kvm") in done.stdout


def test_a_required_backend_that_is_missing_is_a_failure() -> None:
    done = run("--vmm-require=kvm", device="/no/such/kvm")
    assert done.returncode == 1, done.stdout
    assert "backend 'kvm' is required here, but" in done.stdout


@pytest.mark.kvm
def test_a_required_backend_that_is_there_changes_nothing() -> None:
    done = run("--vmm-require=kvm", device=os.environ.get("VMMSIM_KVM_DEVICE", "/dev/kvm"))
    assert done.returncode == 0, done.stdout
    assert "on kvm: 1," in done.stdout
