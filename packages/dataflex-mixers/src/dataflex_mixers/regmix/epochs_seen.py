"""How often proxies and the main run see a row of each source, and what their compute is: from the data files.

Proxies of a few steps see a small source once where the main run sees it many times, and cannot show what repeating it
costs: the mixture that they find has too much of it. With as many passes over each source as the main run makes, which
takes sources of fewer rows, far smaller proxies find nearly the mixture that is best for it (arXiv 2606.07597).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from dataflex.config.mixture_sources import shares_in_order
from dataflex.config.spec import RunSpec
from dataflex.core.errors import ConfigError
from dataflex.forecast.forecast import Facts, Forecast, estimated, read_facts
from dataflex.planning.mixture import initial_proportions

from dataflex_mixers.regmix.mixture_drawing import Array
from dataflex_mixers.regmix.proxies import Main, given_prior

_ALIKE = 1.25
"""Passes over a source that differ by a larger factor are told apart."""
_ONCE = 1.05  # passes up to which a source is taken to be new to the end


@dataclass(frozen=True)
class Sizes:
    """What was read of the data and the models.

    Attributes:
        main: Of the main run.
        proxy: Of a proxy.
    """

    main: Facts
    proxy: Facts


def read_sizes(main: Main) -> Sizes:
    """Returns what the data files and the models' configurations say. Loads no weights."""
    return Sizes(read_facts(main.spec, ranks=main.search.ranks), read_facts(main.proxy_spec))


def prior_of(main: Main, sizes: Sizes) -> Array:
    """Returns the prior: that of the file, else the mixture that the main run begins with: (K,), sum 1.

    Raises:
        ConfigError: A share is 0, or follows from sizes that are not known.
    """
    found = given_prior(main)
    if found is None:
        found = _initial(main.spec, sizes.main)
    never = [name for name, share in zip(main.names, found, strict=True) if not share > 0]
    if never:
        raise ConfigError(
            f"prior: the share of {', '.join(never)} is 0, so that no mixture would have it -> give it a share, or "
            "leave it out of dataset"
        )
    return found


def _initial(spec: RunSpec, facts: Facts) -> Array:
    keys = spec.arguments
    own = None if spec.mixer is None else spec.mixer.component.params.get("proportions")
    rule = "mixture" if own else keys.mixture_sample_rule
    sources = facts.data.sources
    given = own or shares_in_order(keys.init_mixture_proportions, [source.name for source in sources])
    if rule != "uniform" and not (rule == "mixture" and given is not None):
        unknown = [source.how.partition(":")[0] for source in sources if source.count is None]
        if unknown:
            raise ConfigError(
                f"prior: the sizes of the sources are not known: {unknown[0]} -> write prior: in the file"
            )
    tokens = keys.mixture_unit == "tokens"
    amounts = [(source.count or 1.0) * (source.mean if tokens else 1.0) for source in sources]
    return initial_proportions(rule, given, amounts)


def on_shares(spec: RunSpec, facts: Facts, shares: Sequence[float]) -> Forecast:
    """Returns the forecast of a run on a mixture."""
    keys = replace(
        spec.arguments, mixture_sample_rule="mixture", init_mixture_proportions=tuple(float(share) for share in shares)
    )
    return estimated(replace(spec, arguments=keys), facts)


def passes(found: Forecast) -> dict[str, float | None]:
    """Returns source -> how often a row of it is expected to come; None where its rows are not known."""
    return {source.name: found.repeats(source) for source in found.facts.data.sources}


def unlike_passes(main: Mapping[str, float | None], proxy: Mapping[str, float | None]) -> Iterator[str]:
    """Yields a sentence for each source that one of the two repeats and the other sees more or less often.

    Args:
        main: Source -> passes of the main run over it on some mixture.
        proxy: The same of a proxy on that mixture.
    """
    for name, wanted in main.items():
        seen = proxy[name]
        if wanted is None or seen is None or max(wanted, seen) <= _ONCE:
            continue
        if not 1 / _ALIKE <= seen / wanted <= _ALIKE:
            yield (
                f"a row of {name} comes {wanted:.3g} times in the main run and {seen:.3g} times in a proxy, which "
                f"cannot show what repeating it costs -> give the proxies {seen / wanted:.2g} times its rows "
                "(num_samples in dataset_info.json of a dataset_dir of theirs), or train them as many passes"
            )


@dataclass(frozen=True)
class SearchCost:
    """What the proxies take.

    Attributes:
        steps_of_main: All of them together, in steps of the main run.
        main_steps: Steps that the main run has.
        counted: By what that is told.
    """

    steps_of_main: float
    main_steps: int
    counted: str


def search_cost(main: Forecast, proxy: Forecast, count: int) -> SearchCost:
    """Returns what proxies take.

    Args:
        main: The main run.
        proxy: A proxy.
        count: How many there are.
    """
    known = main.facts.model.size is not None and proxy.facts.model.size is not None
    if known and main.training_flops:
        of_step = main.training_flops / main.schedule.total
        return SearchCost(count * proxy.training_flops / of_step, main.schedule.total, "by FLOPs")
    rows = count * proxy.schedule.total * proxy.batch / main.batch
    return SearchCost(rows, main.schedule.total, "by rows, as the sizes of the models are not known")
