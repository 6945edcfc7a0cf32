"""An entry of a user's components file with our parameters, and what is to be said of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from dataflex.config.moved.moved_parameters import THERE, RunKeys, differences, read_preset
from dataflex.config.presets import Entry
from dataflex.core import registry
from dataflex.core.kinds import Kind
from dataflex.discovery.catalog import lookup
from dataflex.utils.logging import logger


def read_entry(kind: Kind, entry: Entry, run: RunKeys, overridden: Iterable[str]) -> Entry:
    """Returns an entry with our parameters; what is refused, and what its file leaves out, stand in it.

    Only presets of components that this project publishes are read: another package's are its own.

    Args:
        kind: The kind.
        entry: The entry, as written.
        run: What the run says.
        overridden: Parameters that the run gives.
    """
    package, component = registry.split_name(entry.name)
    owner = registry.official(kind).get(component)
    if package and owner != package:
        return entry
    read = read_preset(kind.section, component, entry.params, entry.where, run)
    if read.unused:
        logger.info("%s: parameters of %s without effect here: %s", entry.where, THERE, "; ".join(read.unused))
    if read.spelled:
        renamed = ", ".join(f"{there} as {here}" for here, there in read.spelled.items())
        logger.info("%s: parameters of %s read by our names: %s", entry.where, THERE, renamed)
    notes = [
        f"{entry.where}: left out, of {THERE}, so that results differ: {differing}" for differing in read.differing
    ]
    info = lookup(kind, component) if entry.theirs and owner else None
    if info is not None:
        unlike = differences(kind.section, component, read.params, overridden, info.parameters, run)
        notes += [f"{entry.where}, a file of {THERE} ({entry.theirs}): {sentence}" for sentence in unlike]
    return replace(
        entry,
        params=read.params,
        refused=(*entry.refused, *read.problems),
        notes=(*entry.notes, *notes),
        spelled=read.spelled,
    )
