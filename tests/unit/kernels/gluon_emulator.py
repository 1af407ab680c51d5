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

    def _reinterpret(self, dtype: torch.dtype, shape: list[int], layout: object) -> Tiles:
        """These bytes as [N, rows, columns] tiles, which swizzled by 128 bytes are made of panels of 64 columns."""
        number, rows, columns = shape
        return Tiles(self.data.view(number, columns // 64, rows, 64))


class Tiles:
    """Tiles of several panels; `panels` is [N, columns / 64, rows, 64]."""

    def __init__(self, panels: torch.Tensor):
        self.panels = panels

    def index(self, i: int) -> Tile:
        return Tile(self.panels[int(i)])


class Tile:
    """A tile of panels [columns / 64, rows, 64], read when `data` is."""

    def __init__(self, panels: torch.Tensor, transposed: bool = False):
        self.panels, self.transposed = panels, transposed

    @property
    def data(self) -> torch.Tensor:
        tile = self.panels.transpose(0, 1).flatten(1)
        return tile.T if self.transposed else tile

    shape = property(lambda self: self.data.shape)

    def permute(self, order: tuple[int, ...]) -> Tile:
        return Tile(self.panels, not self.transposed)

    def slice(self, start: int, length: int) -> Tile:
        return Tile(self.panels[:, start : start + length])

    def load(self, layout: object) -> torch.Tensor:
        return self.data.clone()

    def store(self, value: torch.Tensor) -> None:
        self.panels.copy_(value.unflatten(1, (-1, 64)).transpose(0, 1))


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


def _load_tile(
    descriptor: Descriptor, coordinates: list[Any], barrier: list[Barrier], tile: Memory, pred: Any = True
) -> None:
    if not pred:
        return
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
        a = self.a.data if isinstance(self.a, (Memory, Tile)) else self.a
        product = a.float() @ self.b.data.float()
        return product + self.acc if self.use_acc else product


def _multiply(a: Any, b: Memory, acc: torch.Tensor, use_acc: bool = True, is_async: bool = False) -> Any:
    product = Product(a, b, acc, use_acc)
    return product if is_async else product.result()


def _load(pointer: Pointer, mask: Any = True, other: float = 0, cache_modifier: str = "") -> torch.Tensor:
    offset, mask = torch.broadcast_tensors(torch.as_tensor(pointer.offset), torch.as_tensor(mask))
    assert bool((offset[mask] >= 0).all())
    result = torch.full(offset.shape, other, dtype=pointer.memory.dtype)
    result[mask] = pointer.memory[offset[mask].long()]
    return result


def _store(pointer: Pointer, value: Any, mask: Any = True) -> None:
    offset, mask, value = torch.broadcast_tensors(*map(torch.as_tensor, (pointer.offset, mask, value)))
    pointer.memory[offset[mask].long()] = value[mask].to(pointer.memory.dtype)


def _atomic_add(pointer: Pointer, value: int, sem: str, scope: str) -> torch.Tensor:
    """Programs run one after another, and one thread of each adds."""
    before = _load(pointer)
    _store(pointer, before + value)
    return before


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
        load=_load,
        atomic_add=_atomic_add,
        store=_store,
        arange=lambda begin, end, layout: torch.arange(begin, end),
        zeros=lambda shape, dtype, layout: torch.zeros(shape, dtype=dtype),
        full=lambda shape, value, dtype, layout: torch.full(shape, value, dtype=dtype),
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
    arrive=lambda barrier, pred=True: barrier[0].arrive(count=1) if pred else None,
    expect=lambda barrier, size, pred=True: barrier[0].arrive(count=1, expected=size) if pred else None,
)


def emulate(module: types.ModuleType, kernel: str, monkeypatch: Any, *parts: types.ModuleType) -> Any:
    """Let a module's Gluon kernel, launched as `kernel[(programs,)](…)`, run here; undone with the test.

    `parts` are modules that functions of the kernel come from.
    """
    replacements = {
        "gl": _language(),
        "mbarrier": BARRIERS,
        "tma": types.SimpleNamespace(async_copy_global_to_shared=_load_tile),
        "fence_async_shared": lambda: None,
        "warpgroup_mma": _multiply,
        "warpgroup_mma_wait": lambda num_outstanding, deps: deps[0].result(),
        "TensorDescriptor": Descriptor,
    }
    for part in (module, *parts):
        for name, value in vars(part).copy().items():
            if name in replacements:
                monkeypatch.setattr(part, name, replacements[name])
            elif type(value).__name__ == "GluonJITFunction":
                monkeypatch.setattr(part, name, value.fn)
            elif type(value).__name__ == "constexpr":
                monkeypatch.setattr(part, name, value.value)
    body = getattr(module, kernel)

    class Launcher:
        def __getitem__(self, grid: tuple[int]) -> Any:
            def launch(*args: Any, num_warps: int, maxnreg: int, **constants: Any) -> None:
                pointers = [Pointer(_memory(a)) if isinstance(a, torch.Tensor) else a for a in args]
                for program in range(grid[0]):
                    CURRENT.program = (program, grid[0])
                    body(*pointers, **constants)

            return launch

    monkeypatch.setattr(module, kernel, Launcher())


def _memory(tensor: torch.Tensor) -> torch.Tensor:
    """All memory from the tensor's first element on."""
    return tensor.as_strided((tensor.untyped_storage().nbytes() // tensor.itemsize - tensor.storage_offset(),), (1,))
