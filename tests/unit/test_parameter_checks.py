"""Each check lets through what it names and refuses the rest, with the parameter, the value and what is allowed."""

from __future__ import annotations

import math

import pytest
from dataflex.core import parameter_checks as checks
from dataflex.core.errors import ConfigError, Problem


@pytest.mark.parametrize(
    ("check", "good", "bad", "allowed"),
    [
        (lambda k, v: checks.one_of(k, v, ("even", "ucb")), ["even"], ["evn", None, 1], "even, ucb"),
        (checks.flag, [True, False], [1, 0, None, "true"], "true, false"),
        (checks.text_or_null, [None, "a"], ["", "  ", 1], "a text, or null"),
        (checks.positive, [1, 1e-9], [0, -1, True, math.nan, math.inf, "1", None], "a number above 0"),
        (checks.positive_or_null, [None, 0.5], [0, True], "a number above 0, or null for the default"),
        (lambda k, v: checks.at_least(k, v, 0), [0, 0.5], [-1e-9, math.inf, False], "a number of at least 0"),
        (
            lambda k, v: checks.at_least_or_null(k, v, 1, null="all rows"),
            [None, 1, 1.5],
            [0.9, True],
            "a number of at least 1, or null for all rows",
        ),
        (lambda k, v: checks.between(k, v, 0, 1), [0, 1], [-0.1, 1.1, True], "a number from 0 to 1"),
        (lambda k, v: checks.between(k, v, 0, 1, exclusive=True), [0, 0.9], [1], "a number from 0 below 1"),
        (checks.share, [1, 0.1], [0, 1.1, True], "a number above 0 and at most 1"),
        (checks.count, [1, 7], [0, 1.0, True, None], "a whole number of at least 1"),
        (lambda k, v: checks.count(k, v, least=0), [0], [-1, False], "a whole number of at least 0"),
        (checks.count_or_null, [None, 1], [0, 1.0], "a whole number of at least 1, or null for the default"),
    ],
)
def test_a_check_lets_the_good_through_and_says_what_is_wrong_with_the_bad(check, good, bad, allowed):
    assert [check("key", value) for value in good] == [None] * len(good)
    for value in bad:
        assert str(check("key", value)).startswith(f"key: found {value!r}, allowed: {allowed}")


def test_every_problem_is_reported_once_with_the_component():
    found = Problem("dim", "is 0"), None, checks.one_of("backend", "torhc", ("torch",)), Problem("dim", "is 0")
    with pytest.raises(ConfigError, match="2 problems") as error:
        checks.require("near selector", *found)
    assert "dim of the near selector: is 0" in str(error.value)
    assert "backend of the near selector: found 'torhc', allowed: torch -> did you mean 'torch'?" in str(error.value)


def test_no_problem_is_no_error():
    checks.require("near selector", None, None)


@pytest.mark.parametrize("name", ["./gone", "/gone/x", "~/gone-x", "saves/gone/held_out", "saves/gone/held_out/"])
def test_the_folder_of_a_model_that_is_not_there_is_told_before_it_is_asked_of_a_hub(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    problem = checks.model_or_null("reference_model", name)
    assert problem is not None
    assert "there is no folder" in problem.what


@pytest.mark.parametrize("name", [None, "gpt2", "Qwen/Qwen2.5-0.5B", "saves/here", "s3://bucket/of/models"])
def test_a_name_on_a_hub_an_address_and_null_pass(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert checks.model_or_null("reference_model", name) is None
