"""The backend conformance suite: every check, and the one call that runs them all."""

from __future__ import annotations

from collections.abc import Callable, Collection

from ..backends.base import Backend
from . import (
    cases_mmio,
    cases_port,
    cases_random,
    cases_rmw,
    checks_cancel,
    checks_exits,
    checks_memory,
    checks_reply,
    checks_state,
    checks_step,
    checks_stop,
)
from .cases import checks_of
from .checks import Check, NotApplicable, Result

__all__ = ["CHECKS", "run_backend_conformance"]

#: Every check, in the order of the agenda: accesses, exits, replies, stops, steps, memory, state.
CHECKS: tuple[Check, ...] = (
    *checks_of(cases_port.CASES),
    *checks_of(cases_mmio.CASES),
    *checks_of(cases_rmw.CASES),
    *checks_of(cases_random.CASES),
    *checks_exits.CHECKS,
    *checks_reply.CHECKS,
    *checks_stop.CHECKS,
    *checks_cancel.CHECKS,
    *checks_step.CHECKS,
    *checks_memory.CHECKS,
    *checks_state.CHECKS,
)


def run_backend_conformance(
    factory: Callable[[], Backend], *, only: Collection[str] | None = None
) -> list[Result]:
    """Run the checks (`only`: those of these names), each on a backend of its own,
    which is closed after it.

    Returns a Result for each. Raises AssertionError naming every check that failed, with
    the number of the exit where it did, once all have run.
    """
    results: list[Result] = []
    for check in CHECKS:
        if only is not None and check.name not in only:
            continue
        backend = factory()
        try:
            check.run(backend)
        except NotApplicable as reason:
            results.append(Result(check.name, "not applicable", str(reason)))
        except Exception as error:
            results.append(Result(check.name, "failed", f"{type(error).__name__}: {error}"))
        else:
            results.append(Result(check.name, "passed"))
        finally:
            backend.close()
    failed = [result for result in results if result.outcome == "failed"]
    if failed:
        raise AssertionError(
            f"{len(failed)} of {len(results)} conformance checks failed:\n"
            + "\n".join(f"{result.name}: {result.note}" for result in failed)
        )
    return results
