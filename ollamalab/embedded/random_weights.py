"""Random weights as fast as a disk takes them: a pool is drawn once and written again and again.

*Size.* Every element type here starts its block with a 16-bit float: the block's scale in Q4_0 and Q8_0,
the weight itself in F16. So a block is random bits in which that float's exponent alone is fixed: sign and
mantissa stay random, the weights have mean 0, and their root mean square is that of a usual
initialisation, 1/sqrt(inputs), within a factor of sqrt(2). With norms of 1 and biases of 0, states
stay finite however many layers there are.

*Speed.* Drawing all weights would cost more than writing them. A tensor therefore goes round a *pool* of
blocks, from a place of its own. The pool's length is prime, so a row never begins twice at the same place
before every place had its turn: its rows all differ. What is equal lies 18 MB or more apart and at no disk
block's boundary, so no file system makes it smaller.

*Answers.* Random layers drift into repeating one token, or say bytes that are no text; Ollama ends an
answer after 30 of either. So the embedding outweighs what the layers add to it, and the output matrix
leads from every token to one of those that were made up for the vocabulary: they come in turn, as many as
are asked for, at any temperature, and are plain text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np

from ollamalab.embedded.gguf_header import TensorRow, padding_bytes
from ollamalab.embedded.gguf_types import TENSOR_TYPES
from ollamalab.embedded.shapes import EMBEDDING, OUTPUT

#: Root mean square of a block's levels, its scale aside: q - 8 for 4-bit q, all 8-bit values, 1.
_LEVELS_RMS = {"q4_0": math.sqrt(21.5), "q8_0": math.sqrt(5461.5), "f16": 1.0}
#: ... and of a float with a fixed exponent and random mantissa, in units of its power of two.
_MANTISSA_RMS = math.sqrt(7 / 3)

#: Element types that can be drawn, as a tag says them.
QUANTS = tuple(_LEVELS_RMS)

#: A 16-bit float is a sign, five bits of exponent and ten of mantissa.
_MANTISSA_BITS, _EXPONENT_BIAS = 10, 15
_NOT_EXPONENT = 0b1_00000_1111111111

#: Blocks of a pool, a prime number: 18 MB of Q4_0, 34 MB of Q8_0; F16 counts 16 weights as a block.
_POOL_BLOCKS = 1_000_003
_F16_BLOCK_BYTES = 32

#: Root mean square of the embedding: 80 layers add states of about 10 to it.
_EMBEDDING_RMS = 16.0
#: From a made-up token to the next one; prime, so that all have their turn.
_TOKEN_STEP = 1009

_MOST_BYTES_AT_ONCE = 8 * 1024 * 1024


def weights(rows: Sequence[TensorRow], seed: int, alignment: int, *, made_up: int) -> Iterator[memoryview]:
    """Return the data of tensors in file order, padding included, in pieces of at most 8 MiB.

    Args:
        rows: Matrices become random, norms one, biases (by their names) zero.
        seed: Equal seeds give equal bytes.
        alignment: The data of each tensor is padded to a multiple of so many bytes.
        made_up: How many tokens at the end of the vocabulary were made up for it.
    """

    @cache
    def pool(kind: str, exponent: int) -> memoryview:
        return draw_pool(kind, exponent, seed)

    for number, row in enumerate(rows):
        if len(row.shape) == 1:
            value = 0.0 if row.name.endswith(".bias") else 1.0
            yield np.full(row.shape, value, np.float32).view(np.uint8).data
        else:
            kind = TENSOR_TYPES[row.type_id][0].lower()
            rms = _EMBEDDING_RMS if row.name == EMBEDDING else 1 / math.sqrt(row.shape[0])
            drawn = pool(kind, scale_exponent(kind, rms))
            start = _place(seed, 0 if row.name == OUTPUT else number) * _block_bytes(kind)
            row_bytes = row.size_bytes // row.shape[1]
            for first, count in _stretches(row, made_up):
                yield from _round(drawn, start + first * row_bytes, count * row_bytes)
        yield memoryview(bytes(padding_bytes(row.size_bytes, alignment)))


def _stretches(row: TensorRow, made_up: int) -> list[tuple[int, int]]:
    """Return which rows of a pool a matrix is made of, counted from its place: first row and how many.

    The embedding gives other tokens the states of made-up ones. The output matrix gives made-up token
    k + 1009 the row of state k, and other tokens rows that are no state: from half a pool away.
    """
    rows = row.shape[1]
    others = rows - made_up
    if row.name == EMBEDDING:
        repeats = [(0, min(made_up, others - begun)) for begun in range(0, others, made_up)]
        return [*repeats, (0, made_up)]
    if row.name == OUTPUT:
        return [(_POOL_BLOCKS // 2, others), (made_up - _TOKEN_STEP, _TOKEN_STEP), (0, made_up - _TOKEN_STEP)]
    return [(0, rows)]


def draw_pool(kind: str, exponent: int, seed: int) -> memoryview:
    """Return a pool of random blocks.

    Args:
        kind: One of ``QUANTS``.
        exponent: Of its 16-bit floats, biased; pools that differ in it alone are multiples of each other.
        seed: Equal seeds give equal bytes: the stream of SFC64 is the same in all versions of numpy.
    """
    block_bytes = _block_bytes(kind)
    size_bytes = _POOL_BLOCKS * block_bytes
    bits = np.random.SFC64(np.random.SeedSequence([seed, QUANTS.index(kind)]))
    drawn = bits.random_raw(-(-size_bytes // 8)).view("<u2")[: size_bytes // 2]
    floats = drawn if kind == "f16" else drawn[:: block_bytes // 2]
    floats &= _NOT_EXPONENT
    floats |= exponent << _MANTISSA_BITS
    return drawn.view(np.uint8).data


def scale_exponent(kind: str, rms: float) -> int:
    """Return the biased exponent that gives weights about this root mean square."""
    scale = rms / _LEVELS_RMS[kind] / _MANTISSA_RMS
    return max(1, round(math.log2(scale)) + _EXPONENT_BIAS)  # 0 would mean subnormal numbers


def _place(seed: int, number: int) -> int:
    """Return the block of a pool at which a tensor begins."""
    (drawn,) = np.random.SeedSequence([seed, number]).generate_state(1).tolist()
    return int(drawn) % _POOL_BLOCKS


def _block_bytes(kind: str) -> int:
    if kind == "f16":
        return _F16_BLOCK_BYTES
    return next(size for name, _, size in TENSOR_TYPES.values() if name.lower() == kind)


def _round(pool: memoryview, start: int, size_bytes: int) -> Iterator[memoryview]:
    """Return so many bytes from a place in a pool on, beginning again at its end."""
    start %= len(pool)
    while size_bytes:
        piece = pool[start : start + min(size_bytes, _MOST_BYTES_AT_ONCE)]
        yield piece
        size_bytes -= len(piece)
        start = (start + len(piece)) % len(pool)
