"""Shapes of models: how many layers, how wide, and so which tensors a file of that size has.

The dimensions are those of Qwen2.5 (``config.json`` of its published models; Qwen2.5 technical
report, arXiv 2412.15115), which llama.cpp and Ollama know as architecture ``qwen2``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ollamalab.embedded.gguf_header import FieldValue
from ollamalab.errors import SettingsError

#: llama.cpp's name of the architecture.
ARCHITECTURE = "qwen2"

#: The matrices from a token to its state and from a state to the scores of the next token.
EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Dimensions of a decoder with grouped-query attention and a gated feed-forward layer.

    Attributes:
        name: As ``--shape`` takes it: "7b".
        published_parameters: Weights that the model of this shape is published to have.
        layers: Number of blocks.
        width: Elements of a token's state.
        feed_forward: Elements of the inner layer of a block.
        heads: Query heads; a head is ``width / heads`` elements.
        kv_heads: Key and value heads, each shared by some query heads.
        vocabulary: Tokens, padding included.
        context_length: Tokens that it is said to be trained for.
    """

    name: str
    published_parameters: float
    layers: int
    width: int
    feed_forward: int
    heads: int
    kv_heads: int
    vocabulary: int = 152_064
    context_length: int = 32_768

    @property
    def parameters(self) -> int:
        """Weights of all tensors together."""
        return sum(math.prod(shape) for _, shape in self.tensors())

    def tensors(self) -> list[tuple[str, tuple[int, ...]]]:
        """Return name and shape of every tensor, the contiguous dimension first, in file order."""
        width, inner = self.width, self.feed_forward
        kv_width = width // self.heads * self.kv_heads
        block: list[tuple[str, tuple[int, ...]]] = [
            ("attn_norm.weight", (width,)),
            ("attn_q.weight", (width, width)),
            ("attn_q.bias", (width,)),
            ("attn_k.weight", (width, kv_width)),
            ("attn_k.bias", (kv_width,)),
            ("attn_v.weight", (width, kv_width)),
            ("attn_v.bias", (kv_width,)),
            ("attn_output.weight", (width, width)),
            ("ffn_norm.weight", (width,)),
            ("ffn_gate.weight", (width, inner)),
            ("ffn_up.weight", (width, inner)),
            ("ffn_down.weight", (inner, width)),
        ]
        by_token = (width, self.vocabulary)
        return [
            (EMBEDDING, by_token),
            *((f"blk.{layer}.{name}", shape) for layer in range(self.layers) for name, shape in block),
            ("output_norm.weight", (width,)),
            (OUTPUT, by_token),
        ]

    def fields(self) -> dict[str, FieldValue]:
        """Return the metadata that describes the shape to llama.cpp."""
        own: dict[str, FieldValue] = {
            "block_count": self.layers,
            "context_length": self.context_length,
            "embedding_length": self.width,
            "feed_forward_length": self.feed_forward,
            "attention.head_count": self.heads,
            "attention.head_count_kv": self.kv_heads,
            "attention.layer_norm_rms_epsilon": 1e-6,
            "rope.freq_base": 1e6,
        }
        return {
            "general.architecture": ARCHITECTURE,
            "general.type": "model",
            **{f"{ARCHITECTURE}.{key}": value for key, value in own.items()},
        }


_ALL = (
    Shape(
        name="tiny",
        published_parameters=35.1e6,
        layers=2,
        width=256,
        feed_forward=768,
        heads=4,
        kv_heads=2,
        vocabulary=65_536,
        context_length=8192,
    ),
    Shape(
        name="7b",
        published_parameters=7.61e9,
        layers=28,
        width=3584,
        feed_forward=18_944,
        heads=28,
        kv_heads=4,
    ),
    Shape(
        name="14b",
        published_parameters=14.7e9,
        layers=48,
        width=5120,
        feed_forward=13_824,
        heads=40,
        kv_heads=8,
    ),
    Shape(
        name="32b",
        published_parameters=32.5e9,
        layers=64,
        width=5120,
        feed_forward=27_648,
        heads=40,
        kv_heads=8,
    ),
    Shape(
        name="72b",
        published_parameters=72.7e9,
        layers=80,
        width=8192,
        feed_forward=29_568,
        heads=64,
        kv_heads=8,
    ),
)

#: Name to shape, the smallest first; "tiny" is nobody's model, for tries and tests.
SHAPES = {shape.name: shape for shape in _ALL}


def find_shape(name: str) -> Shape:
    """Return the shape of this name, in any case.

    Raises:
        SettingsError: There is none.
    """
    try:
        return SHAPES[name.lower()]
    except KeyError:
        raise SettingsError(f"there is no shape {name!r}; known are {', '.join(SHAPES)}") from None
