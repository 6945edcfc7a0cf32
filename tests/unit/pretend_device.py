"""A device that is not there: tensors that say they are on one, with numbers on the CPU.

It is as strict as an accelerator is: tensors of two devices do not meet, there is no float64 (as on Apple's MPS), NumPy
cannot read it, and whatever makes the host wait for it is written down. So code for accelerators is tested anywhere.
Not covered: kernels, streams, memory.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("cuda", 0)  # the kind of which torch can be told to do without: see pretended()
aten = torch.ops.aten
READS = {
    aten._local_scalar_dense: "reads a number",
    aten.is_nonzero: "reads a number",
    aten.equal: "reads a number",
    aten.nonzero: "waits for how many there are",
    aten.masked_select: "waits for how many there are",
    aten._unique2: "waits for how many there are",
    aten.bincount: "waits for the largest",
}
MASKED = (aten.index, aten.index_put, aten.index_put_, aten._unsafe_index)
_OURS = re.compile(r"/dataflex(_[a-z]+)?/[^:]*py:")


class OnDevice(torch.Tensor):
    """A tensor on the pretended device."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> OnDevice:
        if held.dtype == torch.float64:
            raise TypeError("Cannot convert a tensor to float64: the device does not support it")
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=DEVICE,
        )  # fmt: skip
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, [])


def _run(func: Any, args: Any, kwargs: Any, reads: list[str]) -> Any:
    flat = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
    there = [value for value in flat if isinstance(value, OnDevice)]
    target = kwargs.get("device")
    wanted = None if target is None else torch.device(target).type
    if wanted == DEVICE.type:
        kwargs = kwargs | {"device": "cpu"}
    elif not there:
        return func(*args, **kwargs)
    packet = func.overloadpacket
    copies = packet in (aten._to_copy, aten.copy_)
    if there and not copies:
        strangers = [value for value in flat if not isinstance(value, OnDevice) and value.ndim > 0]
        if strangers:
            raise RuntimeError(f"{func}: expected all tensors to be on the same device, found {DEVICE} and cpu")
    masks = packet in MASKED and _masked(args)
    if packet in READS or masks:
        reads.append(f"{READS.get(packet, 'waits for how many there are')}: {func}\n{_where()}")
    to_host = packet is aten._to_copy and wanted == "cpu"
    leaves = there and (to_host or packet in (aten._local_scalar_dense, aten.equal))
    if leaves and to_host and not kwargs.get("non_blocking"):  # such a copy queues behind what the device has to do
        reads.append(f"is copied to the host\n{_where()}")
    if packet is aten.copy_ and not isinstance(args[0], OnDevice):
        reads.append(f"is copied to the host\n{_where()}")
    held = {id(value.held): value for value in there}
    found = func(*tree_map(_held, args), **tree_map(_held, kwargs))
    if leaves:
        return found
    # What was changed in place is what it was; the rest is new, on the device.
    return tree_map(lambda value: _on(value, held) if isinstance(value, torch.Tensor) else value, found)


def _masked(args: Any) -> bool:
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])


def _held(value: Any) -> Any:
    return value.held if isinstance(value, OnDevice) else value


def _on(value: torch.Tensor, known: dict[int, OnDevice]) -> torch.Tensor:
    return known[id(value)] if id(value) in known else OnDevice(value)


def _where() -> str:
    """Returns the line that the operation comes from, torch and this file left out."""
    frames = [f for f in traceback.extract_stack() if "/torch/" not in f.filename and f.filename != __file__]
    return f"{frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}"


class _Dispatch(TorchDispatchMode):
    def __init__(self, reads: list[str]) -> None:
        super().__init__()
        self.reads = reads

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, self.reads)


class _Made(TorchFunctionMode):
    """What would begin with starting the device: tensors that are made on it, and those that are sent there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name, own = getattr(func, "__name__", ""), bool(args) and isinstance(args[0], OnDevice)
        if func is torch.Tensor.tolist and own:
            return args[0].cpu().tolist()
        if func is torch.Tensor.to:
            given = [*args[1:], *kwargs.values()]
            devices = [each.device if isinstance(each, torch.Tensor) else each for each in given]
            if any(_is_there(device) for device in devices):
                dtypes = [each.dtype if isinstance(each, torch.Tensor) else each for each in given]
                dtype = next((each for each in dtypes if isinstance(each, torch.dtype)), args[0].dtype)
                found = args[0] if args[0].dtype == dtype else args[0].to(dtype)
                return found if own else OnDevice(found.detach().clone())
            return func(*args, **kwargs)
        if name.startswith("new_") and own and kwargs.get("device") is None:
            return OnDevice(func(torch.empty(0, dtype=args[0].dtype), *args[1:], **kwargs))
        if _is_there(kwargs.get("device")):
            return OnDevice(func(*args, **(kwargs | {"device": "cpu"})))
        return func(*args, **kwargs)


def _is_there(device: Any) -> bool:
    return isinstance(device, torch.device | str) and torch.device(device).type == DEVICE.type


@contextmanager
def pretended() -> Iterator[list[str]]:
    """Inside of it there is the device; yields what made the host wait for it, each with the line that did."""
    torch._C._ensureCUDADeviceGuardSet()  # nothing is done where a device would be chosen
    reads: list[str] = []
    memory = patch("dataflex.scoring.passes.budget.device_memory", lambda device: 2**34)
    with memory, _Made(), _Dispatch(reads):
        yield reads


def on_device(model: torch.nn.Module) -> torch.nn.Module:
    """Moves the weights and buffers of a model there."""
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                moved = torch.nn.Parameter(OnDevice(parameter.detach()), requires_grad=parameter.requires_grad)
                module._parameters[name] = moved
        for name, buffer in list(module._buffers.items()):
            module._buffers[name] = None if buffer is None else OnDevice(buffer)
    return model


class _Asked(TorchFunctionMode):
    """What reads a tensor without a word to the dispatcher where it is on the CPU."""

    def __init__(self, reads: list[str]) -> None:
        super().__init__()
        self.reads = reads

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.tolist, torch.Tensor.cpu):
            self.reads.append(_where())
        return func(*args, **(kwargs or {}))


class _Waited(TorchDispatchMode):
    def __init__(self, reads: list[str]) -> None:
        super().__init__()
        self.reads = reads

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func.overloadpacket
        if packet in READS or (packet in MASKED and _masked(args)):
            self.reads.append(_where())
        return func(*args, **(kwargs or {}))


@contextmanager
def host_reads() -> Iterator[list[str]]:
    """Yields the lines of this project that would make the host wait for a device, in a run on the CPU."""
    found: list[str] = []
    try:
        with _Asked(found), _Waited(found):
            yield found
    finally:
        found[:] = [line for line in found if _OURS.search(line)]
