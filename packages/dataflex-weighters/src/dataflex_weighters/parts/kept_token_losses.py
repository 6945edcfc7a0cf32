"""The losses of all tokens of a dataset under a frozen model: computed once, kept on disk, read by row.

They lie row after row in one flat file, a number for each token and NaN where none is predicted, beside the places at
which rows begin. The file is mapped, not read, so memory holds the rows of a step whatever the dataset's size; making
it holds a part of the rows at a time. The folder's name is a digest of the model, the rows and the type, so that a file
never serves another model or other rows. An interrupted pass begins anew.

Letters: N rows, n rows of a part, T tokens of the longest of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from dataflex.core.errors import ComponentError
from dataflex.core.files import replacing
from dataflex.core.ranks.by_row import gather_by_row
from dataflex.model.autocast import autocast
from dataflex.model.cross_entropy import at_positions
from dataflex.model.label_logits import label_positions
from dataflex.model.label_losses import LabelLosses, losses_at_labels
from dataflex.model.undisturbed import undisturbed
from dataflex.rows.lengths import row_lengths
from dataflex.scoring.passes.fingerprint import dataset_digest, digest, model_digest
from dataflex.scoring.passes.row_pass import Collator, RowBatch, RowPass
from dataflex.utils.progress import Progress
from numpy.typing import NDArray

if TYPE_CHECKING:
    from accelerate import Accelerator

DTYPES: Mapping[str, type[np.floating[Any]]] = {"float32": np.float32, "float16": np.float16}
_PART = 2**22  # numbers of a part, with padding: 16 MB of float32
_MOST_ROWS = 4096  # of a part


class KeptTokenLosses:
    """Token losses of the rows of a dataset, on disk.

    Args:
        folder: Where files go; each has a folder of its own in there.
        dtype: A key of :data:`DTYPES`.
        token_budget: Tokens that are read at once; None for a default.

    Attributes:
        losses: (tokens of all rows,) the file; None before :meth:`read_or_make`.
        starts: (N + 1,) where each row begins in it.
    """

    def __init__(self, folder: str, dtype: str, token_budget: int | None) -> None:
        self._folder, self._dtype, self._token_budget = Path(folder), dtype, token_budget
        self.losses: NDArray[np.floating[Any]] | None = None
        self.starts: NDArray[np.int64] = np.zeros(1, dtype=np.int64)

    def losses_of(self, rows_X: NDArray[np.int64]) -> list[NDArray[np.float32]]:
        """Returns the losses of some rows, each (its tokens,) float32, NaN for a token that is not predicted."""
        assert self.losses is not None
        return [
            np.asarray(self.losses[self.starts[row] : self.starts[row + 1]], dtype=np.float32)
            for row in rows_X.tolist()
        ]

    def read_or_make(
        self, model: Any, dataset: Any, collator: Collator, accelerator: Accelerator | None, who: str
    ) -> None:
        """Opens the file of these losses, made by one pass of the model where it is not there. Collective.

        Each machine has a file of its own, unless they share the folder.

        Args:
            model: The frozen model.
            dataset: The tokenised dataset.
            collator: Makes a batch of tensors from a list of rows.
            accelerator: The run's accelerator; None means a single process.
            who: What the progress line begins with.

        Raises:
            ComponentError: A loss is not finite, or the file cannot be written.
        """
        lengths_N = row_lengths(dataset)
        self.starts = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths_N)])
        key = digest("token losses", model_digest(model), dataset_digest(dataset), self._dtype)
        path = self._folder / "token_losses" / f"{key}.{self._dtype}"
        if not _everywhere(self._is_whole(path), accelerator):
            self._make(path, model, dataset, collator, accelerator, who)
        size = int(self.starts[-1])
        self.losses = np.memmap(path, DTYPES[self._dtype], "r", shape=(size,)) if size else np.zeros(0, np.float32)

    def _is_whole(self, path: Path) -> bool:
        return path.is_file() and path.stat().st_size == self.starts[-1] * DTYPES[self._dtype]().itemsize

    def _make(
        self, path: Path, model: Any, dataset: Any, collator: Collator, accelerator: Accelerator | None, who: str
    ) -> None:
        writes = accelerator is None or accelerator.is_local_main_process
        parts = _parts(np.diff(self.starts))
        with (
            replacing(path) if writes else nullcontext(Path(os.devnull)) as temporary,
            open(temporary, "wb") as file,
            undisturbed(model),
            torch.no_grad(),
            losses_at_labels(model) as forward,
            Progress(f"{who}: losses of tokens", len(dataset)) as progress,
        ):
            for rows_n in parts:
                found_nT = self._part(rows_n, forward, model, (dataset, collator, accelerator))
                lengths_n = self.starts[rows_n + 1] - self.starts[rows_n]
                _require_finite(found_nT, rows_n)
                if writes:
                    inside_nT = np.arange(found_nT.shape[1]) < lengths_n[:, None]
                    file.write(found_nT[inside_nT].astype(DTYPES[self._dtype]).tobytes())
                progress.done(len(rows_n))
        if accelerator is not None:
            accelerator.wait_for_everyone()

    def _part(
        self,
        rows_n: NDArray[np.int64],
        forward: LabelLosses,
        model: Any,
        given: tuple[Any, Collator, Accelerator | None],
    ) -> NDArray[np.float32]:
        """Returns the losses of some rows at their own tokens: (n, T), NaN where none is predicted. Collective."""
        dataset, collator, accelerator = given
        T = int((self.starts[rows_n + 1] - self.starts[rows_n]).max(initial=1))
        found = RowPass(dataset, collator, accelerator, rows_n, self._token_budget, None, "token losses", False)
        places, values = [np.empty(0, dtype=np.int64)], [torch.empty(0, T)]
        for batch, values_BT in found.results(model, lambda batch: _scored(batch, forward, accelerator, T)):
            if not batch.repeated:
                places.append(batch.rows)
                values.append(values_BT)
        return gather_by_row(np.concatenate(places), torch.cat(values), len(rows_n), accelerator)


def _scored(batch: RowBatch, forward: LabelLosses, accelerator: Accelerator | None, T: int) -> torch.Tensor:
    """Returns the losses of a batch's rows at their own tokens, from the first on: (B, T) on the CPU."""
    labels_BT = batch.labels()
    positions_M, targets_M = label_positions(labels_BT)
    with autocast(accelerator):
        losses_M = forward(batch.inputs, positions_M, targets_M, labels_BT.shape)
    losses_BT = at_positions(losses_M.float().cpu(), positions_M, labels_BT.shape)
    there_BT = torch.zeros(labels_BT.shape, dtype=torch.bool)
    there_BT.view(-1)[positions_M] = True
    losses_BT = torch.where(losses_BT.isfinite() | ~there_BT, losses_BT, torch.inf).masked_fill(~there_BT, torch.nan)
    own_BT = torch.nn.functional.pad(losses_BT, (1, 0), value=torch.nan)[:, :-1]  # at the token that is predicted
    first_B = _first_tokens(batch.inputs, labels_BT.shape)
    columns_BT = first_B[:, None] + torch.arange(T)
    padded_BT = torch.nn.functional.pad(own_BT, (0, T), value=torch.nan)
    return padded_BT.gather(1, columns_BT.clamp(max=padded_BT.shape[1] - 1))


def _first_tokens(inputs: Mapping[str, torch.Tensor], shape: torch.Size) -> torch.Tensor:
    """Returns where each row of a batch begins: (B,), 0 but where rows are padded on the left."""
    mask = inputs.get("attention_mask")
    if mask is None or mask.shape != shape:
        return torch.zeros(shape[0], dtype=torch.long)
    return (mask.cpu() != 0).to(torch.uint8).argmax(dim=1)


def _parts(lengths_N: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Yields row numbers, part by part in row order: as many as :data:`_PART` numbers hold with padding."""
    start = 0
    while start < len(lengths_N):
        longest = np.maximum.accumulate(lengths_N[start : start + _MOST_ROWS])
        fits = np.flatnonzero(longest * np.arange(1, len(longest) + 1) <= _PART)
        end = start + max(1, int(fits[-1]) + 1 if len(fits) else 1)
        yield np.arange(start, end, dtype=np.int64)
        start = end


def _require_finite(found_nT: NDArray[np.float32], rows_n: NDArray[np.int64]) -> None:
    bad = np.flatnonzero(np.isinf(found_nT).any(axis=1))
    if len(bad):
        raise ComponentError(
            f"the reference model's loss is NaN or infinite for a token of row {rows_n[bad[0]]} -> use a model whose "
            "weights are sound, or bf16 in the place of fp16"
        )


def _everywhere(holds: bool, accelerator: Accelerator | None) -> bool:
    if accelerator is None or accelerator.num_processes == 1:
        return holds
    return bool(torch.as_tensor(accelerator.gather(torch.tensor([int(holds)], device=accelerator.device))).all())
