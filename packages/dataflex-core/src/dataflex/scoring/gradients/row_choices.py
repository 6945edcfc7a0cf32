"""What a batch chose, chosen again where its rows are called alone.

A router sends a token to the experts with the largest logits. Kernels round otherwise for another number of rows, so
where two logits are nearly equal a row alone may choose another expert than it did among others, and all that follows
is another number. That is not rows changing each other. So a row's choice is taken from the batch where rounding can
explain the difference, and only there: a choice that truly depends on the other rows stays what the row alone makes it.

Letters: B rows of the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dataflex.scoring.gradients.row_map import RowMap

_TOPK, _MAX, _ARGMAX = torch.ops.aten.topk.default, torch.ops.aten.max.dim, torch.ops.aten.argmax.default

_LARGER = 4
"""A softmax makes of what logits are off by, which is a share of their size, a share of the probability."""

Made = list[tuple[Any, torch.Tensor]]
"""Operations that chose, in their order, and the indices that each gave."""


class Choices:
    """The choices of one call for a batch.

    Args:
        rows: The rows of the batch.
        picked: Whether the call sees label positions alone.
        allowed: How far numbers may be apart for rounding alone, as a share of the largest that is chosen from.
    """

    def __init__(self, rows: RowMap, picked: bool, allowed: float) -> None:
        self._rows, self._picked, self._allowed = rows, picked, allowed
        self._made: Made = []

    def __bool__(self) -> bool:
        return bool(self._made)

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Inside of it, the call is made for the batch, without gradients."""
        with torch.no_grad(), _Noting(self._made):
            yield
        torch.clear_autocast_cache()  # it has weights that require no gradient

    @contextmanager
    def again(self, row: int) -> Iterator[None]:
        """Inside of it, the call is made for one row alone."""
        if not self._made:
            yield
            return
        own = [(kind, self._rows.of_row(i, self._rows.layout(i, self._picked), row)) for kind, i in self._made]
        with _Repeating(own, self._allowed):
            yield


class _Noting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, made: Made) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._made = made

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func in (_TOPK, _MAX, _ARGMAX):
            self._made.append((func, found if func is _ARGMAX else found[1]))
        return found


class _Repeating(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Autograd is above it: its formula for an operation that chooses goes by the indices that came out."""

    def __init__(self, made: Made, allowed: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._made, self._allowed = iter(made), allowed

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func not in (_TOPK, _MAX, _ARGMAX):
            return found
        made, index = next(self._made, (None, None))
        if made is not func or index is None:  # another way through the call
            self._made = iter(())
            return found
        given, dim = args[0], _dim(func, args, kwargs or {})
        own = found if func is _ARGMAX else found[1]
        if dim is None or own.shape != index.shape:
            return found
        whole = own.ndim == given.ndim
        own_K, index_K = (own, index) if whole else (own.unsqueeze(dim), index.unsqueeze(dim))
        apart = (given.gather(dim, own_K) - given.gather(dim, index_K)).float().abs()
        size = torch.where(given.isfinite(), given, 0.0).float().abs().amax(dim, keepdim=True)
        near = (apart <= _LARGER * self._allowed * size).all(dim, keepdim=True)
        index_K = torch.where(near, index_K, own_K)
        values = given.gather(dim, index_K)
        if not whole:
            values, index_K = values.squeeze(dim), index_K.squeeze(dim)
        return index_K if func is _ARGMAX else (values, index_K)


def _dim(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> int | None:
    """Returns the dimension that is chosen along; None for all together."""
    place = 2 if func is _TOPK else 1
    found: int | None = args[place] if len(args) > place else kwargs.get("dim", -1 if func is _TOPK else None)
    return found
