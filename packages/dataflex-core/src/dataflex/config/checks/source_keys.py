"""The keys that make sources and weigh them: ``mixture_by``, ``mixture_embedding`` and ``objective_proportions``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataflex.config.checks.parsed_config import Draft
from dataflex.config.checks.stage_table import HIDDEN, PROMPTS, REFUSED
from dataflex.config.mixture_sources import (
    INITIAL,
    KEY,
    OBJECTIVE,
    MixtureBy,
    never_seen,
    share_problems,
    shares_in_order,
)
from dataflex.core.embedding_names import embedding_problem
from dataflex.core.errors import ConfigError, Problem

if TYPE_CHECKING:
    from dataflex.config.arguments import DataflexArguments
    from dataflex.core.source_labels import SourceLabels

EMBEDDING = "mixture_embedding"
METRIC = "objective_loss"
"""The held-out loss by ``objective_proportions``, behind ``eval_``."""


def source_problems(draft: Draft) -> list[Problem]:
    """Returns what is wrong with how the sources are made and weighed, as far as that shows before any row is read."""
    problems = [
        *_objective(draft),
        *_unseen(draft),
        *best_metric_problems(draft.arguments.objective_proportions, draft.theirs),
    ]
    by = _made_by(draft)
    if by is None:
        return problems
    if by.clusters is not None:
        problems += embedding_problems(draft.arguments.mixture_embedding, draft.stage)
    elif EMBEDDING in draft.written - draft.wrong:
        what = f"says by what rows are alike, and {KEY} is {draft.arguments.mixture_by}"
        problems.append(Problem(EMBEDDING, what, f"remove it, or write {KEY}: cluster:K"))
    packing = draft.theirs.get("packing")
    packed = draft.on("neat_packing") or (draft.stage == "pt" if packing is None else packing is True)
    problems += data_problems_of(by, streaming=draft.on("streaming"), packing=packed)
    if draft.arguments.mixer_eval_dataset is not None:
        what = f"names a dataset for each dataset, and with {KEY} the sources are others"
        problems.append(
            Problem("mixer_eval_dataset", what, "remove it; val_size with column:NAME holds rows out of each")
        )
    if by.file is not None:
        try:
            _labels(by.file)
        except ConfigError as error:
            said = str(error).removeprefix(f"{KEY}: ")
            problems.append(Problem(KEY, *said.split(" -> ", 1)))
    names = known_sources(draft)
    if names is not None:
        problems += share_problems(INITIAL, draft.arguments.init_mixture_proportions, names)
        problems += share_problems(OBJECTIVE, draft.arguments.objective_proportions, names)
    return problems


def data_problems_of(by: MixtureBy, *, streaming: bool, packing: bool) -> list[Problem]:
    """Returns why rows could not be told apart, by key of LLaMA-Factory's.

    Args:
        by: How the sources are made.
        streaming: Whether the data are streams.
        packing: Whether a row is several of the data.
    """
    found = []
    if streaming:
        what = (
            f"found true, but {KEY} sorts the rows by source before training, and a stream is read as it is trained on"
        )
        found.append(
            Problem("streaming", what, "set streaming: false, or make a dataset of each source and name them all")
        )
    if packing and by.column is not None:
        what = f"found true (as stage: pt has it), but {KEY} takes a column, and a packed row is made of several"
        found.append(Problem("packing", what, f"set packing: false, or write {KEY}: cluster:K"))
    return found


def embedding_problems(embedding: Any, stage: str) -> list[Problem]:
    """Returns why rows cannot be embedded: the name, or what the stage's rows are."""
    problem = embedding_problem(embedding, EMBEDDING)
    if problem is not None:
        return [problem]
    reason = REFUSED.get(stage, {}).get(HIDDEN)
    if embedding == "model" and reason is not None:
        return [Problem(EMBEDDING, f"is model, and with stage: {stage} {reason}", "write ngrams, which is the default")]
    return []


def prompt_problems(arguments: DataflexArguments, stage: str) -> list[Problem]:
    """Returns what the sources of a run cannot be made by, or weighed by, where rows are prompts.

    Args:
        arguments: dataflex's keys.
        stage: The stage of the trainer; without problems for one whose rows are no prompts.
    """
    if stage not in PROMPTS or not arguments.mixes:
        return []
    found, rows = [], f"the rows of stage {stage} are {PROMPTS[stage]}"
    if arguments.objective_proportions is not None:
        what = f"weigh the loss of the sources, and {rows}: the loss is that of sampled answers"
        found.append(Problem(OBJECTIVE, what, "leave them out: the mixer says how many prompts of each source come"))
    if arguments.mixture_unit == "tokens":
        what = f"found 'tokens', and {rows}, which are tokenised when answers are sampled"
        found.append(Problem("mixture_unit", what, "write rows"))
    by = MixtureBy.of(arguments)
    if by is not None and by.clusters is not None:
        what = f"found '{arguments.mixture_by}', and {rows}, which have no tokens and no hidden states to be alike by"
        found.append(Problem(KEY, what, f"write {KEY}: column:NAME or file:PATH, with groups of your own"))
    return found


def known_sources(draft: Draft) -> Sequence[str] | None:
    """Returns the sources of a run by their names; None where only the rows tell."""
    by = _made_by(draft)
    if by is None:
        return draft.dataset_names or None
    if by.clusters is not None:
        return cluster_names(by.clusters)
    if by.file is None:
        return None
    try:
        return _labels(by.file).names
    except ConfigError:  # which is said elsewhere
        return None


def cluster_names(count: int) -> tuple[str, ...]:
    """Returns the names of clusters, the largest first."""
    return tuple(f"cluster_{number}" for number in range(1, count + 1))


def best_metric_problems(objective: Any, keys: Any) -> list[Problem]:
    """Returns a problem where the best model is to be found by a loss that nothing computes.

    Args:
        objective: ``objective_proportions``.
        keys: LLaMA-Factory's keys.
    """
    if objective is not None or keys.get("metric_for_best_model") not in (METRIC, f"eval_{METRIC}"):
        return []
    what = f"is {keys['metric_for_best_model']}, the held-out loss by {OBJECTIVE}, which are not given"
    return [Problem("metric_for_best_model", what, f"give {OBJECTIVE}, or write eval_loss")]


def _objective(draft: Draft) -> list[Problem]:
    given, a = draft.arguments.objective_proportions, draft.arguments
    if given is None or not draft.dynamic:
        return []
    if not a.mixes:
        what = "weighs the sources of a mixture against the shares that they have in the rows, and train_type: "
        what += f"{a.train_type} has no mixture"
        way_out = "use a mixer, or train_type: dynamic_mix with static_mix: true, or the weighter 'dataset'"
        return [Problem(OBJECTIVE, what, way_out)]
    return share_problems(OBJECTIVE, given, draft.dataset_names) if draft.by_dataset and draft.dataset_names else []


def _unseen(draft: Draft) -> list[Problem]:
    """Returns a problem where a source has a share of the loss and none of the first rows."""
    a, names = draft.arguments, known_sources(draft)
    shares, objective = a.init_mixture_proportions, a.objective_proportions
    if not a.mixes or a.mixture_sample_rule != "mixture" or shares is None or objective is None or names is None:
        return []
    if share_problems(INITIAL, shares, names) or share_problems(OBJECTIVE, objective, names):
        return []  # which is said elsewhere
    return never_seen(names, shares_in_order(shares, names) or (), shares_in_order(objective, names) or ())


def _made_by(draft: Draft) -> MixtureBy | None:
    if KEY in draft.wrong or not (draft.arguments.mixes or draft.arguments.weighs):
        return None
    return MixtureBy.of(draft.arguments)


def _labels(path: Path) -> SourceLabels:
    from dataflex.core.source_labels import read_label_file  # here, as it imports NumPy: few runs have such a file

    return read_label_file(path)
