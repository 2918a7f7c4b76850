"""Random weights, drawn in bounded pieces by several threads and equal for equal seeds.

Every element type here starts its block with a 16-bit float: the block's scale in Q4_0 and Q8_0, the
weight itself in F16. So a block is random bits in which that float's exponent alone is fixed: sign and
mantissa stay random, the weights have mean 0, and their root mean square is that of a usual
initialisation, 1/sqrt(inputs), within a factor of sqrt(2). With norms of 1 and biases of 0, states
stay finite however many layers there are. The bits are those of SFC64, whose stream numpy keeps the same
over versions.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ollamalab.embedded.gguf_header import TensorRow, padding_bytes
from ollamalab.embedded.gguf_types import TENSOR_TYPES

_PIECE_BYTES = 16 * 1024 * 1024

#: Root mean square of a block's levels, its scale aside: q - 8 for 4-bit q, all 8-bit values, 1.
_LEVELS_RMS = {"q4_0": math.sqrt(21.5), "q8_0": math.sqrt(5461.5), "f16": 1.0}
#: ... and of a float with a fixed exponent and random mantissa, in units of its power of two.
_MANTISSA_RMS = math.sqrt(7 / 3)

_EXPONENT_BIAS = 15
#: In the upper byte of a 16-bit float: sign and upper mantissa, without the five bits of the exponent.
_NOT_EXPONENT = 0b1_00000_11

#: Element types that can be drawn, as a tag says them.
QUANTS = tuple(_LEVELS_RMS)

_Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of one tensor, in whole blocks.

    Attributes:
        row: The tensor.
        tensor: Its number in the file.
        part: Number of the piece in the tensor.
        size_bytes: Bytes of weights.
        padding_bytes: Zeros after them; the last piece of a tensor has some.
    """

    row: TensorRow
    tensor: int
    part: int
    size_bytes: int
    padding_bytes: int


def pieces(rows: Sequence[TensorRow], alignment: int) -> Iterator[Piece]:
    """Return the tensors' data in file order, in pieces of at most 16 MiB."""
    for tensor, row in enumerate(rows):
        block_bytes = TENSOR_TYPES[row.type_id][2]
        step = _PIECE_BYTES // block_bytes * block_bytes
        for part, start in enumerate(range(0, row.size_bytes, step)):
            size_bytes = min(step, row.size_bytes - start)
            is_last = start + size_bytes == row.size_bytes
            padding = padding_bytes(row.size_bytes, alignment) if is_last else 0
            yield Piece(row, tensor, part, size_bytes, padding)


def draw(piece: Piece, seed: int) -> _Bytes:
    """Return a piece's bytes: random weights for a matrix, ones for a norm, zeros for a bias."""
    size_bytes = piece.size_bytes + piece.padding_bytes
    if len(piece.row.shape) == 1:
        vector = np.zeros(size_bytes, np.uint8)
        if not piece.row.name.endswith(".bias"):
            vector[: piece.size_bytes].view(np.float32)[:] = 1.0
        return vector
    name, _, block_bytes = TENSOR_TYPES[piece.row.type_id]
    bits = np.random.SFC64(np.random.SeedSequence([seed, piece.tensor, piece.part]))
    drawn = bits.random_raw(-(-size_bytes // 8)).view(np.uint8)[:size_bytes]
    scale_high = drawn[: piece.size_bytes].reshape(-1, block_bytes)[:, 1]
    scale_high &= _NOT_EXPONENT
    scale_high |= _exponent(name.lower(), inputs=piece.row.shape[0]) << 2
    drawn[piece.size_bytes :] = 0
    return drawn


def draw_ahead(wanted: Iterable[Piece], seed: int, *, threads: int) -> Iterator[_Bytes]:
    """Return pieces in order while threads draw the next ones; numpy lets go of the GIL meanwhile.

    Args:
        wanted: What to draw.
        seed: Equal seeds give equal bytes, with any number of threads.
        threads: So many pieces, and two more, are in memory at once.
    """
    ahead: deque[Future[_Bytes]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="weights") as pool:
        try:
            for piece in wanted:
                ahead.append(pool.submit(draw, piece, seed))
                if len(ahead) > threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def _exponent(kind: str, *, inputs: int) -> int:
    """Return the biased exponent that gives weights a root mean square near 1/sqrt(inputs)."""
    scale = 1 / math.sqrt(inputs) / _LEVELS_RMS[kind] / _MANTISSA_RMS
    return max(1, round(math.log2(scale)) + _EXPONENT_BIAS)  # 0 would mean subnormal numbers
