"""The program that an engine process runs: llama.cpp with its own HTTP server.

``python -m ollamalab.embedded.engine_process LAUNCH``. It writes one line to standard output, a
JSON object with ``url`` and ``pid``, and its log to standard error, and it serves until it is
killed. With a ``llama-server`` binary that line comes first, since the program then becomes that
binary; the built-in engine writes it when the model is loaded. ``GET /health`` tells for both.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from typing import Any

from ollamalab.embedded.load import KEEP_TOKENS, Launch, llama_server_command

_HOST = "127.0.0.1"
_LOG_LEVEL = 4  # the least that names buffer sizes; Ollama's choice too


def main(launch: Launch) -> None:
    """Serve one model until killed."""
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # llama.cpp may print; standard output is for the report alone

    def tell(url: str) -> None:
        with report:
            report.write(json.dumps({"url": url, "pid": os.getpid()}) + "\n")

    if launch.llama_server is not None:
        port = _free_port()
        command = llama_server_command(launch, port=port)
        tell(f"http://{_HOST}:{port}")
        try:
            os.execv(command[0], command)
        except OSError as error:
            sys.exit(f"error: cannot run {command[0]}: {error.strerror}")
    try:
        import xllamacpp
    except ImportError as error:
        sys.exit(
            f"error: the built-in engine is not usable ({error}); "
            f"pip install 'ollamalab[embedded]', or give a binary with --llama-server"
        )
    server = xllamacpp.Server(_parameters(launch))  # returns when the model is loaded
    tell(server.listening_address)
    signal.pause()


def _parameters(launch: Launch) -> Any:
    """Return the settings of the built-in engine: what ``llama_server_command`` says as flags."""
    import xllamacpp

    load = launch.load
    parameters = xllamacpp.CommonParams()
    parameters.model.path = launch.model_path
    parameters.hostnames = [_HOST]
    parameters.port = 0
    parameters.offline = True
    parameters.ui = False
    parameters.endpoint_slots = True
    parameters.endpoint_metrics = True
    parameters.verbosity = _LOG_LEVEL
    parameters.n_ctx = load.num_ctx * load.num_parallel
    parameters.n_parallel = load.num_parallel
    parameters.n_batch = parameters.n_ubatch = load.batch_tokens
    parameters.flash_attn_type = {
        None: xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_AUTO,
        True: xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED,
        False: xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED,
    }[load.flash_attention]
    parameters.embedding = load.embedding
    if launch.mean_pooling:
        parameters.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    has_gpu = _has_gpu(xllamacpp)
    # Fitting a model into GPUs reads it once more; without one nothing is chosen, at two fifths of a load.
    parameters.fit_params = has_gpu
    if not (has_gpu if load.use_mmap is None else load.use_mmap):
        parameters.load_mode = xllamacpp.llama_load_mode.LLAMA_LOAD_MODE_NONE
    if load.kv_cache_type:
        kind = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{load.kv_cache_type.upper()}")
        parameters.cache_type_k = parameters.cache_type_v = kind
    if load.num_gpu >= 0:
        parameters.n_gpu_layers = load.num_gpu
    if load.main_gpu is not None:
        parameters.split_mode = xllamacpp.llama_split_mode.LLAMA_SPLIT_MODE_NONE
        parameters.main_gpu = load.main_gpu
    if load.num_thread:
        parameters.cpuparams.n_threads = load.num_thread
    if load.shift:
        parameters.ctx_shift = True
        parameters.n_keep = KEEP_TOKENS
    return parameters


def _has_gpu(xllamacpp: Any) -> bool:
    kinds = xllamacpp.ggml_backend_dev_type
    gpus = (kinds.GGML_BACKEND_DEVICE_TYPE_GPU, kinds.GGML_BACKEND_DEVICE_TYPE_IGPU)
    return any(device["type"] in gpus for device in xllamacpp.get_device_info())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    main(Launch.from_json(sys.argv[1]))
