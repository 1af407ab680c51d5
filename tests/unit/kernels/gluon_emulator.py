"""Runs a warp-specialized Gluon kernel on the CPU: each partition is a thread, barriers are real, tensors are torch's.

What Triton's interpreter does for Triton. Asynchronous products are taken when they are waited for, so that a buffer
handed back too early gives a wrong result; a wait that nothing ends fails after a few seconds.
"""

from __future__ import annotations

import threading
import types
from typing import Any

import torch

PATIENCE = 10.0  # seconds
CURRENT = threading.local()


class Memory:
    """Shared memory: a view of a tensor."""

    def __init__(self, data: torch.Tensor):
        self.data = data

    shape = property(lambda self: self.data.shape)
    dtype = property(lambda self: self.data.dtype)

    def index(self, i: int) -> Memory:
        return Memory(self.data[int(i)])

    def slice(self, start: int, length: int) -> Memory:
        return Memory(self.data[start : start + length])

    def permute(self, order: tuple[int, ...]) -> Memory:
        return Memory(self.data.permute(order))

    def load(self, layout: object) -> torch.Tensor:
        return self.data.clone()

    def store(self, value: torch.Tensor) -> None:
        self.data.copy_(value)


class Barrier:
    """An mbarrier: a phase ends when `count` have arrived and all expected bytes have come."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.count = self.missing = self.bytes = self.phases = 0

    def arrive(self, count: int = 0, expected: int = 0, received: int = 0) -> None:
        with self.changed:
            self.missing -= count
            self.bytes += expected - received
            if self.missing == 0 and self.bytes == 0:
                self.phases += 1
                self.missing = self.count
                self.changed.notify_all()
            assert self.missing >= 0 <= self.bytes

    def wait(self, parity: int) -> None:
        with self.changed:
            if not self.changed.wait_for(lambda: self.phases & 1 != parity, PATIENCE):
                raise TimeoutError("a barrier was never passed")


class Pointer:
    def __init__(self, memory: torch.Tensor, offset: Any = 0):
        self.memory, self.offset = memory, offset
        self.dtype = types.SimpleNamespace(element_ty=memory.dtype)

    def __add__(self, offset: Any) -> Pointer:
        return Pointer(self.memory, self.offset + offset)

    def __getitem__(self, key: Any) -> Pointer:
        return Pointer(self.memory, self.offset[key])


class Descriptor:
    """A tensor map; `layout` is not needed."""

    def __init__(
        self, base: torch.Tensor, shape: list[int], strides: list[int], block_shape: list[int], layout: object
    ):
        self.data = base.as_strided(shape, strides, base.storage_offset())
        self.block_shape, self.layout, self.dtype = block_shape, layout, base.dtype
        self.block_type = types.SimpleNamespace(nbytes=block_shape[0] * block_shape[1] * base.itemsize)


def _load_tile(descriptor: Descriptor, coordinates: list[Any], barrier: list[Barrier], tile: Memory) -> None:
    row, column = (int(c) for c in coordinates)
    rows, columns = descriptor.block_shape
    assert row >= 0 and column >= 0 and tuple(tile.shape) == (rows, columns)
    part = descriptor.data[row : row + rows, column : column + columns]
    tile.data.zero_()
    tile.data[: part.shape[0], : part.shape[1]] = part
    barrier[0].arrive(received=descriptor.block_type.nbytes)


class Product:
    """A product that is taken when it's waited for."""

    def __init__(self, a: Any, b: Memory, acc: torch.Tensor, use_acc: bool):
        self.a, self.b, self.acc, self.use_acc = a, b, acc, use_acc

    def result(self) -> torch.Tensor:
        a = self.a.data if isinstance(self.a, Memory) else self.a
        product = a.float() @ self.b.data.float()
        return product + self.acc if self.use_acc else product


def _multiply(a: Any, b: Memory, acc: torch.Tensor, use_acc: bool = True, is_async: bool = False) -> Any:
    product = Product(a, b, acc, use_acc)
    return product if is_async else product.result()


def _store(pointer: Pointer, value: torch.Tensor, mask: torch.Tensor) -> None:
    offset, mask, value = torch.broadcast_tensors(pointer.offset, mask, value)
    pointer.memory[offset[mask].long()] = value[mask]


def _warp_specialize(functions_and_args: list[tuple[Any, tuple]], num_warps: object, registers: object) -> None:
    program, failures = CURRENT.program, []

    def run(function: Any, args: tuple) -> None:
        CURRENT.program = program
        try:
            function(*args)
        except BaseException as e:
            failures.append(e)

    threads = [threading.Thread(target=run, args=pair, daemon=True) for pair in functions_and_args]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def _language() -> types.SimpleNamespace:
    def any_layout(*args: object, **kwargs: object) -> None:
        return None

    def tensor(x: Any) -> torch.Tensor:
        return torch.as_tensor(x)

    def allocate(dtype: Any, shape: list[int], layout: object) -> Any:
        if layout == "barriers":
            barriers = [Barrier() for _ in range(shape[0])]
            return types.SimpleNamespace(index=lambda i: [barriers[int(i)]])
        return Memory(torch.full(shape, torch.nan, dtype=dtype))

    return types.SimpleNamespace(
        constexpr=None,
        float32=torch.float32,
        int32=torch.int32,
        int64=torch.int64,
        NVMMADistributedLayout=any_layout,
        DotOperandLayout=any_layout,
        SliceLayout=any_layout,
        BlockedLayout=any_layout,
        NVMMASharedLayout=any_layout,
        program_id=lambda axis: tensor(CURRENT.program[0]),
        num_programs=lambda axis: tensor(CURRENT.program[1]),
        load=lambda p: p.memory[int(p.offset)],
        store=_store,
        arange=lambda begin, end, layout: torch.arange(begin, end),
        zeros=lambda shape, dtype, layout: torch.zeros(shape, dtype=dtype),
        zeros_like=torch.zeros_like,
        where=lambda condition, a, b: torch.where(tensor(condition), a, b),
        minimum=lambda a, b: torch.minimum(tensor(a), tensor(b)),
        maximum=lambda a, b: torch.maximum(tensor(a), tensor(b)),
        max=lambda x, axis: x.amax(axis),
        sum=lambda x, axis: x.sum(axis),
        exp2=torch.exp2,
        convert_layout=lambda x, layout: x,
        static_range=range,
        thread_barrier=lambda: None,
        allocate_shared_memory=allocate,
        warp_specialize=_warp_specialize,
    )


def _initialize(barrier: list[Barrier], count: int) -> None:
    barrier[0].count = barrier[0].missing = count


def _wait(barrier: list[Barrier], parity: Any, pred: Any = True) -> None:
    if pred:
        barrier[0].wait(int(parity))


BARRIERS = types.SimpleNamespace(
    MBarrierLayout=lambda: "barriers",
    init=_initialize,
    wait=_wait,
    arrive=lambda barrier: barrier[0].arrive(count=1),
    expect=lambda barrier, size: barrier[0].arrive(count=1, expected=size),
)


def emulate(module: types.ModuleType, kernel: str, monkeypatch: Any) -> Any:
    """Let a module's Gluon kernel, launched as `kernel[(programs,)](…)`, run here; undone with the test."""
    for name, value in vars(module).copy().items():
        if type(value).__name__ == "GluonJITFunction":
            monkeypatch.setattr(module, name, value.fn)
    body = getattr(module, kernel)

    class Launcher:
        def __getitem__(self, grid: tuple[int]) -> Any:
            def launch(*args: Any, num_warps: int, maxnreg: int, **constants: Any) -> None:
                pointers = [Pointer(a.view(-1)) if isinstance(a, torch.Tensor) else a for a in args]
                for program in range(grid[0]):
                    CURRENT.program = (program, grid[0])
                    body(*pointers, **constants)

            return launch

    monkeypatch.setattr(module, kernel, Launcher())
    monkeypatch.setattr(module, "gl", _language())
    monkeypatch.setattr(module, "mbarrier", BARRIERS)
    monkeypatch.setattr(module, "tma", types.SimpleNamespace(async_copy_global_to_shared=_load_tile))
    monkeypatch.setattr(module, "fence_async_shared", lambda: None)
    monkeypatch.setattr(module, "warpgroup_mma", _multiply)
    monkeypatch.setattr(
        module,
        "warpgroup_mma_wait",
        lambda num_outstanding, deps: deps[0].result(),
    )
    monkeypatch.setattr(module, "TensorDescriptor", Descriptor)
