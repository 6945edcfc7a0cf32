"""Which row of the batch each activation belongs to.

Most layers see (B, T, F). The output layer sees the label positions alone (see
:mod:`dataflex.model.label_logits`), and some models flatten (B, T) before a layer.

Letters: B rows of the batch, T tokens, M label positions of the batch, S slots of a row, F features.
"""

from __future__ import annotations

from enum import Enum

import torch


class Layout(Enum):
    """Where the rows of a tensor are."""

    PICKED = "label positions, in the order of the rows: (1, M, ...)"
    FIRST = "the first dimension: (B, ...)"
    SECOND = "the second dimension: (T, B, ...)"
    BLOCKS = "blocks of the first dimension: (B * T, ...), (B * heads, T, ...)"
    SHARED = "nowhere: the tensor is the same for all rows"


class RowMap:
    """The rows of the batch that is in the model.

    Args:
        shape: (B, T) of the batch.
        positions_M: (M,) label positions in the flattened (B, T).
    """

    def __init__(self, shape: torch.Size, positions_M: torch.Tensor) -> None:
        self.rows, self.tokens = shape
        self._row_M = positions_M // self.tokens
        counts_B = torch.bincount(self._row_M, minlength=self.rows)
        first_B = counts_B.cumsum(0) - counts_B
        self._slot_M = torch.arange(len(positions_M), device=positions_M.device) - first_B[self._row_M]
        self._slots = int(counts_B.max()) if len(positions_M) else 0

    def knows(self, activation: torch.Tensor, picked: bool) -> bool:
        """Returns whether the rows of ``activation`` are known.

        Args:
            activation: What a layer was given or returned.
            picked: Whether the layer sees label positions alone.
        """
        if picked and tuple(activation.shape[:2]) == (1, len(self._row_M)):
            return True
        return self._per_row(activation) or self._flattened(activation)

    def shared(self, activation: torch.Tensor) -> bool:
        """Returns whether ``activation`` is (1, T, F), one for all rows, as learned positions are."""
        return self.rows > 1 and activation.ndim == 3 and tuple(activation.shape[:2]) == (1, self.tokens)

    def by_row(self, activation: torch.Tensor) -> torch.Tensor:
        """Returns (B, S, ...) from an activation that is known; slots without a position are 0."""
        if self._per_row(activation):
            return activation
        if self._flattened(activation):
            return activation.reshape(self.rows, self.tokens, *activation.shape[1:])
        found_MF = activation.squeeze(0)
        padded = found_MF.new_zeros(self.rows, self._slots, *found_MF.shape[1:])
        device = found_MF.device
        return padded.index_put_((self._row_M.to(device), self._slot_M.to(device)), found_MF)

    def layout(self, tensor: torch.Tensor, picked: bool, *, result: bool = False) -> Layout:
        """Returns where the rows of ``tensor`` are, as its shape tells.

        Args:
            tensor: What a module was given or returned.
            picked: Whether the module sees label positions alone.
            result: Whether the module returned it: as many vectors as there are rows need not be one of each.
        """
        shape = tuple(tensor.shape)
        if self.rows == 1 or not shape:
            return Layout.FIRST if self.rows == 1 and shape else Layout.SHARED
        if picked and shape[:2] == (1, len(self._row_M)):
            return Layout.PICKED
        if shape[0] == self.rows and (len(shape) > 2 or not result or shape[:2] == (self.rows, self.tokens)):
            return Layout.FIRST
        if shape[1:2] == (self.rows,) and (shape[0] == self.tokens or shape[2:] == (self.tokens,)):
            return Layout.SECOND
        if shape[0] == self.rows * self.tokens and self.tokens > 1:
            return Layout.BLOCKS
        if len(shape) > 2 and shape[0] % self.rows == 0 and self.tokens in shape[1:]:
            return Layout.BLOCKS
        return Layout.SHARED

    def of_row(self, tensor: torch.Tensor, layout: Layout, row: int) -> torch.Tensor:
        """Returns what belongs to one row, without a change of the number of dimensions."""
        if self.rows == 1 or layout is Layout.SHARED:
            return tensor
        if layout is Layout.PICKED:
            return tensor[:, (self._row_M == row).to(tensor.device)]
        if layout is Layout.FIRST:
            return tensor[row : row + 1]
        if layout is Layout.SECOND:
            return tensor[:, row : row + 1]
        each = len(tensor) // self.rows
        return tensor[row * each : (row + 1) * each]

    def _per_row(self, activation: torch.Tensor) -> bool:
        return activation.ndim > 1 and tuple(activation.shape[:2]) == (self.rows, self.tokens)

    def _flattened(self, activation: torch.Tensor) -> bool:
        return activation.ndim < 3 and len(activation) == self.rows * self.tokens
