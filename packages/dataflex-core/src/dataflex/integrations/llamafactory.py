"""The one place that touches LLaMA-Factory.

LLaMA-Factory builds its trainers, loads its data and plots its losses through names in its workflow modules. While a
dynamic run lasts, these names (listed in :func:`_replacements`) stand for ours; leaving the context puts them back. Its
training loop, arguments and callbacks are used as they are.
"""

from __future__ import annotations

import copy
import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import llamafactory.hparams.parser as parser
import llamafactory.model.loader as loader
import llamafactory.train.pt.workflow as pt
import llamafactory.train.sft.workflow as sft
import llamafactory.train.tuner as tuner
import torch
from transformers import Trainer

from dataflex.config.spec import RunSpec
from dataflex.core.errors import CheckpointError, ConfigError, DataflexError
from dataflex.core.kinds import WEIGHTER
from dataflex.core.registry import find
from dataflex.data.rows import MixedSources
from dataflex.integrations import ray_worker
from dataflex.integrations.started import Started
from dataflex.integrations.streams import in_one_piece, keys_for_llamafactory, load_stream
from dataflex.integrations.target_rows import aims_at_generated_rows, require_tokenised_as_trained, rows_as_trained
from dataflex.run.newest import newest_of_run
from dataflex.run.output_dir import (
    require_checkpoint_of_run,
    require_free_output_dir,
    require_rows_of_checkpoint,
    resolve_resume,
)
from dataflex.train.trainer import BY_TRAIN_TYPE, DynamicTrainer, trainer_class
from dataflex.train.trainer.score_trainer import ScoresWrittenError, ScoreTrainer
from dataflex.train.trainer.steps import require_map_style, require_observable, run_schedule
from dataflex.train.trainer.upstream.relied_on import require_llamafactory
from dataflex.train.weighter.base_weighter import Weighter

TRAINER_STATE = "trainer_state.json"
PISSA_INIT = "pissa_init"


def run(spec: RunSpec) -> None:
    """Trains through LLaMA-Factory's own entry. A ``static`` run is LLaMA-Factory untouched."""
    if spec.arguments.train_type == "static":
        tuner.run_exp(dict(spec.llamafactory))
        return
    with installed(spec):
        tuner.run_exp(keys_for_llamafactory(spec))


def score(spec: RunSpec) -> Path | None:
    """Scores the train dataset through LLaMA-Factory's own entry, up to where the first batch would be trained on.

    Returns:
        The file of scores; None on a rank that writes none.
    """
    try:
        with installed(spec, ScoreTrainer):
            tuner.run_exp(keys_for_llamafactory(spec))
    except ScoresWrittenError as done:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        return done.path
    raise AssertionError("scoring leaves the training loop")


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
    with ExitStack() as stack:
        for module, name, stand_in in _replacements(spec, mixin or BY_TRAIN_TYPE[spec.arguments.train_type]):
            stack.enter_context(patch.object(module, name, stand_in))
        yield


def _replacements(spec: RunSpec, mixin: type[DynamicTrainer]) -> list[tuple[Any, str, Any]]:
    """Returns (module, name, stand-in) of everything that is replaced."""
    started, writes_run = Started(spec.arguments.train_type), mixin is not ScoreTrainer
    return [
        (sft, "CustomSeq2SeqTrainer", started.making(_trainer(spec, sft.CustomSeq2SeqTrainer, mixin))),
        (pt, "CustomTrainer", started.making(_trainer(spec, pt.CustomTrainer, mixin))),
        (Trainer, "train", started.only_ours(Trainer.train)),
        (tuner, "_training_function", started.missed_after(tuner._training_function)),
        (sft, "calculate_tps", started.tokens_per_second(sft.calculate_tps)),
        (sft, "get_dataset", _get_dataset(spec, sft.get_dataset)),
        (pt, "get_dataset", _get_dataset(spec, pt.get_dataset)),
        (sft, "plot_loss", _plot_loss(sft.plot_loss)),
        (pt, "plot_loss", _plot_loss(pt.plot_loss)),
        (tuner, "get_train_args", _get_train_args(spec, tuner.get_train_args, writes_run)),
        (tuner, "PissaConvertCallback", _pissa_convert(tuner.PissaConvertCallback)),
        (parser, "get_last_checkpoint", newest_of_run),
        (loader, "apply_liger_kernel", _apply_liger_kernel(spec, loader.apply_liger_kernel)),
        *ray_worker.replacements(spec),
    ]


def _trainer(spec: RunSpec, original: type[Any], mixin: type[DynamicTrainer]) -> Callable[..., Any]:
    """LLaMA-Factory's trainer with ours over it; its constructor is called as before."""
    ours: Callable[..., Any] = trainer_class(mixin, original)
    return functools.partial(ours, dataflex=spec, overwrite_output_dir=True)  # the folder has been looked at


def _get_train_args(spec: RunSpec, original: Callable[..., Any], writes_run: bool) -> Callable[..., Any]:
    """LLaMA-Factory's own complaints become ours, and the output folder is looked at before anything is loaded."""

    @functools.wraps(original)
    def get_train_args(args: Any = None) -> Any:
        try:
            parsed = original(args)
        except DataflexError:
            raise
        except ValueError as error:
            raise ConfigError(f"LLaMA-Factory refuses the configuration: {error}") from error
        resolve_resume(parsed[2])
        if writes_run:
            require_free_output_dir(spec, parsed[2])
            require_checkpoint_of_run(spec, parsed[2])
        return parsed

    return get_train_args


def _get_dataset(spec: RunSpec, original: Callable[..., Any]) -> Callable[..., Any]:
    """Loads the data as LLaMA-Factory does, per source for a mixture, and refuses what cannot be planned.

    What a component aims at is loaded a second time where ``predict_with_generate`` gives it another form.

    The workflows call it before they load the model.
    """

    @functools.wraps(original)
    def get_dataset(template: Any, model_args: Any, data_args: Any, training_args: Any, **kwargs: Any) -> Any:
        args = in_one_piece(training_args) if data_args.streaming else training_args
        generated = aims_at_generated_rows(spec, training_args)
        if generated:
            require_tokenised_as_trained(spec, data_args)
        mixes = spec.arguments.train_type == "dynamic_mix"
        if mixes:
            require_observable(spec)
        by_source = mixes or _needs_sources(spec, data_args)
        seed = training_args.seed if training_args.data_seed is None else training_args.data_seed

        def loading(args: Any) -> Callable[..., Mapping[str, Any]]:
            return functools.partial(original, template, model_args, training_args=args, **kwargs)

        def loaded(args: Any, data_args: Any) -> dict[str, Any]:
            split = by_source and data_args.dataset is not None
            return _per_source(data_args, loading(args), seed) if split else dict(loading(args)(data_args=data_args))

        module = loaded(args, data_args)
        if mixes and spec.arguments.mixer_eval_dataset:
            module["mixer_eval_dataset"] = _held_out(data_args, spec.arguments.mixer_eval_dataset, loading(args))
        if generated:
            module["target_dataset"] = rows_as_trained(spec, loaded, args, data_args, module.get("eval_dataset"))
        dataset: Any = module.get("train_dataset")
        require_map_style(dataset, spec.arguments.train_type)
        require_rows_of_checkpoint(dataset, training_args.resume_from_checkpoint)
        run_schedule(spec, training_args, dataset)
        return module

    return get_dataset


def _needs_sources(spec: RunSpec, data_args: Any) -> bool:
    """Whether the run's weighter must know each row's source.

    Raises:
        ConfigError: It must, and LLaMA-Factory was told to mix the sources in a way that forgets them.
    """
    component = spec.component
    if component is None or component.kind is not WEIGHTER:
        return False
    cls = find(component.kind, component.name)
    if not issubclass(cls, Weighter) or not cls.needs_sources(component.params):
        return False
    names = data_args.dataset or []
    who = f"the weighter '{component.preset}' must know the source of each row"
    if data_args.mix_strategy != "concat":
        raise ConfigError(f"mix_strategy: found {data_args.mix_strategy!r}, but {who} -> set mix_strategy: concat")
    if len(set(names)) < len(names):
        raise ConfigError(f"dataset: a source is named twice, but {who} -> name each source once")
    return True


def _per_source(data_args: Any, load: Callable[..., Mapping[str, Any]], seed: int) -> dict[str, Any]:
    """Tokenises each source once and returns them as one train dataset that knows where each begins.

    ``val_size`` rows are held out evenly over the sources, a fraction from each; ``eval_dataset`` is loaded once;
    ``tokenized_path`` keeps one folder per source.
    """
    names = data_args.dataset
    held_out = [data_args.val_size] * len(names)
    if data_args.val_size > 1:
        share, rest = divmod(int(data_args.val_size), len(names))
        held_out = [share + (i < rest) for i in range(len(names))]
    modules = {}
    for i, (name, val_size) in enumerate(zip(names, held_out, strict=True)):
        path = data_args.tokenized_path
        own = copy.copy(data_args)
        own.dataset, own.val_size = [name], val_size
        own.eval_dataset = data_args.eval_dataset if i == 0 else None
        own.tokenized_path = None if path is None else os.path.join(path, name)
        modules[name] = load_stream(load, own, seed) if data_args.streaming else load(data_args=own)
    result: dict[str, Any] = {"train_dataset": MixedSources({n: m["train_dataset"] for n, m in modules.items()})}
    evaluation = {name: module["eval_dataset"] for name, module in modules.items() if module.get("eval_dataset")}
    if data_args.eval_dataset is not None and evaluation:
        result["eval_dataset"] = next(iter(evaluation.values()))
    elif evaluation:
        result["eval_dataset"] = evaluation
    return result


def _held_out(data_args: Any, names: Sequence[str], load: Callable[..., Mapping[str, Any]]) -> dict[str, Any]:
    """Tokenises the datasets of ``mixer_eval_dataset``, the first one for the first source; all of their rows."""
    found = {}
    for source, name in zip(data_args.dataset, names, strict=True):
        own = copy.copy(data_args)
        own.dataset, own.eval_dataset, own.val_size = [name], None, 0.0
        own.tokenized_path, own.streaming = None, False
        found[source] = load(data_args=own)["train_dataset"]
    return found


def _apply_liger_kernel(spec: RunSpec, original: Callable[..., Any]) -> Callable[..., Any]:
    """Keeps Liger's fused loss out of a weighted run, which needs the losses of single tokens; its kernels stay.

    What the fused loss saves, the memory of the logits, the trainer saves in its own way.
    """

    @functools.wraps(original)
    def apply_liger_kernel(*args: Any, **kwargs: Any) -> Any:
        if spec.arguments.train_type == "dynamic_weight":
            kwargs["require_logits"] = True
        return original(*args, **kwargs)

    return apply_liger_kernel


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
    """Adds every dataflex metric to the plots that ``plot_loss: true`` draws."""

    @functools.wraps(original)
    def plot_loss(save_dictionary: str, keys: list[str]) -> None:
        from matplotlib import pyplot

        with open(os.path.join(save_dictionary, TRAINER_STATE), encoding="utf-8") as file:
            history = json.load(file)["log_history"]
        ours = sorted({key for entry in history for key in entry if key.startswith("dataflex/")})
        for key in [*keys, *ours]:
            original(save_dictionary, keys=[key])
            pyplot.close()  # the original leaves each figure open, and a run has a dozen

    return plot_loss
