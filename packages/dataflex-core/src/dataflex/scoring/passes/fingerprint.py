"""Digests of models, optimizers and datasets: the key under which a result may be used again.

Two things with the same digest give the same scores; there is no way to name a stale one.
"""

from __future__ import annotations

import contextlib
import hashlib
import weakref
from collections.abc import Iterable
from typing import Any

import datasets
import numpy as np
import torch
from torch.distributed.tensor import DTensor
from torch.utils.data import ConcatDataset, Subset

from dataflex.rows.arrow import feed_array, is_stored, tables, whole
from dataflex.rows.media import all_file_facts, file_facts, has_media
from dataflex.rows.views import MixedSources, PlannedRows, fetch
from dataflex.utils.progress import Progress

_ROWS = 1024  # rows that are held at a time, of a dataset that makes them when they are read
_ROWS_READ = "reading rows for the key of what is kept of a pass"
_CHUNK = 2**24  # numbers that are copied to the CPU at a time
_frozen: weakref.WeakKeyDictionary[torch.nn.Module, dict[frozenset[int], bytes]] = weakref.WeakKeyDictionary()
_datasets: dict[int, tuple[weakref.ref[Any], str]] = {}


def digest(*parts: object) -> str:
    """Returns 32 hexadecimal digits that depend on the text of every part."""
    return hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=16).hexdigest()


def model_digest(model: torch.nn.Module, trained: Iterable[torch.nn.Parameter] | None = None) -> str:
    """Returns a digest of every parameter and buffer of ``model``, and of its class.

    What is not trained is read once per process; a frozen parameter that is written to afterwards is not seen. Under a
    sharded engine it is the digest of this rank's shards.

    Args:
        model: The model.
        trained: The parameters that training changes; None for those that require a gradient at the moment.
    """
    if trained is None:
        trained = [p for p in model.parameters() if p.requires_grad]
    changing = {id(p) for p in trained}
    key = frozenset(changing)
    known = _frozen.setdefault(model, {})
    if key not in known:
        frozen = ((name, p) for name, p in model.named_parameters() if id(p) not in changing)
        known[key] = _tensors([*frozen, *model.named_buffers()])
    own = ((name, p) for name, p in model.named_parameters() if id(p) in changing)
    return digest(type(model).__qualname__, known[key].hex(), _tensors(own).hex())


def optimizer_digest(optimizer: torch.optim.Optimizer | None) -> str:
    """Returns a digest of every tensor and number in the state of ``optimizer``, in the order of its parameters."""
    if optimizer is None:
        return "none"
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    entries = [(f"{i}/{key}", v) for i, p in enumerate(parameters) for key, v in sorted(optimizer.state[p].items())]
    tensors = _tensors((key, value) for key, value in entries if isinstance(value, torch.Tensor))
    return digest(type(optimizer).__qualname__, tensors.hex(), *(v for _, v in entries if isinstance(v, int | float)))


def dataset_digest(dataset: Any) -> str:
    """Returns a digest of every row of ``dataset``. Computed once for each dataset object.

    A stored dataset is read at the speed of the disk: what is hashed are the numbers as they stand there.
    """
    known = _datasets.get(id(dataset))
    if known is not None and known[0]() is dataset:
        return known[1]
    state = hashlib.blake2b(digest_size=16)
    _feed(state, dataset)
    found = state.hexdigest()
    with contextlib.suppress(TypeError):  # a list, say, has no weak references: read again each time
        _datasets[id(dataset)] = (weakref.ref(dataset), found)
    return found


def _feed(state: Any, dataset: Any) -> None:
    """Feeds the rows of ``dataset`` to ``state``, through what only picks or joins rows of other datasets."""
    match dataset:
        case datasets.Dataset() if is_stored(dataset) and dataset.column_names:
            # Columns are hashed in stretches of rows: tables that were put together in another way have the same
            # digest.
            with Progress(_ROWS_READ, len(dataset)) as progress:
                for table in tables(dataset, sorted(dataset.column_names)):
                    for name in table.column_names:
                        state.update(f"{name} {table.column(name).type}".encode())
                        feed_array(state, whole(table.column(name)))
                    progress.done(len(table))
            for facts in all_file_facts(dataset):  # an image may have been painted over under the same name
                state.update(repr(facts).encode())
        case Subset():
            state.update(dataset_digest(dataset.dataset).encode() + np.asarray(dataset.indices, np.int64).tobytes())
        case PlannedRows():
            state.update(dataset_digest(dataset.dataset).encode() + dataset.rows.tobytes())
        case ConcatDataset():
            state.update("".join(map(dataset_digest, dataset.datasets)).encode())
        case MixedSources():
            state.update("".join(map(dataset_digest, dataset.sources)).encode())
        case _:
            with Progress(_ROWS_READ, len(dataset)) as progress:
                for start in range(0, len(dataset), _ROWS):
                    for row in fetch(dataset, range(start, min(start + _ROWS, len(dataset)))):
                        state.update(repr([(key, _plain(row[key])) for key in sorted(row)]).encode())
                        state.update(repr(file_facts(row)).encode() if has_media(row) else b"")
                        progress.done()


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, torch.Tensor | np.ndarray) else value


def _tensors(named: Iterable[tuple[str, torch.Tensor]]) -> bytes:
    state = hashlib.blake2b(digest_size=16)
    with Progress("reading weights for the key of what is kept of a pass", unit="tensors") as progress:
        for name, tensor in named:
            local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
            state.update(f"{name} {local.dtype} {tuple(local.shape)}".encode())
            flat = local.detach().flatten()
            for start in range(0, flat.numel(), _CHUNK):
                state.update(flat[start : start + _CHUNK].cpu().contiguous().view(torch.uint8).numpy().tobytes())
            progress.done()
    return state.digest()
