"""Options as values: what is accepted, and that nothing typed ends in a traceback."""

from __future__ import annotations

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from vmmsim.cli.common import check_backend, parse_address, parse_seconds
from vmmsim.cli.main import VERBS, cli
from vmmsim.errors import UsageError


@pytest.mark.parametrize(
    ("text", "seconds"), [("10", 10), ("1.5s", 1.5), ("200ms", 0.2), ("2m", 120), ("1h", 3600), (" 5 S", 5)]
)
def test_times(text: str, seconds: float) -> None:
    assert parse_seconds(text) == pytest.approx(seconds)


@given(st.text(max_size=8))
def test_any_time_is_positive_and_finite_or_refused(text: str) -> None:
    try:
        value = parse_seconds(text)
    except UsageError:
        return
    assert 0 < value < 1e9


@given(st.integers(0, 1 << 64))
def test_addresses_in_each_notation(value: int) -> None:
    assert parse_address(hex(value), "--load") == parse_address(str(value), "--load") == value


@given(st.text(max_size=8))
def test_any_address_is_a_number_or_refused(text: str) -> None:
    try:
        value = parse_address(text, "--load")
    except UsageError:
        return
    assert value >= 0


@pytest.mark.parametrize(("name", "hint"), [("kmv", "did you mean 'kvm'?"), ("qemu!", "auto, kvm, unicorn")])
def test_an_unknown_backend_is_refused_with_the_names(name: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_backend(name)

    assert hint in caught.value.hint


WORDS = st.sampled_from(
    ["run", "exits", "guests", "devices", "loop", "--load", "--mode", "-m", "0", "1T", "x", "--entry",
     "--json", "--backend", "nope", "--model", "--limit", "--", "-", "--source", "\x00",
     "", "é", "--timeout", "-1"]
)  # fmt: skip


@settings(max_examples=60)
@given(st.lists(WORDS, max_size=4))
def test_nothing_typed_is_an_internal_error(arguments: list[str]) -> None:
    result = CliRunner().invoke(cli, [*arguments, "--backend", "nope"])

    assert result.exit_code in (0, 125, 127), result.output
    assert "internal error" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)


@pytest.mark.parametrize("verb", VERBS)
def test_each_verbs_help_is_what_the_list_promises(verb: str) -> None:
    shown = CliRunner().invoke(cli, [verb, "--help"])

    assert shown.exit_code == 0
    assert f"vmmsim {verb}" in shown.output
