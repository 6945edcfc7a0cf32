"""Held-out rows of each source, for mixers that look at them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dataflex.core.errors import ConfigError
from dataflex.rows.views import MixedSources


def held_out(who: str, names: Sequence[str], given: Mapping[str, Any] | None) -> MixedSources:
    """Returns the held-out rows as one dataset, in the order of the sources.

    Args:
        who: The mixer, for messages.
        names: The sources.
        given: Source -> its held-out rows.

    Raises:
        ConfigError: A source has none.
    """
    missing = [name for name in names if given is None or name not in given or not len(given[name])]
    if missing or given is None:
        raise ConfigError(
            f"the {who} looks at held-out rows of each source, and there are none for {', '.join(missing)} "
            "-> set mixer_eval_dataset to one dataset per source, or val_size to hold rows out of each"
        )
    return MixedSources({name: given[name] for name in names})
