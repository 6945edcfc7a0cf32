"""The component: named, known, its parameters right; and the plugin files that may bring it.

This project's own components are not imported. Plugin files are, and a component of another package: whether they can
be is known in no other way, and the run would end there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from dataflex.config.arguments import COMPOSED
from dataflex.config.axis_keys import AXES, BY, EVERY, KEEP, NEEDS_SCORES, OVER
from dataflex.config.checks.asked import Asked, asked_for
from dataflex.config.checks.conditional_words import holding
from dataflex.config.checks.parsed_config import Draft, KnownPart, names_in
from dataflex.config.checks.source_keys import known_sources
from dataflex.config.component_choice import resolve
from dataflex.config.moved.moved_parameters import RunKeys
from dataflex.config.presets import read_components
from dataflex.config.spec import ComponentSpec, Part
from dataflex.core import registry
from dataflex.core.errors import ConfigError, InvalidConfigError, Problem, UnknownComponentError
from dataflex.core.kinds import MIXER, ORDER
from dataflex.discovery import component_classes
from dataflex.discovery.catalog import ComponentInfo, lookup
from dataflex.discovery.plugin_files import plugin_file, scan_plugin_file
from dataflex.discovery.plugins import load_plugin_files

NEEDS_ROWS = "needs_rows"
"""The attribute of a class that says with which parameters it needs rows besides those of training."""


def component_problems(draft: Draft) -> tuple[list[Problem], Draft]:
    """Returns what is wrong with the components, and the draft with those that could be found."""
    problems, draft = resolved_components(draft)
    return [*problems, *_without_target(draft)], draft


def resolved_components(draft: Draft) -> tuple[list[Problem], Draft]:
    """Does what :func:`component_problems` does, without a look at the evaluation sets of the run."""
    problems, from_files = _plugins(draft.arguments.plugins)
    broken = bool(problems)
    problems += _misplaced(draft)
    asked, more = asked_for(draft, from_files)
    problems += more
    known: list[KnownPart] = []
    for part in asked:
        found = _found(draft, part, from_files, broken)
        if isinstance(found, KnownPart):
            known.append(found)
        else:
            problems += found
    if not asked and draft.arguments.kinds and not draft.static_mix:
        problems += _components_file(draft)
    placed = [_with_scores(draft, one) for one in known]
    return problems, replace(draft, known=tuple(placed), complete=len(placed) == len(asked))


def _found(draft: Draft, asked: Asked, from_files: list[ComponentInfo], broken: bool) -> KnownPart | Sequence[Problem]:
    """Returns a component that is asked for, or what is wrong."""
    kind, a = asked.kind, draft.arguments
    sources = None if draft.theirs.get("tokenized_path") else known_sources(draft)
    try:
        written = {key: getattr(a, key) for key in a.names() if key in draft.written}
        run = RunKeys(written, max(asked.start, a.warmup_step))
        spec = resolve(kind, asked.name, a.components_cfg_file, from_files, asked.params, sources, asked.place, run)
        _import(spec, known_broken=broken)
    except InvalidConfigError as error:
        return error.problems
    except UnknownComponentError as error:
        # it may well stand in the file that cannot be read
        return [] if broken and a.plugins else [Problem(asked.where, str(error))]
    except ConfigError as error:
        return [Problem(asked.where, str(error))]
    local = {info.name: info for info in from_files if info.kind == kind}
    info = lookup(kind, spec.name) or local.get(spec.name)
    every, keep = asked.given.get(EVERY, 1), asked.given.get(KEEP)
    return KnownPart(asked.where, Part(spec, every, asked.start, keep), info)


def _with_scores(draft: Draft, known: KnownPart) -> KnownPart:
    """Returns an order with where its scores come from and what it arranges; other components as they are.

    Both are what the run says, else what the preset says, else what the class says; else the scores are those of the
    selector that chooses the rows, or losses, and what is arranged is what it chose, or the whole run.
    """
    if known.kind is not ORDER:
        return known
    chooses = any(KEEP not in given for _, given in draft.arguments.selectors)  # found or not
    spec, said = known.part.component, draft.arguments.order or {}
    by = said.get(BY) or spec.by or known.declares(BY) or ("selector" if chooses else "loss")
    over = said.get(OVER) or spec.over or known.declares(OVER) or ("stretch" if chooses else "run")
    by = by if known.declares(NEEDS_SCORES, True) else None
    return replace(known, part=replace(known.part, component=replace(spec, by=by, over=over), by=by, over=over))


def _without_target(draft: Draft) -> list[Problem]:
    """Checks that there is an evaluation set for each component that aims at one."""
    evaluated, split = names_in(draft.theirs.get("eval_dataset")), draft.number("val_size", 0)
    target = bool(evaluated or split or draft.theirs.get("tokenized_path"))
    held_out = bool(draft.arguments.mixer_eval_dataset or (split and not evaluated))
    return [
        *no_target(draft.known, target, _NAME_TARGET),
        *no_held_out(draft.known, held_out, _NAME_HELD_OUT),
    ]


_NAME_TARGET = "name one, or set val_size to hold rows out of the train dataset"
_NAME_HELD_OUT = "name one dataset per dataset, or set val_size, without eval_dataset, to hold rows out of each"
_TARGET, _HELD_OUT = "eval_dataset", "mixer_eval_dataset"


def no_target(parts: Iterable[KnownPart], there: bool, way_out: str) -> list[Problem]:
    """Returns a problem for each component that aims at evaluation rows where there are none.

    Args:
        parts: The components.
        there: Whether there are some.
        way_out: How to give them.
    """
    return _without(parts, there, _TARGET, "aims at one", way_out)


def no_held_out(parts: Iterable[KnownPart], there: bool, way_out: str) -> list[Problem]:
    """As :func:`no_target`, for a mixer that looks at held-out rows of each source."""
    return _without(parts, there, _HELD_OUT, "looks at held-out rows of each source", way_out)


def _without(parts: Iterable[KnownPart], there: bool, rows: str, does: str, way_out: str) -> list[Problem]:
    problems = []
    for known in parts if not there else ():
        try:
            needs = _needed_rows(known)
        except ConfigError as error:
            problems.append(Problem(known.where, f"{known.named}: {error}"))
            continue
        if rows in needs and (rows == _HELD_OUT or _HELD_OUT not in needs) and known.info is not None:
            what = f"is missing; the {known.kind.name} '{known.info.name}' {does}"
            problems.append(Problem(rows, what, way_out))
    return problems


def _needed_rows(known: KnownPart) -> set[str]:
    """Returns the rows besides those of training that a component does not do without, with its parameters."""
    if known.info is None:
        return set()
    said = str(known.declares(NEEDS_ROWS, ""))
    return {*known.info.needs, *holding(NEEDS_ROWS, said, (_TARGET, _HELD_OUT), known.params)}


def held_out_idle(parts: Sequence[KnownPart]) -> str | None:
    """Returns a note where held-out rows of each source are given and no component looks at them.

    Args:
        parts: The components of the run.
    """
    if any(_may_look(known) for known in parts):
        return None
    who = next((known.named for known in parts if known.kind is MIXER), None)
    doubt = f"{who} looks at no held-out rows" if who else "the run has no mixer that looks at held-out rows"
    return f"{_HELD_OUT}: no effect, as {doubt} with these parameters -> remove it"


def _may_look(known: KnownPart) -> bool:
    """Whether a component may look at held-out rows of each source; where its text does not tell, it may."""
    if known.info is None or known.info.accepts is None or not known.info.constructors:
        return True
    takes = any(
        argument.arg == _HELD_OUT
        for constructor in known.info.constructors
        for argument in (*constructor.node.args.args, *constructor.node.args.kwonlyargs)
    )
    conditional = _HELD_OUT in str(known.declares(NEEDS_ROWS, ""))  # with other parameters it does not look
    return takes and (not conditional or _HELD_OUT in _needed_rows(known))


def _import(spec: ComponentSpec, known_broken: bool) -> None:
    """Imports a component that is not this project's: only that shows whether it can be, and is one.

    Raises:
        ConfigError: It cannot be imported, or does not keep the contract of its kind.
        ComponentError: It tried to end the process.
    """
    owner = registry.official(spec.kind).get(registry.split_name(spec.name)[1])
    packages = {registry.package_of(point) for point in registry.providers(spec.kind, spec.name)}
    if not known_broken and packages != {owner}:
        component_classes.find(spec.kind, spec.name)


def _plugins(files: Sequence[str]) -> tuple[list[Problem], list[ComponentInfo]]:
    """Imports the plugin files; where that fails, returns why, and the components that their text shows.

    What a file registers while it is imported is known to the registry afterwards.
    """
    problems: list[Problem] = []
    found: list[ComponentInfo] = []
    for path in files:
        try:
            found += scan_plugin_file(plugin_file(path))
        except ConfigError as error:
            problems.append(Problem("plugins", str(error)))
    if problems:
        return problems, found
    try:
        load_plugin_files(files)
    except ConfigError as error:
        own = [info for info in found if not registry.providers(info.kind, info.name)]
        return [Problem("plugins", str(error))], own
    return [], []


def _components_file(draft: Draft) -> list[Problem]:
    """Checks the user's components file where no component is there to be looked up in it."""
    file = draft.arguments.components_cfg_file
    if file is None:
        return []
    try:
        read_components(Path(file))
    except InvalidConfigError as error:
        return list(error.problems)
    except ConfigError as error:
        return [Problem("components_cfg_file", str(error))]
    return []


def _misplaced(draft: Draft) -> list[Problem]:
    a, problems = draft.arguments, []
    if a.static_mix and not draft.static_mix:
        way_out = f"set train_type: {MIXER.train_type}, or remove static_mix"
        if a.train_type == COMPOSED:
            way_out = f"remove it; with train_type: {COMPOSED} a mixer gives the shares, also those that stay"
        problems.append(Problem("static_mix", f"is true, but train_type is {a.train_type}", way_out))
    if a.train_type == COMPOSED:
        what = f"is of the short forms of one axis; train_type: {COMPOSED} has a key for each"
        for key, way in (("component_name", "NAME"), ("component", "{component: NAME, params: {...}}")):
            if getattr(a, key) is not None:
                axes = " | ".join(AXES)
                problems.append(Problem(key, what, f"remove it, and write {axes}: {way}"))
    return problems
