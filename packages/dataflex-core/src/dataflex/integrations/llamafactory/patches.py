"""What of LLaMA-Factory is replaced while a dynamic run lasts.

LLaMA-Factory builds its trainers, loads its data and plots its losses through names in its workflow modules. These
names (listed in :func:`_replacements`) stand for ours; leaving the context puts them back. Its training loop, arguments
and callbacks are used as they are.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import llamafactory.hparams.parser as parser
import llamafactory.model.loader as loader
import llamafactory.train.dpo.workflow as dpo
import llamafactory.train.kto.workflow as kto
import llamafactory.train.pt.workflow as pt
import llamafactory.train.rm.workflow as rm
import llamafactory.train.sft.workflow as sft
import llamafactory.train.tuner as tuner
from transformers import Trainer

from dataflex.config.spec import RunSpec
from dataflex.core.errors import CheckpointError, ConfigError, DataflexError
from dataflex.discovery.component_classes import find
from dataflex.integrations.llamafactory import printed_numbers, reading
from dataflex.integrations.llamafactory.data import reading_dataset
from dataflex.integrations.llamafactory.predicting import predicting
from dataflex.integrations.llamafactory.started import Started
from dataflex.integrations.llamafactory.value_head import resuming
from dataflex.run.newest import newest_of_run
from dataflex.run.output_dir import (
    require_checkpoint_of_run,
    require_free_output_dir,
    resolve_resume,
)
from dataflex.trainer import BY_TRAIN_TYPE, DynamicTrainer, trainer_class
from dataflex.trainer.score_trainer import ScoreTrainer
from dataflex.upstream.relied_on import require_llamafactory

TRAINER_STATE = "trainer_state.json"
PISSA_INIT = "pissa_init"
WORKFLOWS: tuple[Any, ...] = (sft, pt, rm, dpo, kto)
"""The workflows whose data and plots are ours: those of the stages that train dynamically."""


@contextmanager
def installed(spec: RunSpec, mixin: type[DynamicTrainer] | None = None) -> Iterator[None]:
    """Puts dynamic training into LLaMA-Factory; undone on leaving.

    Args:
        spec: The run.
        mixin: What stands over LLaMA-Factory's trainers, where it is not that of the train type.

    Raises:
        IncompatiblePackagesError: The installed LLaMA-Factory has not all that is replaced.
        ConfigError: It trained with another trainer than ours.
    """
    require_llamafactory()
    with standing_in(_replacements(spec, mixin or BY_TRAIN_TYPE[spec.arguments.train_type])):
        yield


@contextmanager
def standing_in(replacements: Iterable[tuple[Any, str, Any]]) -> Iterator[None]:
    """Puts each stand-in into its module; undone on leaving."""
    with ExitStack() as stack:
        for module, name, stand_in in replacements:
            stack.enter_context(patch.object(module, name, stand_in))
        yield


def _replacements(spec: RunSpec, mixin: type[DynamicTrainer]) -> list[tuple[Any, str, Any]]:
    """Returns (module, name, stand-in) of everything that is replaced."""
    started, writes_run = Started(spec.arguments.train_type), mixin is not ScoreTrainer
    return [
        (sft, "CustomSeq2SeqTrainer", started.making(_trainer(spec, sft.CustomSeq2SeqTrainer, mixin))),
        (pt, "CustomTrainer", started.making(_trainer(spec, pt.CustomTrainer, mixin))),
        (rm, "PairwiseTrainer", started.making(_trainer(spec, rm.PairwiseTrainer, mixin))),
        *_dpo_trainer(spec, started, mixin),
        (kto, "CustomKTOTrainer", started.making(_trainer(spec, kto.CustomKTOTrainer, mixin))),
        (Trainer, "train", started.only_ours(Trainer.train)),
        (tuner, "_training_function", started.missed_after(tuner._training_function)),
        (sft, "calculate_tps", started.tokens_per_second(sft.calculate_tps)),
        (dpo, "calculate_tps", started.tokens_per_second(dpo.calculate_tps)),
        *((workflow, "get_dataset", reading_dataset(spec, workflow.get_dataset)) for workflow in WORKFLOWS),
        *((workflow, "plot_loss", _plot_loss(workflow.plot_loss)) for workflow in WORKFLOWS),
        (tuner, "get_train_args", _get_train_args(spec, tuner.get_train_args, writes_run)),
        (tuner, "PissaConvertCallback", _pissa_convert(tuner.PissaConvertCallback)),
        (parser, "get_last_checkpoint", newest_of_run),
        (loader, "apply_liger_kernel", _apply_liger_kernel(spec, loader.apply_liger_kernel)),
        *printed_numbers.replacements(),
        *reading.replacements(),
    ]


def _dpo_trainer(spec: RunSpec, started: Started, mixin: type[DynamicTrainer]) -> list[tuple[Any, str, Any]]:
    """The trainer of DPO; imported for its stage alone, as LLaMA-Factory does: TRL's may fail to be."""
    if spec.llamafactory.get("stage") != "dpo":
        return []
    import llamafactory.train.dpo.trainer as home

    return [(home, "CustomDPOTrainer", started.making(_trainer(spec, home.CustomDPOTrainer, mixin)))]


def _trainer(spec: RunSpec, original: type[Any], mixin: type[DynamicTrainer]) -> Callable[..., Any]:
    """LLaMA-Factory's trainer with ours over it; its constructor is called as before."""
    base = original
    if original in (sft.CustomSeq2SeqTrainer, rm.PairwiseTrainer):
        base = predicting(original)
    if original is rm.PairwiseTrainer:
        base = resuming(base)
    ours: Callable[..., Any] = trainer_class(mixin, base)
    return functools.partial(ours, dataflex=spec, overwrite_output_dir=True)  # the folder has been looked at


def in_words(original: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the parser of LLaMA-Factory's arguments with its refusals as errors of ours."""

    @functools.wraps(original)
    def get_train_args(args: Any = None) -> Any:
        try:
            return original(args)
        except DataflexError:
            raise
        except (ValueError, AssertionError) as error:
            reason = str(error) or "an assertion of its own failed"
            raise ConfigError(f"LLaMA-Factory refuses the configuration: {reason}") from error

    return get_train_args


def _get_train_args(spec: RunSpec, original: Callable[..., Any], writes_run: bool) -> Callable[..., Any]:
    """The output folder is looked at before anything is loaded."""

    @functools.wraps(original)
    def get_train_args(args: Any = None) -> Any:
        parsed = in_words(original)(args)
        resolve_resume(parsed[2])
        if writes_run:
            require_free_output_dir(spec, parsed[2])
            require_checkpoint_of_run(spec, parsed[2])
        return parsed

    return get_train_args


def _apply_liger_kernel(spec: RunSpec, original: Callable[..., Any]) -> Callable[..., Any]:
    """Keeps Liger's fused loss out of a run that weighs samples, sources or rows; its kernels stay.

    Such a run needs the losses of single tokens. What the fused loss saves, the memory of the logits, the trainer saves
    in its own way where there is a weighter.
    """

    @functools.wraps(original)
    def apply_liger_kernel(*args: Any, **kwargs: Any) -> Any:
        if spec.weighs or spec.arguments.objective_proportions is not None or _weighs_rows(spec):
            kwargs["require_logits"] = True
        return original(*args, **kwargs)

    return apply_liger_kernel


def _weighs_rows(spec: RunSpec) -> bool:
    """Returns whether the selector may give its rows weights in the loss."""
    if spec.selector is None:
        return False
    selector: Any = find(spec.selector.component.kind, spec.selector.component.name)
    return bool(selector.weighs)


def _pissa_convert(original: type[Any]) -> type[Any]:
    """Converts with the adapter that the run began with, when it is resumed too.

    The original saves what it finds when training begins; after a resume that is the checkpoint's adapter, and the
    converted one would lack everything that was learnt before it.
    """

    class PissaConvertCallback(original):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 0:
                super().on_train_begin(args, state, control, **kwargs)
            elif args.should_save and not os.path.isdir(os.path.join(args.output_dir, PISSA_INIT)):
                raise CheckpointError(
                    f"pissa_convert needs the adapter that the run began with, and {args.output_dir} has no folder "
                    f"{PISSA_INIT} -> copy it from the output_dir of the run that is continued"
                )

    return PissaConvertCallback


def _plot_loss(original: Callable[..., Any]) -> Callable[..., Any]:
    """Adds two figures from the record to the plots that ``plot_loss: true`` draws."""

    @functools.wraps(original)
    def plot_loss(save_dictionary: str, keys: list[str]) -> None:
        from matplotlib import pyplot  # here, as LLaMA-Factory does: a run without figures needs none of it

        from dataflex.integrations.llamafactory.figures import draw_figures

        with open(os.path.join(save_dictionary, TRAINER_STATE), encoding="utf-8") as file:
            state = json.load(file)
        logged = {key for entry in state["log_history"] for key in entry}
        whole = [key for key in ("eval_loss",) if key in logged and key not in keys]  # of several datasets
        for key in [*keys, *whole]:
            original(save_dictionary, keys=[key])
            pyplot.close()  # the original leaves each figure open
        draw_figures(save_dictionary, state["global_step"])

    return plot_loss
