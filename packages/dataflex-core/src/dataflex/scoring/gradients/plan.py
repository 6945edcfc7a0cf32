"""How the gradients of each trainable parameter are formed: by a rule, by calling its module row by row, or the model.

A rule is fastest. Where none is known, the smallest module in whose call the parameter is used is called again for
each row, on what it was called with. Where that fails (rows cannot be told apart in its inputs, or a row alone gives
something else), the module around it takes its place, and in the end the whole model by row.

What a model needs is found out on its first batch and kept for the process, so that later passes begin with it.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Sequence

from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor

from dataflex.core.errors import ComponentError
from dataflex.model.unwrapped import beside_text, is_compiled
from dataflex.scoring.gradients.routes import Route, Use, unsupported
from dataflex.scoring.gradients.uses import Uses
from dataflex.utils.logging import logger

WHOLE = ""
"""The name of the whole model."""

Closed = list[tuple[Use, Route]]
Replayed = dict[str, list[Route]]


class Plan:
    """What has been found out about one model. Modules go by their names, so that a plan keeps no model alive.

    Attributes:
        rules_only: Whether parameters are in shards or code is compiled: modules then cannot be called again alone.
        known: Whether the uses of parameters have been looked at.
        copied: Modules whose inputs are changed in place after they were given, so that copies must be kept.
        verified: Whether it was seen that rows alone give what they give in a batch, where the model goes by row.
        has_media: Whether a batch with images has come.
    """

    def __init__(self, model: nn.Module) -> None:
        self.rules_only = is_compiled(model) or any(_sharded(module) for module in model.modules())
        self.known = self.verified = False
        self.copied: set[str] = set()
        self.has_media = False
        self._uses = Uses()
        self._moved: dict[str, str] = {}  # module -> the one around it that is called by row in its place
        self._opened: set[str] = set()  # modules whose rule does not hold
        self._depths: dict[tuple[str, str], int] = {}  # of modules of one name: how far up a parameter is used
        self._told = ""

    def learn(self, uses: Uses, model: nn.Module, routes: Sequence[Route]) -> None:
        """Takes where parameters are used."""
        self._uses, self.known = uses, True
        self.copied |= uses.changed
        named = {id(module): name for name, module in model.named_modules()}
        for route in routes:
            for place in uses.places.get(id(route.parameter), ()):
                for use in route.uses:
                    holder = named[id(use.module)]
                    if _inside(holder, place):
                        depth = holder[len(place) :].strip(".").count(".") + (holder != place)
                        self._depths[holder.rpartition(".")[2], use.key] = depth

    def open(self, name: str) -> None:
        """From now on a module is called by row, as its rule does not hold."""
        self._opened.add(name)

    def climb(self, model: nn.Module, name: str) -> None:
        """From now on the module around ``name`` is called by row in its place.

        Siblings in a list of modules move along: what one expert is given differs from batch to batch.
        """
        names = _all_names(model)
        shared = names[id(model.get_submodule(name))]
        around, child = WHOLE, name
        if len(shared) == 1:
            child, around = name, name.rpartition(".")[0]
            while around != WHOLE and around not in self._uses.called:
                child, around = around, around.rpartition(".")[0]
        for inner, _ in model.get_submodule(child).named_modules(prefix=child):
            self._moved[inner] = around
        for inner in [inner for inner, outer in self._moved.items() if outer == name]:
            self._moved[inner] = around

    def distrust(self, parameters: Iterable[nn.Parameter]) -> None:
        """From now on the gradients of these come from the whole model by row, as they have been seen to be wrong."""
        self._uses.places.update({id(parameter): {WHOLE} for parameter in parameters})
        self.verified = False

    def see_media(self, model: nn.Module, routes: Sequence[Route]) -> None:
        """Takes the whole model by row for what sees images: their patches stand one after the other, not by row.

        Raises:
            ComponentError: Such a part is trained, and modules cannot be called alone.
        """
        self.has_media = True
        beside = beside_text(model)
        found = [route for route in routes if all(use.module in beside for use in route.uses)]
        if found and self.rules_only:
            raise ComponentError(
                f"there is no per-sample gradient for the trainable parameter {found[0].name}, which sees images, "
                "where weights are in shards or code is compiled -> freeze_vision_tower: true and "
                "freeze_multi_modal_projector: true, or use a selector that needs no gradients"
            )
        if found:
            self.distrust(route.parameter for route in found)

    def assign(self, model: nn.Module, routes: Sequence[Route]) -> tuple[Closed, Replayed]:
        """Returns the uses that have a rule, and the modules to call by row with the parameters found there.

        Raises:
            ComponentError: A parameter has no rule, and modules cannot be called alone.
        """
        named = {id(module): name for name, module in model.named_modules()}
        if self.rules_only:
            refused = {r.name: type(use.module).__name__ for r in routes for use in r.uses if use.rule is None}
            if refused:
                raise ComponentError(unsupported(refused))
            return [(use, route) for route in routes for use in route.uses], {}
        closed: Closed = []
        replayed: dict[str, list[Route]] = {}
        names = _all_names(model)
        for route in routes:
            rules = {named[id(use.module)]: use for use in route.uses if use.rule is not None}
            places = self._uses.places.get(id(route.parameter)) or {
                self._like_others(named[id(use.module)], use.key) for use in route.uses
            }
            ruled = {n for n in places if n in rules and n not in self._opened and n not in self._moved}
            units = {self._moved.get(n, n) for n in places - ruled}
            if _cut(units, places, names, model):
                units = {WHOLE}
            units = {n for n in units if not any(n != other and _inside(n, other) for other in units)}
            for name in units:
                replayed.setdefault(name, []).append(route)
            closed += [(rules[n], route) for n in sorted(ruled) if not any(_inside(n, unit) for unit in units)]
        return closed, replayed

    def _like_others(self, holder: str, key: str) -> str:
        """Returns where a parameter is taken to be used that no row has reached: where those of its name are."""
        for _ in range(self._depths.get((holder.rpartition(".")[2], key), 0)):
            holder = holder.rpartition(".")[0]
        return holder

    def tell(self, model: nn.Module, replayed: Replayed) -> None:
        """Logs which layers are slow, once."""
        kinds = Counter(type(model.get_submodule(name)).__name__ for name in replayed)
        text = ", ".join(f"{kind} ({count})" if count > 1 else kind for kind, count in sorted(kinds.items()))
        if text and text != self._told:
            self._told = text
            first = next(iter(sorted(replayed)))
            logger.info(
                "gradients of rows: no rule is known for some layers, so these are called row by row, which is exact "
                "and slower: %s, from %s on",
                text,
                first or "the whole model",
            )


def plan_of(model: nn.Module, routes: Sequence[Route]) -> Plan:
    """Returns the plan of a model; a new one where other parameters are trained than before."""
    trained = hash(tuple((route.name, id(route.parameter)) for route in routes))
    kept = _plans.get(model)
    if kept is None or kept[0] != trained or kept[1].rules_only != Plan(model).rules_only:
        kept = _plans[model] = (trained, Plan(model))
    return kept[1]


_plans: weakref.WeakKeyDictionary[nn.Module, tuple[int, Plan]] = weakref.WeakKeyDictionary()


def _sharded(module: nn.Module) -> bool:
    own = module._parameters.values()
    return isinstance(module, FullyShardedDataParallel) or any(
        isinstance(p, DTensor) or "ds_shape" in vars(p) for p in own if p is not None
    )


def _all_names(model: nn.Module) -> dict[int, list[str]]:
    """Returns the names of each module, by its id: a module that is in two places has two."""
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
    return names


def _cut(units: set[str], places: set[str], names: dict[int, list[str]], model: nn.Module) -> bool:
    """Returns whether a module is in two places, of which one alone is in a module that is called by row."""
    for place in places:
        found = names[id(model.get_submodule(place))]
        for unit in units:
            inside = [_inside(name, unit) for name in found]
            if any(inside) and not all(inside) and unit not in found:
                return True
    return False


def _inside(name: str, unit: str) -> bool:
    return unit in (WHOLE, name) or name.startswith(f"{unit}.")
