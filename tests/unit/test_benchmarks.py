"""Benchmarks: what they cannot measure is refused in words, and the smallest sizes run."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from dataflex.testing import tiny_model

ROOT = Path(__file__).parents[2]
MODULES = sorted(
    module.name
    for module in pkgutil.iter_modules([str(ROOT / "benchmarks")])
    if "__main__" in (ROOT / "benchmarks" / f"{module.name}.py").read_text(encoding="utf-8")
)
VOCABULARY = 4096  # that of the benchmarks' tokenizer
WITHOUT_MODEL = {"large_data", "large_plans", "mixture", "ordering", "report"}


class _AskedError(Exception):
    """Leaves a benchmark where it reads its arguments."""

    def __init__(self, parser):
        super().__init__()
        self.parser = parser


@pytest.fixture
def benchmark(monkeypatch):
    """Returns ``benchmark(name)``, the module."""
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setenv("DATAFLEX_TEST_GPU", "0")  # --device sets it
    return lambda name: importlib.import_module(f"benchmarks.{name}")


def asked(module, monkeypatch):
    """Returns the parser of a benchmark."""

    def parse_args(self, *args, **kwargs):
        raise _AskedError(self)

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        with pytest.raises(_AskedError) as found:
            module.main()
    return found.value.parser


def refusal(module, monkeypatch, capsys, *argv):
    """Returns what a benchmark says of arguments that it refuses."""
    monkeypatch.setattr(sys, "argv", ["benchmark", *argv])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("name", MODULES)
def test_every_number_of_a_benchmark_has_a_least_value_that_is_said(benchmark, monkeypatch, capsys, name):
    module = benchmark(name)
    numbers = [a for a in asked(module, monkeypatch)._actions if a.type is int or "at_least" in repr(a.type)]
    assert numbers
    for action in numbers:
        (flag,) = action.option_strings
        text = refusal(module, monkeypatch, capsys, flag, "-1")
        assert f"argument {flag}: found '-1', allowed: a whole number, at least " in text


@pytest.mark.parametrize("name", MODULES)
def test_every_benchmark_that_has_a_model_says_where_it_computes(benchmark, monkeypatch, capsys, name):
    module = benchmark(name)
    flags = {flag for action in asked(module, monkeypatch)._actions for flag in action.option_strings}
    assert ("--device" in flags) == (name not in WITHOUT_MODEL)
    if "--device" in flags:
        assert "--device: found 'gpu', allowed: cpu, cuda" in refusal(module, monkeypatch, capsys, "--device", "gpu")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert "sees no CUDA device -> use cpu" in refusal(module, monkeypatch, capsys, "--device", "cuda")


@pytest.mark.parametrize(
    ("name", "argv", "text"),
    [
        ("gradient_features", ["--rows", "2", "--quality"], "compares the order of rows"),
        ("large_data", ["--rows", "5000"], "needed: 10 times --batch 512"),
        ("large_plans", ["--rows", "5000"], "allowed: at most a thousandth of --rows 5000"),
        ("ordering", ["--only", "saw; swa"], "found 'swa', allowed: folding; length; "),
        ("weighter_steps", ["--rows", "33"], "allowed: at most 32"),
        ("mixture_quality", ["--only", "odn"], "found 'odn', allowed: uniform; by size; "),
        ("mixture_quality", ["--data", "web"], "found 'web', allowed: NAME=FILE"),
        ("selection_quality", ["--only", "less; near"], "found 'less', allowed: random; less, adam; "),
        ("composition", ["--only", "less; near"], "found 'near', allowed: random; filter by loss; less; "),
        ("overhead", ["--only", "four"], "found 'four', allowed: static; select random; "),
    ],
)
def test_what_cannot_be_measured_is_refused_in_words(benchmark, monkeypatch, capsys, name, argv, text):
    assert text in refusal(benchmark(name), monkeypatch, capsys, *argv)


@pytest.mark.parametrize(
    ("name", "argv"),
    [
        ("gradient_features", ["--rows", "1", "--dense-rows", "1"]),
        ("loss_scoring", ["--rows", "1"]),
    ],
)
def test_a_handful_of_rows_is_measured(benchmark, monkeypatch, capsys, name, argv):
    monkeypatch.setattr(sys, "argv", [name, *argv, "--repeats", "1", "--cutoff", "16"])
    module = benchmark(name)
    monkeypatch.setattr(module, "SIZES", (1, 4))
    monkeypatch.setattr(module, "PROJ_DIM", 128, raising=False)
    monkeypatch.setattr(module, "small_model", lambda device: tiny_model(VOCABULARY))
    module.main()
    assert "| run | median s |" in capsys.readouterr().out


def test_a_handful_of_rows_is_arranged_by_every_order_and_less_is_padded(benchmark, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ordering", "--rows", "9", "--repeats", "2"])
    module = benchmark("ordering")
    monkeypatch.setattr(module, "PADDED_ROWS", 5000)
    module.main()
    said = capsys.readouterr().out
    assert all(f"| {name} | " in said for name in module.WALKED)
    assert "| 8 | 2." in said


def test_a_few_thousand_rows_are_planned(benchmark, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["large_plans", "--rows", "5000", "--batch", "5", "--repeats", "2"])
    benchmark("large_plans").main()
    said = capsys.readouterr().out
    assert "| saw over the run: arranged, first update | " in said
    assert "| rows without replacement, pool of a thousandth | " in said


def test_purity_is_the_share_of_the_commonest_family_of_each_group(benchmark):
    purity = benchmark("cluster_purity").purity
    assert purity(np.array([0, 0, 0, 1, 1]), ["a", "a", "b", "b", "c"]) == 3 / 5
    assert purity(np.arange(3), ["a", "a", "b"]) == 1


@pytest.mark.parametrize("asked_for", [10, 19])
def test_static_and_dynamic_runs_of_the_overhead_have_the_same_steps(benchmark, monkeypatch, asked_for):
    overhead = benchmark("overhead")
    words = {}
    monkeypatch.setattr(overhead, "create", lambda folder: folder.mkdir())
    monkeypatch.setattr(overhead, "loop_seconds", lambda name, folder, given: words.update(given) or (1.0, 1.0))
    overhead.compare([*overhead.RUNS], 1, asked_for, 2, "cpu")
    assert words["steps"] == 10 * words["tenth"] == 10
    assert words["device"] == "cpu"
