"""What can be run but is probably not meant: said once, in the log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dataflex.config.arguments import COMPOSED, DataflexArguments
from dataflex.config.checks.known_component import held_out_idle
from dataflex.config.checks.loader_keys import idle_keys, keys_of
from dataflex.config.checks.parsed_config import Draft
from dataflex.config.resolved import VERSIONS, installed_versions
from dataflex.core.kinds import MIXER, SELECTOR, WEIGHTER

_MIXING = frozenset(
    {"static_mix", "mixture_sample_rule", "mixture_unit", "init_mixture_proportions", "mixer_eval_dataset"}
)
_MADE = frozenset({"mixture_by", "mixture_embedding"})
_WEIGHING = frozenset({"weight_objective", "weight_logits"})
_OF = {MIXER: _MIXING | _MADE, WEIGHTER: _WEIGHING | _MADE}
_EXPLAINING = frozenset({"explain_rows"})
_UPDATES = frozenset({"warmup_step", "update_step", "update_times"})
_ORDER = ("group_by_length", "train_sampling_strategy", "accelerator_config.use_seedable_sampler")
_COMPONENT = frozenset({"component_name", "component", "components_cfg_file"})


def notes(draft: Draft, config: Mapping[str, Any]) -> Iterator[str]:
    """Yields one sentence for each thing worth knowing about a configuration without problems."""
    a = draft.arguments
    idle = [key for key in DataflexArguments.names() if key in _without_effect(draft) and key in a.to_dict()]
    if idle:
        mode = f"train_type: {a.train_type}" + (" with static_mix: true" if draft.static_mix else "")
        lacks = [f"a {axis.name}" for axis, keys in _OF.items() if axis not in a.kinds and not keys.isdisjoint(idle)]
        mode += f" without {' or '.join(lacks)}" if a.train_type == COMPOSED and lacks else ""
        yield f"{', '.join(idle)}: no effect with {mode}"
    shares = a.init_mixture_proportions is not None and a.mixes
    if shares and a.mixture_sample_rule != "mixture":
        yield (
            f"init_mixture_proportions: no effect with mixture_sample_rule: {a.mixture_sample_rule}, which sets the "
            "initial proportions itself -> use mixture_sample_rule: mixture"
        )
    idle_rows = held_out_idle(draft.known) if a.mixer_eval_dataset and a.mixes and not draft.static_mix else None
    if idle_rows:
        yield idle_rows
    steps = draft.steps
    if draft.dynamic and steps.repeats and steps.epochs != 1:
        yield (
            f"num_train_epochs: {steps.epochs:g} runs the whole schedule of {steps.formula} steps, warm-up included, "
            f"{steps.epochs:g} times: {steps.total} steps -> leave num_train_epochs out (on the command "
            "line: num_train_epochs=null) to run it once"
        )
    planned = steps.formula
    if draft.dynamic and steps.decides and a.update_times > 0 and 0 < a.train_step < planned:
        yield f"train_step: {a.train_step} ends the run before its {a.update_times} updates, which take {planned} steps"
    if a.plans:
        yield from _planned(draft)
    yield from _other_versions(config.get(VERSIONS))


def _planned(draft: Draft) -> Iterator[str]:
    train_type = draft.arguments.train_type
    idle = list(idle_keys(train_type, keys_of(draft), draft.arguments.plans))
    order = [key for key in ("disable_shuffling",) if draft.on(key)] + [key for key in idle if key in _ORDER]
    if order:
        yield f"{', '.join(order)}: no effect with train_type: {train_type}, which plans the order of the rows"
    others = [key for key in idle if key not in _ORDER]
    if others:
        yield (
            f"{', '.join(others)}: no effect on the train rows with train_type: {train_type}, whose loader is planned "
            "update by update"
        )


def _without_effect(draft: Draft) -> frozenset[str]:
    a = draft.arguments
    if not draft.dynamic:
        return frozenset(DataflexArguments.names()) - {"train_type"}
    idle = frozenset() if a.mixes else _MIXING
    idle |= frozenset() if a.mixes or a.weighs else _MADE
    idle |= frozenset() if a.weighs else _WEIGHING
    idle |= frozenset() if a.weighs or SELECTOR in a.kinds else _EXPLAINING
    if draft.static_mix:
        idle |= _COMPONENT | {"mixer_eval_dataset"}
    if not draft.steps.decides and (a.train_step or a.update_times < 0):  # else they say how long the run is
        idle |= _UPDATES - {"warmup_step"} if a.weighs else _UPDATES
    if a.update_times == 0:
        idle |= {"update_step"}
    return idle


def _other_versions(before: Any) -> Iterator[str]:
    if isinstance(before, Mapping):
        now = installed_versions()
        changed = [f"{p} {v} (now {now.get(p, 'not installed')})" for p, v in before.items() if now.get(p) != v]
        if changed:
            yield f"the configuration was written with {', '.join(changed)}; numbers may differ"
