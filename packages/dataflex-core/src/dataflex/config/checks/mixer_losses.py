"""What a mixer that weighs the losses of the sources, or takes gradients from training, does not go together with."""

from __future__ import annotations

from collections.abc import Mapping

from dataflex.config.checks.conditional_words import holding
from dataflex.config.checks.parsed_config import Draft, KnownPart
from dataflex.config.checks.stage_table import GRADIENTS, asked_for
from dataflex.config.mixture_sources import OBJECTIVE
from dataflex.core.errors import ConfigError, Problem
from dataflex.core.kinds import MIXER

WEIGHS, LOSSES = "weighs_sources", "losses"
"""The attribute of a class that says with which parameters it weighs the losses of the sources, and how it says so."""

WITHOUT_GRADIENTS: Mapping[str, str] = {
    "use_badam": "trains other layers in turn, so that gradients of two steps are of other weights",
    "use_unsloth": "computes layers by kernels of its own, without calling them",
    "torch_compile": "compiles the layers, which hooks do not reach then",
    "label_smoothing_factor": "makes the loss something else than a mean of cross entropies",
    "use_dft_loss": "makes the loss something else than a mean of cross entropies",
    "use_eaft_loss": "makes the loss something else than a mean of cross entropies",
    "moe_aux_loss_coef": "adds the loss of the router, which is of no row",
}
"""What a mixer cannot look through that takes gradients of rows from the backward pass of training -> why."""


def mixer_loss_problems(draft: Draft) -> list[Problem]:
    """Returns what is wrong with the mixer beside the keys of the run, as far as its class says it in constants."""
    problems = []
    for known in draft.known:
        if known.kind is not MIXER:
            continue
        if draft.arguments.objective_proportions is not None:
            problems += _weighed_twice(known)
        on = [key for key in WITHOUT_GRADIENTS if draft.theirs.get(key)]
        problems += [without_gradients(known.part.component.name, key) for key in on[:1] if _takes_gradients(known)]
    return problems


def weighs_itself(mixer: str) -> Problem:
    """Returns the problem of ``objective_proportions`` beside a mixer that weighs the sources."""
    what = f"the mixer '{mixer}' weighs the loss of each source itself, by what it learns"
    return Problem(OBJECTIVE, what, "leave one of the two out")


def without_gradients(mixer: str, key: str) -> Problem:
    """Returns the problem of one of :data:`WITHOUT_GRADIENTS` beside a mixer that takes gradients."""
    what = f"the mixer '{mixer}' takes gradients of rows from training, and this {WITHOUT_GRADIENTS[key]}"
    return Problem(key, what, f"leave {key} out, or use a mixer that looks at losses")


def _weighed_twice(known: KnownPart) -> list[Problem]:
    try:
        weighs = holding(WEIGHS, str(known.declares(WEIGHS, "")), (LOSSES,), known.params)
    except ConfigError as error:
        return [Problem(known.where, f"{known.named}: {error}")]
    return [weighs_itself(known.part.component.preset)] if weighs else []


def _takes_gradients(known: KnownPart) -> bool:
    try:
        return asked_for(str(known.declares("asks", "")), known.params) == GRADIENTS
    except ConfigError:  # which the stage tells, where it matters
        return False
