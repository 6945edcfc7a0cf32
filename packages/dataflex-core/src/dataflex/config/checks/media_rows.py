"""Rows with images that a component could not look at: it would go by their text, and nobody would be told."""

from __future__ import annotations

from collections.abc import Mapping

from dataflex.config.checks.parsed_config import Draft, names_in
from dataflex.config.checks.stage_table import GENERATED, asked_for
from dataflex.core.errors import ConfigError, Problem

NO_IMAGES = "answers are generated from the tokens of a prompt alone"


def media_problems(draft: Draft, media: Mapping[str, str]) -> list[Problem]:
    """Returns a problem for each component that has the model answer prompts, where a prompt has images.

    Args:
        draft: The configuration.
        media: Dataset -> ``images``, ``videos`` or ``audios``, where a row of its files has any.
    """
    given = names_in(draft.theirs.get("eval_dataset"))
    key, names = ("eval_dataset", given) if given else ("dataset", draft.dataset_names)
    pictured = next((name for name in names if name in media), None)
    if pictured is None:
        return []
    problems = []
    for known in draft.known:
        try:
            asks = asked_for(str(known.declares("asks", "")), known.params)
        except ConfigError:  # said by whoever looks at the stage
            continue
        if asks == GENERATED:
            what = f"the rows of '{pictured}' have {media[pictured]}, and for {known.named} {NO_IMAGES}"
            problems.append(Problem(key, what, "evaluate on rows of text alone, or take less, which sees images"))
    return problems
