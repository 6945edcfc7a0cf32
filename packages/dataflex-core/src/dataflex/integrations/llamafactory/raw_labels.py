"""The label of each row in a column of the raw data, from which ``mixture_by: column:NAME`` makes the sources."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray

from dataflex.core.errors import ConfigError, listed, nearest
from dataflex.core.source_labels import SourceLabels, coded, no_label
from dataflex.rows.label_columns import coded_column
from dataflex.utils.logging import logger

LABEL = "dataflex_label"
"""The column of the number of a row's label."""
LABELS = "dataflex_label_values"
"""What the labels are, beside the tokenised rows of a ``tokenized_path``."""


class RawLabels:
    """The values of a column of several datasets, numbered in the order in which they are met.

    Args:
        column: Its name in the raw data.
    """

    def __init__(self, column: str) -> None:
        self.column = column
        self._values: list[str | int] = []

    def read(self, dataset: datasets.Dataset, name: str) -> NDArray[np.int64]:
        """Returns the number of each row's label: (n,).

        Args:
            dataset: What is read of a dataset.
            name: Its name, for messages.

        Raises:
            ConfigError: It has no such column, or a row has no label.
        """
        column = self.column
        if column not in dataset.column_names:
            raise ConfigError(
                f"mixture_by: column:{column}: the dataset '{name}' has no column {column!r} but "
                f"{listed(dataset.column_names)} -> {nearest(column, dataset.column_names) or 'add it to every row'}"
            )
        values, codes_n = coded_column(dataset, column)
        wrong = [code for code, value in enumerate(values) if no_label(value)]
        bad = np.flatnonzero((codes_n < 0) | np.isin(codes_n, wrong))
        if len(bad):
            found = "no label" if codes_n[bad[0]] < 0 else f"the label {values[codes_n[bad[0]]]!r:.80}"
            raise ConfigError(
                f"mixture_by: column:{column}: row {bad[0]} of what is read of the dataset '{name}' has {found}; every "
                "row needs a text or a whole number -> give each row one, or leave these rows out"
            )
        places = {value: place for place, value in enumerate(self._values)}
        for value in values:
            if value not in places:
                places[value] = len(self._values)
                self._values.append(value)
        return np.array([places[value] for value in values], dtype=np.int64)[codes_n]

    def named(self, codes_N: NDArray[np.int64] | None) -> SourceLabels:
        """Returns the labels of the train dataset.

        Args:
            codes_N: (N,) the number of each row's label.

        Raises:
            ConfigError: There are too few different ones, or too many.
        """
        assert codes_N is not None, "a train dataset is loaded with its labels"
        return coded(self._values, codes_N, f"column:{self.column}", "the train dataset")

    def by_name(
        self, dataset: datasets.Dataset, codes_n: NDArray[np.int64], names: Sequence[str]
    ) -> dict[str, datasets.Dataset]:
        """Returns rows that were held out, source by source, of those sources of which any were.

        Rows with a label that no train row has are left out, with a warning.

        Args:
            dataset: The rows.
            codes_n: (n,) the number of each row's label.
            names: (K) the sources.
        """
        own_n = np.array([str(value).strip() for value in self._values])[codes_n]
        never = sorted(set(own_n.tolist()) - set(names))
        if never:
            logger.warning(
                "mixture_by: column:%s: %d rows that val_size holds out are left out of the evaluation, as no train "
                "row has their label: %s",
                self.column, int(np.isin(own_n, never).sum()), listed(never),
            )  # fmt: skip
        found = {name: np.flatnonzero(own_n == name) for name in names}
        return {name: dataset.select(rows) for name, rows in found.items() if len(rows)}

    def state(self) -> NDArray[np.str_]:
        """Returns the column and its values, to be kept beside tokenised rows."""
        return np.array(json.dumps([self.column, self._values]))

    def restore(self, found: Mapping[str, Any], path: str) -> None:
        """Takes the values over from where rows were kept.

        Args:
            found: What was kept of these rows.
            path: Where, for messages.

        Raises:
            ConfigError: They were kept without this column.
        """
        column, values = json.loads(str(found.get(LABELS, '["", []]')))
        if LABEL not in found or column != self.column:
            raise ConfigError(
                f"tokenized_path: {path} holds rows that were tokenised without the column {self.column} of mixture_by "
                "-> name another folder, or leave it out"
            )
        self._values = values
