"""A run through LLaMA-Factory's own entry: training, and scoring up to where training would begin."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import llamafactory.train.tuner as tuner
import torch

from dataflex.config.spec import RunSpec
from dataflex.core.verbosity import Verbosity
from dataflex.integrations.llamafactory import ray, reading
from dataflex.integrations.llamafactory.patches import in_words, installed, standing_in
from dataflex.integrations.llamafactory.quiet_libraries import quieted
from dataflex.integrations.llamafactory.stream_datasets import keys_for_llamafactory
from dataflex.run.scoring_weights import ScoringWeights
from dataflex.trainer import DynamicTrainer
from dataflex.trainer.score_trainer import ScoresWrittenError, ScoreTrainer

SAYS_ALL = Verbosity()


def run(spec: RunSpec, verbosity: Verbosity = SAYS_ALL) -> None:
    """Trains through LLaMA-Factory's own entry. Of a ``static`` run, nothing is changed but the words of its errors.

    Args:
        spec: The run.
        verbosity: How much it says.
    """
    if spec.arguments.train_type == "static":
        words = [(tuner, "get_train_args", in_words(tuner.get_train_args)), *reading.replacements()]
        with quieted(verbosity), standing_in(words):
            tuner.run_exp(dict(spec.llamafactory))
        return
    with _installed(spec, verbosity):
        tuner.run_exp(keys_for_llamafactory(spec))


def score(spec: RunSpec, weights: ScoringWeights, verbosity: Verbosity = SAYS_ALL) -> Path | None:
    """Scores the train dataset through LLaMA-Factory's own entry, up to where the first batch would be trained on.

    Args:
        spec: The run.
        weights: What scores it. LLaMA-Factory is told, and looks for no checkpoint itself.
        verbosity: How much it says.

    Returns:
        The file of scores; None on a rank that writes none.
    """
    chosen = {"resume_from_checkpoint": weights.checkpoint, "overwrite_output_dir": weights.checkpoint is None}
    try:
        with _installed(spec, verbosity, ScoreTrainer):
            tuner.run_exp(keys_for_llamafactory(spec) | chosen)
    except ScoresWrittenError as done:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        return done.path
    raise AssertionError("scoring leaves the training loop")


@contextmanager
def _installed(spec: RunSpec, verbosity: Verbosity, mixin: type[DynamicTrainer] | None = None) -> Iterator[None]:
    """Puts dynamic training into LLaMA-Factory, here and in the processes that it has Ray start; undone on leaving."""
    with quieted(verbosity), installed(spec, mixin), standing_in(ray.replacements(spec, verbosity)):
        yield
