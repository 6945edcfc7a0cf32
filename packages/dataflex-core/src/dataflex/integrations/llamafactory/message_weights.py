"""Weights of messages, as the weights of the tokens that LLaMA-Factory makes of them.

The weights stand in the raw data: a column with a number for each message of a row, or a number in each message
(``messages.weight``). LLaMA-Factory drops them when it aligns the data. Here they travel beside its columns until a row
is tokenised, become a number for each of its tokens, and are taken out again: the train dataset is, to the last bit,
the one that a run without them has.

Which token is of which message is asked of LLaMA-Factory's own code: it makes each row a second time, from a template
that gives the number of the message in the place of each of its tokens. So whatever it does to a row (cutting at
``cutoff_len``, turning the order with ``mask_history``) it does to the numbers as well.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import datasets
import llamafactory.data.loader as data_loader

from dataflex.config.checks.tokenized import is_kept
from dataflex.config.spec import RunSpec
from dataflex.core.component import Component
from dataflex.core.errors import ConfigError, blaming, listed, nearest
from dataflex.discovery.component_classes import find
from dataflex.rows.token_lists import TokenLists
from dataflex.rows.views import MixedSources

NAME = "dataflex_tokens"
"""The column of ours, in aligned and in tokenised rows."""
_FIRST = -1000  # the number of message 0 in the place of a token; message i has i less: no token has a negative number
_IGNORED = -100


def wanted_column(spec: RunSpec) -> str | None:
    """Returns the column of token weights that a component of the run asks for; None for none."""
    for part in spec.axes:
        cls = find(part.component.kind, part.component.name)
        if issubclass(cls, Component):
            with blaming(part.component.in_words):
                found = cls.needs_token_column(part.component.params)
            if found is not None:
                return found
    return None


class MessageWeights:
    """Keeps weights of messages, or of tokens, while the train dataset of a run is loaded.

    Args:
        column: Where they stand; None: nothing is done.
        stage: LLaMA-Factory's ``stage``.
        replaced: ``replaced(dataset, by)`` is told of each tokenised dataset that another stands for, which is the same
            without the column: for keepers that know their datasets by identity.
    """

    def __init__(
        self, column: str | None, stage: str, replaced: Callable[[Any, Any], None] = lambda dataset, by: None
    ) -> None:
        self.column, self._stage, self._tell = column, stage, replaced
        self._of_train = True
        self._kept: list[tuple[Any, Any]] = []  # a tokenised dataset, held for its identity, and its weights

    @contextmanager
    def tokenising(self) -> Iterator[None]:
        """Inside of it, LLaMA-Factory's processors make weights of tokens. To be entered before other keepers."""
        with self._replaced({"_get_dataset_processor": self._processor}):
            yield

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Inside of it, weights travel with the rows of train datasets. To be entered after other keepers."""
        stand_ins = {
            "_get_merged_dataset": self._merged,
            "align_dataset": self._aligned,
            "_get_preprocessed_dataset": self._preprocessed,
        }
        with self._replaced(stand_ins):
            yield

    def loading(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Returns LLaMA-Factory's ``get_dataset``, which takes the column out of rows that were tokenised before.

        Raises:
            ConfigError: Rows would have to be tokenised in a way that forgets it.
        """
        if self.column is None:
            return original

        @functools.wraps(original)
        def get_dataset(*args: Any, data_args: Any, **kwargs: Any) -> Any:
            was_kept = is_kept(data_args.tokenized_path)
            if not was_kept:
                self._require_tokenisable(data_args)
            module = original(*args, data_args=data_args, **kwargs)
            if was_kept and module.get("train_dataset") is not None:
                module["train_dataset"] = self._taken(module["train_dataset"])
            return module

        return get_dataset

    def of(self, dataset: Any) -> dict[str, Any]:
        """Returns ``token_columns`` of a train dataset that was loaded, for the trainer; nothing where none is kept."""
        if self.column is None or dataset is None:
            return {}
        parts = dataset.sources if isinstance(dataset, MixedSources) else [dataset]
        found = [next((weights for own, weights in self._kept if own is part), None) for part in parts]
        assert all(weights is not None for weights in found), "every train dataset comes by"
        lists = TokenLists([weights for weights in found if weights is not None], NAME)
        return {"token_columns": {self.column: lists}}

    def _require_tokenisable(self, data_args: Any) -> None:
        key, way_out = None, ""
        if self._stage != "sft":
            key, what = f"stage: {self._stage}", "has no messages"
            way_out = "use stage: sft, or a tokenized_path whose rows have the column, a number for each token"
        elif data_args.streaming:
            key, what, way_out = "streaming: true", "reads rows as they come", "set streaming: false"
        elif data_args.packing or data_args.neat_packing:
            key, what, way_out = "packing: true", "makes a row of several", "set packing: false"
        elif data_args.tokenized_path is not None:
            key, what = "tokenized_path", "keeps no weights of messages"
            way_out = "leave it out, or name rows that have the column, a number for each token"
        if key is not None:
            raise ConfigError(f"{key} {what}, and tokens are weighed by the column {self.column!r} -> {way_out}")

    def _replaced(self, stand_ins: Mapping[str, Callable[..., Any]]) -> Any:
        stack = ExitStack()
        for name, stand_in in stand_ins.items() if self.column is not None else ():
            original = getattr(data_loader, name)
            stack.enter_context(patch.object(data_loader, name, functools.wraps(original)(stand_in(original))))
        return stack

    def _merged(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def get_merged_dataset(names: Any, model_args: Any, data_args: Any, *args: Any, **kwargs: Any) -> Any:
            self._of_train = names is not data_args.eval_dataset
            try:
                return original(names, model_args, data_args, *args, **kwargs)
            finally:
                self._of_train = True

        return get_merged_dataset

    def _aligned(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def align_dataset(dataset: Any, dataset_attr: Any, *args: Any, **kwargs: Any) -> Any:
            if not self._of_train:
                return original(dataset, dataset_attr, *args, **kwargs)
            assert self.column is not None
            weights = weights_of_messages(dataset, self.column, str(dataset_attr))
            aligned = original(dataset, dataset_attr, *args, **kwargs)
            if len(aligned) != len(weights):
                raise ConfigError(
                    f"column: the converter of '{dataset_attr}' made {len(aligned)} rows of {len(weights)}, so those "
                    f"of {self.column!r} are not those of one row"
                )
            floats = datasets.Sequence(datasets.Value("float64"))
            return aligned.add_column(NAME, weights, feature=floats)

        return align_dataset

    def _processor(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def get_dataset_processor(*args: Any, do_generate: bool = False, **kwargs: Any) -> Any:
            made = original(*args, do_generate=do_generate, **kwargs)
            return made if do_generate else _Weighing(made, str(self.column))

        return get_dataset_processor

    def _preprocessed(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def get_preprocessed_dataset(*args: Any, is_eval: bool = False, **kwargs: Any) -> Any:
            found = original(*args, is_eval=is_eval, **kwargs)
            if found is None or NAME not in found.column_names:
                return found
            plain = found.remove_columns([NAME]) if is_eval else self._taken(found, NAME)
            self._tell(found, plain)
            return plain

        return get_preprocessed_dataset

    def _taken(self, dataset: Any, name: str | None = None) -> Any:
        """Returns a dataset without its weights of tokens, which are kept."""
        name = self.column if name is None else name
        assert name is not None
        if name not in dataset.column_names:
            raise ConfigError(
                f"column: the rows of tokenized_path have no column {name!r} but {listed(dataset.column_names)} -> "
                f"{nearest(name, dataset.column_names) or 'add it, a number for each token, or tokenise anew'}"
            )
        plain = dataset.remove_columns([name])
        weights = dataset.select_columns([name])
        self._kept.append((plain, weights if name == NAME else weights.rename_column(name, NAME)))
        return plain


def weights_of_messages(dataset: Any, column: str, name: str) -> list[list[float] | None]:
    """Returns the weights of the messages of each raw row, None for a row without any.

    Args:
        dataset: The raw data.
        column: A column of lists of numbers; or ``LIST.KEY``, the numbers under a key of the entries of a list. An
            entry without one has weight 1.
        name: The dataset, for messages.

    Raises:
        ConfigError: There is no such column, or it holds something else.
    """
    outer, _, key = (column, "", "") if column in dataset.column_names else column.partition(".")
    if outer not in dataset.column_names:
        way_out = (
            nearest(outer, dataset.column_names) or "name a column of lists, or one of messages as messages.weight"
        )
        raise ConfigError(
            f"column: the dataset '{name}' has no column {outer!r} but {listed(dataset.column_names)} -> {way_out}"
        )
    found: list[list[float] | None] = []
    keyed = False
    for row, values in enumerate(dataset[outer]):
        if key and isinstance(values, list) and all(isinstance(value, Mapping) for value in values):
            keyed = keyed or any(value.get(key) is not None for value in values)
            values = [1.0 if value.get(key) is None else value[key] for value in values]
        if values is not None and not _are_weights(values):
            raise ConfigError(
                f"column: row {row} of the dataset '{name}' has {values!r:.80} under {column!r}; allowed: a list with "
                "a number of 0 or more for each message, or null"
            )
        found.append(values)
    if key and not keyed:
        raise ConfigError(f"column: no message of the dataset '{name}' has a {key!r}, which {column!r} names")
    return found


def _are_weights(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf") for value in values
    )


class _Weighing:
    """A processor of LLaMA-Factory that gives each token the weight of its message.

    Args:
        processor: LLaMA-Factory's.
        column: Where the weights stand, for messages.
    """

    def __init__(self, processor: Any, column: str) -> None:
        self._processor, self._column = processor, column

    def preprocess_dataset(self, examples: Mapping[str, list[Any]]) -> Any:
        """Tokenises a batch of aligned rows."""
        if NAME not in examples:
            return self._processor.preprocess_dataset(examples)
        rows = {name: values for name, values in examples.items() if name != NAME}
        made = self._processor.preprocess_dataset(rows)
        numbering = dataclasses.replace(self._processor, template=_Numbering(self._processor.template))
        found: list[list[float] | None] = []
        for place, weights in enumerate(examples[NAME]):
            row = {name: [values[place]] for name, values in rows.items()}
            for numbers in _quietly(numbering.preprocess_dataset, row):
                labels = made["labels"][len(found)]
                weighed = None if weights is None else self._message_weights(weights, row)
                found.append(None if weighed is None else _of_tokens(numbers, labels, weighed, self._late_ends()))
        assert [len(row) for row in made["input_ids"]] == [
            len(ids) if weights is None else len(weights) for ids, weights in zip(made["input_ids"], found, strict=True)
        ], "a row is made of numbers as of tokens"
        return {**made, NAME: found}

    def print_data_example(self, example: Any) -> None:
        """Prints a row, as LLaMA-Factory does."""
        self._processor.print_data_example(example)

    def _late_ends(self) -> bool:
        """Whether the end of an answer stands as the first token of the next message."""
        return bool(self._processor.template.efficient_eos) and not self._processor.data_args.train_on_prompt

    def _message_weights(self, weights: Sequence[float], row: Mapping[str, list[Any]]) -> Sequence[float]:
        """Returns a weight for each message but the system's.

        Raises:
            ConfigError: There are not as many weights as messages.
        """
        messages = [*row["_prompt"][0], *row["_response"][0]]
        if len(weights) == len(messages):
            return weights
        if len(weights) == len(messages) + 1 and row["_system"][0]:
            return weights[1:]
        begin = str(messages[0].get("content", "")) if messages else ""
        raise ConfigError(
            f"column: the row that begins with {begin!r:.60} has {len(messages)} messages and {len(weights)} weights "
            f"under {self._column!r} -> give each message one number, the system's too where it is one of the list"
        )


class _Numbering:
    """A template that gives the number of its message in the place of each token.

    Args:
        template: LLaMA-Factory's.
    """

    def __init__(self, template: Any) -> None:
        self._template = template

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_template":
            raise AttributeError(name)
        return getattr(self._template, name)

    def encode_multiturn(self, *args: Any, **kwargs: Any) -> list[tuple[list[int], list[int]]]:
        """Returns the pairs of a conversation, as long as they are."""
        pairs = self._template.encode_multiturn(*args, **kwargs)
        return [
            ([_FIRST - 2 * turn] * len(source), [_FIRST - 2 * turn - 1] * len(target))
            for turn, (source, target) in enumerate(pairs)
        ]


def _quietly(preprocess: Callable[..., Any], row: Mapping[str, list[Any]]) -> list[list[int]]:
    """Returns the rows that are made of one, none where it is dropped, without the warning that was there already."""
    theirs = logging.getLogger("llamafactory")
    level = theirs.level
    theirs.setLevel(logging.ERROR)
    try:
        found: list[list[int]] = preprocess(row).get("input_ids", [])
        return found
    finally:
        theirs.setLevel(level)


def _of_tokens(
    numbers_T: Sequence[int], labels_T: Sequence[int], weights: Sequence[float], late_ends: bool
) -> list[float]:
    """Returns the weight of each token: (T,).

    Args:
        numbers_T: (T,) the number of each token's message, and other tokens in between.
        labels_T: (T,) labels.
        weights: A weight for each message.
        late_ends: Whether a token of a question that is trained on is the end of the answer before it.
    """
    found, message = [], 0
    for number, label in zip(numbers_T, labels_T, strict=True):
        message = _FIRST - number if number <= _FIRST else message  # what is of no message ends the one before
        before = late_ends and label != _IGNORED and number <= _FIRST and message % 2 == 0 and message > 0
        found.append(float(weights[message - 1 if before else message]))
    return found
