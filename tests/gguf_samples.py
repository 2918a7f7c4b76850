"""Small GGUF files for tests, written by the reference writer of the ``gguf`` package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np

TOKENS = ["<s>", "</s>", "a", "ä", "", "long token " * 10]

#: As chat templates of tool-using models look, in short.
TOOL_TEMPLATE = (
    "{% if tools %}<tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}</tools>{% endif %}"
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
)


def write_small_gguf(
    path: Path,
    *,
    architecture: str = "llama",
    template: str | None = None,
    numbers: Mapping[str, int] | None = None,
    seed: int = 0,
) -> Path:
    """Write a file with fields of every type, an F32 norm, Q8_0, Q4_1 and F16 matrices; return its path.

    Args:
        path: Where to.
        architecture: ``general.architecture``.
        template: ``tokenizer.chat_template``; None for none.
        numbers: More fields, written as u32.
        seed: Of the weights, so that two files can differ.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    kinds = gguf.GGMLQuantizationType
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_string("general.name", "small")
    writer.add_uint32("general.file_type", 3)
    writer.add_uint32(f"{architecture}.context_length", 2048)
    writer.add_uint32(f"{architecture}.embedding_length", 64)
    writer.add_float32(f"{architecture}.rope.freq_base", 10000.0)
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    writer.add_uint8("test.u8", 200)
    writer.add_int8("test.i8", -5)
    writer.add_uint16("test.u16", 60_000)
    writer.add_int16("test.i16", -30_000)
    writer.add_int32("test.i32", -2_000_000_000)
    writer.add_uint64("test.u64", 2**63)
    writer.add_int64("test.i64", -(2**62))
    writer.add_float64("test.f64", 0.1)
    writer.add_array("tokenizer.ggml.tokens", TOKENS)
    writer.add_array("tokenizer.ggml.token_type", [3, 3, 1, 1, 1, 1])
    writer.add_array("test.flags", [True, False])
    writer.add_uint32("tokenizer.ggml.bos_token_id", 0)
    writer.add_uint32("tokenizer.ggml.eos_token_id", 1)
    for key, value in (numbers or {}).items():
        writer.add_uint32(key, value)
    if template is not None:
        writer.add_chat_template(template)
    for name, kind in (("token_embd.weight", kinds.Q8_0), ("blk.0.attn_q.weight", kinds.Q4_1)):
        weights = random.normal(size=(32, 64)).astype(np.float32)
        writer.add_tensor(name, gguf.quants.quantize(weights, kind), raw_dtype=kind)
    writer.add_tensor("blk.0.attn_norm.weight", random.normal(size=64).astype(np.float32))
    writer.add_tensor("blk.0.odd.weight", random.normal(size=(3, 33)).astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
