"""Several rounds of DoReMi: each reference is trained on the mixture of the round before (arXiv 2305.10429).

    w_0: the mixture of the first reference
    round r: a reference on w_(r-1), a proxy against it, w_r the averaged weights of the proxy
    until max_k |w_r,k - w_(r-1),k| < 0.001 for some r > 1, or there are as many rounds as were asked for

So what one round would train as its final model is, as small as a reference, the reference of the next; the large final
model is trained once, on the mixture of the last round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dataflex.utils.logging import logger

from dataflex_mixers.doremi.handover import read_weights
from dataflex_mixers.doremi.three_runs import Pipeline

TOLERANCE = 1e-3
"""The largest change of a weight by which two rounds are taken to agree, as in the paper."""

Step = Callable[[Pipeline, str], int]
"""Runs a step of a round where it is not finished; returns the exit code."""


def largest_change(before: Sequence[float], after: Sequence[float]) -> float:
    """Returns max_k |after_k - before_k|."""
    return max(abs(a - b) for a, b in zip(after, before, strict=True))


def run_rounds(pipeline: Pipeline, step: Step) -> int:
    """Runs all rounds and the final model. Returns the exit code of the first step that fails, or 0."""
    before: list[float] | None = None
    for number in range(1, pipeline.rounds + 1):
        pipeline = pipeline.of_round(number)
        for name in ("reference", "proxy"):
            code = step(pipeline, name)
            if code:
                return code
        weights = read_weights(pipeline.output_dir("proxy"), pipeline.names)
        if before is not None:
            change = largest_change(before, weights)
            logger.info("doremi: round %d moved no weight by more than %.4g", number, change)
            if change < TOLERANCE:
                break
        before = weights
    return step(pipeline, "final")
