"""Which parts the objective of a run has."""

from __future__ import annotations

from dataflex.config.checks.mixer_losses import weighs_itself
from dataflex.core.errors import ConfigError, blaming
from dataflex.objective.objective import Objective
from dataflex.objective.parts import Keys, MixerPart, Parts, WeighterPart
from dataflex.trainer.engine import require_one_model
from dataflex.trainer.host import Host
from dataflex.upstream.stage_loss import Use


def parts_of(trainer: Host) -> Parts:
    """Returns what a run has that weighs its loss or looks at losses."""
    if trainer.rollouts is not None:
        return Parts()  # the loss is that of answers: nothing here can weigh it, and a mixer observes rewards
    spec, seen = trainer.spec, trainer.shared_scores.seen
    manager = trainer.mixture_manager
    objective = None if manager is None or manager.objective is None else lambda: manager.objective_weights
    mixer = _mixer(trainer)
    if objective is not None and mixer is not None and mixer.weighs:
        raise ConfigError(str(weighs_itself(mixer.preset)))
    weighs_rows = spec.selector is not None and trainer.components.selector_weighs
    return Parts(
        weighter=_weighter(trainer),
        mixer=mixer,
        rows=spec.selector.component.in_words if spec.selector is not None and weighs_rows else None,
        objective=objective,
        seen=None if seen is None else seen.note,
    )


def objective_of(trainer: Host, parts: Parts) -> Objective | None:
    """Returns the objective of a run; None where nothing weighs and nobody looks at losses.

    Args:
        trainer: The trainer.
        parts: What :func:`parts_of` returned.

    Raises:
        ConfigError: The run cannot be weighed, or its losses cannot be looked at.
    """
    spec = trainer.spec
    if not parts.there:
        return None
    require_one_model(trainer.args, parts.in_words)
    stage = trainer.stage.require(Use.WEIGH, parts.in_words) if trainer.stage.is_own else None
    keys = Keys(
        by_tokens=spec.arguments.weight_objective == "token",
        logits=spec.arguments.weight_logits,
        dft=spec.llamafactory.get("use_dft_loss") is True,
        liger=spec.llamafactory.get("enable_liger_kernel") is True,
        bases=trainer.bases(),
        stage=stage,
    )
    return Objective(trainer, parts, keys, trainer.batch_rows)  # type: ignore[arg-type]  # a Trainer


def _weighter(trainer: Host) -> WeighterPart | None:
    part = trainer.spec.weighter
    if part is None:
        return None
    return WeighterPart(trainer.components.weighter, part.component.name, part.component.preset, part.start)


def _mixer(trainer: Host) -> MixerPart | None:
    part, mixer = trainer.spec.mixer, trainer.components.observing_mixer
    if part is None or mixer is None:
        return None
    with blaming(part.component.in_words):
        weighs, gradients, logits = mixer.weighs, mixer.observes_gradients, mixer.observes_logits
    sources = len(trainer.mixture_manager.names)
    return MixerPart(mixer, part.component.name, part.component.preset, sources, weighs, gradients, logits)
