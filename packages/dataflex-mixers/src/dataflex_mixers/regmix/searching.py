"""A search from beginning to end: what it will do, the proxies, the mixture."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from dataflex.core.errors import ConfigError
from dataflex.experiments.arm_steps import steps_in_words
from dataflex.launch import torchrun
from dataflex.utils.logging import logger

from dataflex_mixers.regmix.epochs_seen import (
    SearchCost,
    Sizes,
    on_shares,
    passes,
    prior_of,
    read_sizes,
    search_cost,
    unlike_passes,
)
from dataflex_mixers.regmix.found_mixture import Fit, find, warnings_of
from dataflex_mixers.regmix.mixture_drawing import Array, bounds, drawn, rare_sources
from dataflex_mixers.regmix.proxies import Main, read_main
from dataflex_mixers.regmix.proxy_losses import (
    StoppedSearchError,
    Train,
    losses_of,
    losses_so_far,
    train_all,
    visible_devices,
)
from dataflex_mixers.regmix.regmix_file import Search, read_search
from dataflex_mixers.regmix.search_folder import (
    TABLE,
    require_same_search,
    result,
    summary,
    write_plan,
    write_result,
    write_table,
)


@dataclass(frozen=True)
class Planned:
    """A search before it starts.

    Attributes:
        main: The main run and its proxies.
        sizes: What was read of data and models.
        prior: (K,) the prior.
        mixtures: (N, K) the mixtures of the proxies.
    """

    main: Main
    sizes: Sizes
    prior: Array
    mixtures: Array

    @property
    def search(self) -> Search:
        """The file."""
        return self.main.search


def plan_search(file: str, overrides: Sequence[str]) -> Planned:
    """Returns the search of a file, with its mixtures drawn.

    Raises:
        ConfigError: Everything that is wrong with the file, the base or the proxies.
    """
    main = read_main(read_search(file, overrides))
    sizes = read_sizes(main)
    prior_K = prior_of(main, sizes)
    mixtures_NK = drawn(prior_K, main.search.mixtures, main.search.drawing, main.search.seed)
    return Planned(main, sizes, prior_K, mixtures_NK)


def in_words(main: Main) -> str:
    """Returns what a search will do, in a line."""
    search, out = main.search, sum(main.search.is_held_out)
    return (
        f"{search.mixtures} proxies of {steps_in_words(main.proxy_spec)} each, {out} of them held out of the fit "
        f"({search.regressor}); the main run has {steps_in_words(main.spec)}"
    )


def run_search(planned: Planned, train: Train | None = None) -> int:
    """Trains the proxies, finds the mixture and writes it. Returns the exit code."""
    from dataflex.run.lock import locked  # here: it imports torch

    search, main = planned.search, planned.main
    plan = require_same_search(main, planned.prior)
    available = visible_devices()
    jobs = min(search.jobs or max(1, len(available)), search.mixtures)
    logger.info("%s; %d at a time", in_words(main), jobs)
    for text in beforehand(planned):
        logger.warning("%s", text)
    search.output_dir.mkdir(parents=True, exist_ok=True)
    with locked(search.output_dir):
        write_plan(search.output_dir, plan)
        runs = main.proxies(planned.mixtures)
        table, targets = search.output_dir / TABLE, list(main.targets)
        write_table(table, main, planned.mixtures, [losses_so_far(run, targets) for run in runs])
        try:
            train_all(runs, jobs, available, train)
        except StoppedSearchError as stopped:
            logger.info("%s", stopped.why)
            return stopped.code
        finally:
            write_table(table, main, planned.mixtures, [losses_so_far(run, targets) for run in runs])
        losses_NT = np.array([losses_of(run, targets) for run in runs])
        _finish(planned, losses_NT)
    return 0


def _finish(planned: Planned, losses_NT: Array) -> None:
    main, search = planned.main, planned.search
    fit = Fit(search.regressor, search.simulate, search.top_k, search.drawing.minimum, search.seed)
    held_out_N = np.array(search.is_held_out)
    found = find(planned.mixtures, losses_NT, held_out_N, main.targets, planned.prior, fit)
    losses_N = losses_NT @ np.array(list(main.targets.values()))
    best = int(np.argmin(losses_N))
    said = {
        "cost": asdict(cost(planned)),
        "best_proxy": {"proxy": best + 1, "loss": float(losses_N[best])},
        "warnings": [
            *rare(planned),
            *warnings_of(found, planned.mixtures, losses_N.tolist(), main.names),
            *(f"on the mixture {text}" for text in repetition(planned, found.shares)),
        ],
    }
    content = result(main, planned.prior, planned.mixtures, losses_NT, found, said)
    write_result(main, found, content)
    sys.stdout.write(summary(main, planned.prior, found, said))


def beforehand(planned: Planned) -> list[str]:
    """Returns what speaks against a search before it starts."""
    return [*rare(planned), *(f"at the shares of the prior {text}" for text in repetition(planned, planned.prior))]


def rare(planned: Planned) -> list[str]:
    """Returns a sentence for each source that few proxies have."""
    limits_K = bounds(planned.prior, planned.search.drawing.max_usage)
    return list(rare_sources(planned.mixtures, limits_K, planned.main.names))


def repetition(planned: Planned, shares_K: Array) -> list[str]:
    """Returns a sentence for each source that proxies see another number of times than the main run."""
    shares, main, sizes = shares_K.tolist(), planned.main, planned.sizes
    return list(
        unlike_passes(
            passes(on_shares(main.spec, sizes.main, shares)), passes(on_shares(main.proxy_spec, sizes.proxy, shares))
        )
    )


def cost(planned: Planned) -> SearchCost:
    """Returns what the proxies take."""
    shares = planned.prior.tolist()
    main = on_shares(planned.main.spec, planned.sizes.main, shares)
    proxy = on_shares(planned.main.proxy_spec, planned.sizes.proxy, shares)
    return search_cost(main, proxy, planned.search.mixtures)


def require_no_launcher() -> None:
    """Refuses to be a rank.

    Raises:
        ConfigError: A launcher has started this process.
    """
    if torchrun.is_worker():
        raise ConfigError("regmix starts its proxies itself -> call it without torchrun, and set jobs: NUMBER")
