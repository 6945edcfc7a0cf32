"""The data of a dynamic run, loaded as LLaMA-Factory does and looked at before the model is loaded."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from dataflex.config.checks.source_keys import data_problems_of
from dataflex.config.mixture_sources import MixtureBy
from dataflex.config.spec import RunSpec
from dataflex.core.errors import refuse
from dataflex.integrations.llamafactory.generating_targets import (
    aims_at_generated_rows,
    require_tokenised_as_trained,
    rows_as_trained,
)
from dataflex.integrations.llamafactory.message_weights import MessageWeights, wanted_column
from dataflex.integrations.llamafactory.raw_columns import KeptColumns, wanted_columns
from dataflex.integrations.llamafactory.reading import named
from dataflex.integrations.llamafactory.stream_datasets import in_one_piece
from dataflex.integrations.llamafactory.tokenized_sources import Loading, knows_sources, load_held_out, load_sources
from dataflex.planning.run_schedule import require_map_style, require_observable, run_schedule
from dataflex.planning.sources import require_mixture, require_objective, split_by_labels
from dataflex.rows.split_sources import SplitSources, split
from dataflex.run.output_dir import require_rows_of_checkpoint
from dataflex.utils.progress import Progress, without_bars


def reading_dataset(spec: RunSpec, original: Callable[..., Any]) -> Callable[..., Any]:
    """Loads the data as LLaMA-Factory does, per source for a mixture, and refuses what cannot be planned.

    Columns of the raw data that rows are scored by are kept as ``score_columns``, and weights of messages, as those of
    tokens, as ``token_columns``.

    What a component aims at is loaded a second time where ``predict_with_generate`` gives it another form.

    The workflows call it before they load the model.
    """

    @functools.wraps(original)
    def get_dataset(template: Any, model_args: Any, data_args: Any, training_args: Any, **kwargs: Any) -> Any:
        args = in_one_piece(training_args) if data_args.streaming else training_args
        generated = aims_at_generated_rows(spec, training_args)
        if generated:
            require_tokenised_as_trained(spec, data_args)
        mixes = spec.mixes
        if mixes:
            require_observable(spec)
        require_objective(spec)
        by_source = knows_sources(spec, data_args)
        made, kept = _kept(spec, data_args, by_source)
        weights = MessageWeights(wanted_column(spec), kwargs["stage"], kept.replaced)
        seed = training_args.seed if training_args.data_seed is None else training_args.data_seed

        def loading(args: Any) -> Callable[..., Mapping[str, Any]]:
            load = kept.loading(weights.loading(original))  # rows are known by what is left once weights are out
            return functools.partial(load, template, model_args, training_args=args, **kwargs)

        def loaded(args: Any, data_args: Any) -> dict[str, Any]:
            if by_source and data_args.dataset is not None:
                return load_sources(data_args, Loading(loading(args), model_args, args, kwargs["stage"], seed))
            return dict(loading(args)(data_args=data_args))

        what = Progress("reading and tokenising the data", bar=None)
        with named(data_args), without_bars(bool(training_args.disable_tqdm)), what:
            with weights.tokenising(), kept.keeping(data_args), weights.keeping():
                module = loaded(args, data_args)
            columns = kept.of(module.get("train_dataset"))
            if columns:
                module["score_columns"] = columns
            module |= weights.of(module.get("train_dataset"))
            sources = kept.sources_of(module.get("train_dataset"))
            if sources is not None:
                module["row_sources"] = sources
            if mixes and spec.arguments.mixer_eval_dataset:
                module["mixer_eval_dataset"] = load_held_out(
                    data_args, spec.arguments.mixer_eval_dataset, loading(args)
                )
            if made is not None:
                _split(module, made, kept, spec, data_args.tokenized_path is not None)
            if generated:
                module["target_dataset"] = rows_as_trained(spec, loaded, args, data_args, module.get("eval_dataset"))
        _require_plannable(module.get("train_dataset"), made, spec, training_args)
        return module

    return get_dataset


def _require_plannable(dataset: Any, made: MixtureBy | None, spec: RunSpec, training_args: Any) -> None:
    """Refuses train rows that the run cannot be planned over, and those of another checkpoint."""
    if isinstance(dataset, SplitSources):
        require_mixture(dataset, spec.arguments)
    require_map_style(dataset, spec.arguments.train_type, spec.arguments)
    if made is None or made.clusters is None:  # else the trainer compares them, once it knows the sources
        require_rows_of_checkpoint(dataset, training_args.resume_from_checkpoint)
    run_schedule(spec, training_args, dataset)


def _kept(spec: RunSpec, data_args: Any, by_source: bool) -> tuple[MixtureBy | None, KeptColumns]:
    """Returns how the sources are made where they are not the datasets, and what is kept of the raw data.

    Raises:
        ConfigError: Sources cannot be made of such rows.
    """
    made = MixtureBy.of(spec.arguments) if spec.mixes or spec.weighs else None
    several = data_args.dataset is not None and len(data_args.dataset) > 1 and not by_source and made is None
    if made is not None:
        refuse(data_problems_of(made, streaming=bool(data_args.streaming), packing=bool(data_args.packing)))
    label = None if made is None else made.column
    return made, KeptColumns(wanted_columns(spec), data_args.dataset if several else (), label)


def _split(module: dict[str, Any], made: MixtureBy, kept: KeptColumns, spec: RunSpec, on_disk: bool) -> None:
    """Makes sources of the train dataset by a column or a file, and of the rows that were held out by a column."""
    dataset: Any = module.get("train_dataset")
    if dataset is None or made.clusters is not None:
        return
    if made.column is None:
        module["train_dataset"] = split_by_labels(dataset, spec.arguments)
        return
    assert kept.labels is not None, "a run by a column reads it"
    found = split(dataset, kept.labels.named(kept.labels_of(dataset)))
    module["train_dataset"], held_out = found, module.get("eval_dataset")
    codes_n = kept.labels_of(held_out)
    if codes_n is not None and not on_disk:  # rows of a tokenized_path have no labels kept but those to train on
        module["eval_dataset"] = kept.labels.by_name(held_out, codes_n, found.names)
