"""Weights on their way to a GPU: several threads read them ahead, and the model takes and merges them as they come.

So a model is loaded at the speed of the disk, or of PCIe where the page cache has the files, and the device holds no
more than the model, the parts of the layer that is being built, and what is read ahead.
"""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue

import torch
from torch import Tensor

from octavo.kernels.fp8 import FP8

READERS = 8  # one thread copies from the page cache at a tenth of what PCIe takes
PIECE_BYTES = 16 * 2**20  # of pinned memory for each reader
AHEAD_BYTES = 512 * 2**20  # tensors that are being read


class Arriving(Mapping[str, Tensor]):
    """Weights by name, out of a stream. Each can be taken once, and is then forgotten.

    What comes before it is asked for is kept, the scale before an FP8 weight too, which is asked for after it. The
    stream's own errors come out wherever it is read.
    """

    def __init__(self, names: Iterable[str], weights: Iterator[tuple[str, Tensor]]) -> None:
        """names: of all that the stream will bring, but for scales."""
        self._missing = dict.fromkeys(names)
        self._weights = weights
        self._kept: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._missing and name not in self._kept:
            raise KeyError(name)
        while name not in self._kept:
            self._take_in()
        self._missing.pop(name, None)
        return self._kept.pop(name)

    def __contains__(self, name: object) -> bool:
        return name in self._missing or name in self._kept

    def __iter__(self) -> Iterator[str]:
        return iter(self._missing)

    def __len__(self) -> int:
        return len(self._missing)

    def finish(self) -> None:
        """Read the stream to its end, where it says what was wrong with it."""
        for _ in self._weights:
            pass

    def _take_in(self) -> None:
        try:
            name, tensor = next(self._weights)
        except StopIteration:
            raise KeyError(f"the stream ended before {', '.join(list(self._missing)[:5])}") from None
        self._kept[name] = tensor


def to_device(
    weights: Iterable[tuple[str, Tensor]], dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[str, Tensor]]:
    """The same weights on `device` in `dtype`, or in FP8 if they are, in their order, read ahead.

    weights: on the CPU; views of mapped files are read here. They are cast on the device.
    """
    with _Readers(device) as readers:
        coming: deque[tuple[str, Tensor, list[Future[None]], int]] = deque()
        ahead = 0
        for name, tensor in weights:
            is_quantized = tensor.dtype == FP8 or name.endswith("_scale")
            target = torch.empty(tensor.shape, dtype=tensor.dtype if is_quantized else dtype, device=device)
            coming.append((name, target, readers.copy(tensor, target), tensor.nbytes))
            ahead += tensor.nbytes
            while ahead > AHEAD_BYTES:
                name, target, pieces, num_bytes = coming.popleft()
                yield name, _arrived(target, pieces)
                ahead -= num_bytes
        for name, target, pieces, _ in coming:
            yield name, _arrived(target, pieces)


def _arrived(target: Tensor, pieces: list["Future[None]"]) -> Tensor:
    for piece in pieces:
        piece.result()
    return target


class _Readers:
    """Threads that copy pieces of tensors through pinned memory, one buffer each."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        count = min(READERS, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(count, "weights")
        self._buffers: SimpleQueue[Tensor] = SimpleQueue()
        for _ in range(count):
            self._buffers.put(torch.empty(PIECE_BYTES, dtype=torch.uint8, pin_memory=device.type == "cuda"))

    def __enter__(self) -> "_Readers":
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def copy(self, tensor: Tensor, target: Tensor) -> "list[Future[None]]":
        """Begin to copy; both have one shape."""
        if tensor.dim() == 0:
            tensor, target = tensor[None], target[None]
        row_bytes = max(1, tensor[:1].nbytes)
        assert row_bytes <= PIECE_BYTES, f"a row of {row_bytes} bytes; pieces have {PIECE_BYTES}"
        rows = PIECE_BYTES // row_bytes
        pairs = zip(torch.split(tensor, rows), torch.split(target, rows), strict=True)
        return [self._pool.submit(self._copy, *pair) for pair in pairs]

    def _copy(self, piece: Tensor, target: Tensor) -> None:
        buffer = self._buffers.get()
        try:
            staged = buffer[: piece.nbytes].view(piece.dtype).view(piece.shape)
            staged.copy_(piece)
            if piece.dtype == target.dtype:
                target.copy_(staged, non_blocking=True)
            else:
                target.copy_(staged.to(self._device, non_blocking=True))  # a cast on the way would be the CPU's
            if self._device.type == "cuda":
                event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # torch's own
                event.record()
                event.synchronize()  # the buffer may not change before; the other readers use the time
        finally:
            self._buffers.put(buffer)
