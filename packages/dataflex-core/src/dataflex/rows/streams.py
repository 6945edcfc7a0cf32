"""Sources that can only be read from their start: a stream as a dataset whose rows are numbered in reading order.

Row ``n`` of a stream is the n-th row when the stream is read repeatedly. A mixture plans such numbers as it plans
those of rows that lie still, each source's in increasing order, and reading forward to them is all that is asked of a
stream. Which row a number means depends on the files alone; a :class:`Place` only saves reading what came before, and
knows the row that comes next: the states of ``datasets`` are not exact for every chain of transforms (a whole table is
passed over where a batched ``map`` stands directly on an Arrow file; ``skip(0)`` between them helps).

Rejected: the shuffle buffer of ``datasets``, whose contents no state holds, so that a resumed run would see other rows.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import datasets
import numpy as np
from torch.utils.data import Dataset

from dataflex.core.component import seeded
from dataflex.core.errors import ConfigError
from dataflex.rows.views import Row
from dataflex.utils.logging import logger
from dataflex.utils.progress import Progress

ENDLESS = 1 << 40
"""What a stream gives as its length: more rows than anybody reads, and still exact beside thousands of others."""


@dataclass(frozen=True)
class Place:
    """A place at which a stream can be entered.

    Attributes:
        rows: Rows read before it, over all passes.
        passes: Whole passes before it.
        state: What ``datasets.IterableDataset.state_dict`` said there; None at the start of a pass.
        coming: A digest of the row that comes next; None at the start of a pass.
    """

    rows: int = 0
    passes: int = 0
    state: Mapping[str, Any] | None = None
    coming: str | None = None


class BlockOrder:
    """Shuffles a stream block by block; for ``datasets.IterableDataset.map`` with ``batched`` and ``with_indices``.

    The order inside a block is a function of the key, the pass and the place of the block, so entering a stream in the
    middle of a block means reading that block again, and no more.

    Args:
        block: Rows of a block.
        *key: What the order depends on: the run's seed, and whose order it is.
    """

    def __init__(self, block: int, *key: object) -> None:
        self.block = block
        self.passes = 0
        self._key = key

    def __call__(self, columns: Mapping[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
        """Returns the columns of a block, shuffled."""
        rng = np.random.Generator(np.random.Philox(key=seeded(*self._key, self.passes, numbers[0])))
        order = rng.permutation(len(numbers))
        return {name: [values[i] for i in order] for name, values in columns.items()}

    def __deepcopy__(self, memo: dict[int, Any]) -> BlockOrder:
        return self  # the order inside of a copied dataset is still the one that is told the pass

    def apply(self, dataset: datasets.IterableDataset) -> datasets.IterableDataset:
        """Returns the stream in this order."""
        return dataset.map(self, batched=True, batch_size=self.block, with_indices=True)


class Stream(Dataset[Row]):
    """The rows of a stream by their numbers, which must be asked for in increasing order.

    Args:
        dataset: The stream; read again from its start when it ends, with ``set_epoch`` told the pass.
        order: The order that was applied to it, where one was; it is told the pass.
        rows: Rows of a pass, where they are known without reading it.
        name: The source, for messages.

    Attributes:
        dataset: The stream, as given.
        rows: Rows of a pass, or None.
    """

    def __init__(
        self,
        dataset: datasets.IterableDataset,
        order: BlockOrder | None = None,
        rows: int | None = None,
        name: str | None = None,
    ) -> None:
        if not isinstance(dataset, datasets.IterableDataset):
            raise ConfigError(
                f"a {type(dataset).__name__} cannot be resumed in its middle -> use a datasets.IterableDataset, or a "
                "dataset with rows by number"
            )
        self.dataset = dataset
        self.order = order
        self.rows = rows
        self._name = name
        self._dataset = copy.deepcopy(dataset)  # its state would follow whoever reads parts of it too
        self._reading = self._dataset
        self._reader: Iterator[Row] | None = None  # opened when read: a worker that is forked must not share a file
        self._place = self._candidate = Place()
        self._expected: str | None = None
        self._next = self._passes = self._pass_start = 0
        self._begin(self._place)

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, number: int) -> Row:
        if number < self._next:
            raise RuntimeError(f"row {number} of a stream that has been read up to row {self._next}")
        row = self._read()
        if self._next > number:
            return row
        source = "a source" if self._name is None else self._name
        who = f"reading the stream of {source} up to row {number + 1:,}"
        with Progress(who, number + 1, before=self._next, bar=None, watched=False) as progress:
            while self._next <= number:
                row = self._read()
                progress.done()
        return row

    def first(self, count: int) -> list[Row]:
        """Returns the first rows, fewer where there are fewer. For a stream that is not being read yet."""
        return list(self._dataset.take(count))

    @property
    def rows_read(self) -> int:
        """Rows read so far, over all passes."""
        return self._next

    def place(self) -> Place:
        """Returns a place that has been passed: where this was last called, if reading has gone on since."""
        found = self._place
        if self._candidate.rows != self._next:
            state: dict[str, Any] = self._reading.state_dict()
            self._candidate = Place(self._next, self._passes, state)
        return found

    def enter(self, place: Place) -> None:
        """Goes on reading at a place; where the dataset cannot be restored there, from the start, with a warning."""
        self._begin(place)
        self._expected = place.coming

    def _begin(self, place: Place) -> None:
        self._place = self._candidate = place
        self._next, self._passes = place.rows, place.passes
        self._begin_pass(place.state)

    def _begin_pass(self, state: Mapping[str, Any] | None) -> None:
        if self.order is not None:
            self.order.passes = self._passes
        self._reading = self._dataset.skip(0)  # another shell: a loaded state holds for every pass of the one it is in
        self._reading.set_epoch(self._passes)
        if state is not None:
            self._reading.load_state_dict(copy.deepcopy(dict(state)))
        self._reader = None
        self._pass_start = self._next if state is None else -1

    def _read(self) -> Row:
        if self._expected is not None:
            self._verify(self._expected)
        row = self._read_in_pass()
        while row is None:
            if self._pass_start == self._next:
                source = "a source of the mixture" if self._name is None else f"the source {self._name}"
                raise ConfigError(f"{source} is a stream without rows -> check its files")
            self._begin(Place(self._next, self._passes + 1))
            row = self._read_in_pass()
        if self._candidate.rows == self._next:
            self._place = self._candidate = replace(self._candidate, coming=_digest(row))
        self._next += 1
        return row

    def _verify(self, expected: str) -> None:
        """Looks at the first row after :meth:`enter`, in the process that reads."""
        try:
            row = self._read_in_pass()
        except (KeyError, TypeError, ValueError):  # a state of another release of datasets
            row = None
        self._expected = None
        if row is not None and self._reader is not None and _digest(row) == expected:
            self._reader = chain([row], self._reader)
            return
        logger.warning(
            "a stream could not be restored at row %d; reading again from row 0 (skip(0) right after the dataset is "
            "loaded makes its state exact)",
            self._next,
        )
        self._begin(Place())

    def _read_in_pass(self) -> Row | None:
        if self._reader is None:
            self._reader = iter(self._reading)
        return next(self._reader, None)


def told_rows(dataset: Any) -> int | None:
    """Returns how many rows a stream has by what its dataset says of itself; None where it says nothing.

    That is the number of examples of its split, which hubs know. Transforms keep it, so it is the number of rows where
    they make one row of each example.
    """
    splits = dataset.info.splits if isinstance(dataset, datasets.IterableDataset) else None
    found = (splits or {}).get(str(dataset.split))
    return (found.num_examples or None) if found is not None else None


def _digest(row: Row) -> str:
    shown = repr(row.get("input_ids", row))
    return hashlib.blake2b(shown.encode(), digest_size=8).hexdigest()
