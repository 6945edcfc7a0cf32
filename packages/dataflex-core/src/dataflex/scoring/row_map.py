"""Which row of the batch each activation belongs to.

Most layers see (B, T, F). The output layer sees the label positions alone (see
:mod:`dataflex.scoring.label_logits`), and some models flatten (B, T) before a layer.

Letters: B rows of the batch, T tokens, M label positions of the batch, S slots of a row, F features.
"""

from __future__ import annotations

import torch


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

    def _per_row(self, activation: torch.Tensor) -> bool:
        return activation.ndim > 1 and tuple(activation.shape[:2]) == (self.rows, self.tokens)

    def _flattened(self, activation: torch.Tensor) -> bool:
        return activation.ndim < 3 and len(activation) == self.rows * self.tokens
