"""What an engine is started with, and whether a running one will do.

A *load-time* option is fixed when a model is loaded: another value costs an unload and a load.
Sources: Ollama's ``llm/llama_server.go`` (flags) and ``server/sched.go`` (``needsReload``), v0.33.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Self

#: What Ollama means by "automatic" for ``num_batch``: chat models, and models that only embed.
AUTO_BATCH_TOKENS = 512
AUTO_EMBEDDING_BATCH_TOKENS = 2048

#: Tokens at the head of a context that survive its shift, unless a request says otherwise.
KEEP_TOKENS = 4


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """The load-time options of one model; None (and -1 GPU layers) leaves the choice to the engine.

    A chat model is loaded without ``embedding`` at first, exactly as Ollama does, because an engine
    that embeds computes the output layer for the entire prompt: more memory and slower prefill for
    nothing. Ask for ``embedding`` in every lease that is going to embed: the first such request
    reloads the model, and from then on one engine serves both.
    """

    num_ctx: int  #: tokens of context per slot
    num_parallel: int = 1  #: slots
    num_batch: int | None = None  #: tokens per forward pass
    num_gpu: int = -1  #: layers on GPUs; 0 = CPU only
    main_gpu: int | None = None  #: the one GPU to use
    use_mmap: bool | None = None  #: None = only where there is a GPU, as in Ollama
    num_thread: int | None = None  #: CPU threads
    shift: bool = True  #: a full context drops its middle and goes on, rather than stopping
    flash_attention: bool | None = None
    kv_cache_type: str = ""  #: "" is f16
    embedding: bool = False  #: needed for ``/v1/embeddings``

    def serves(self, wanted: LoadOptions) -> bool:
        """Whether an engine loaded with these options answers a request that wants others.

        Equal options do, with two exceptions: whoever leaves ``num_gpu`` open takes any, and an
        engine that embeds also chats.
        """
        if wanted.num_gpu < 0:
            wanted = replace(wanted, num_gpu=self.num_gpu)
        if self.embedding:
            wanted = replace(wanted, embedding=True)
        return self == wanted

    @property
    def batch_tokens(self) -> int:
        """Tokens per forward pass; a text to embed has to fit into one."""
        if not self.embedding:
            return self.num_batch or AUTO_BATCH_TOKENS
        return min(self.num_batch or AUTO_EMBEDDING_BATCH_TOKENS, self.num_ctx * self.num_parallel)


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Everything an engine process is told.

    Attributes:
        model_path: The GGUF file.
        load: Its load-time options.
        mean_pooling: Embeddings are the mean over tokens: for models that name no pooling of their own.
        llama_server: A ``llama-server`` binary to run; None for the built-in llama.cpp.
    """

    model_path: str
    load: LoadOptions
    mean_pooling: bool = False
    llama_server: str | None = None

    def to_json(self) -> str:
        """Return it as one line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return what ``to_json`` wrote."""
        fields = json.loads(text)
        return cls(**{**fields, "load": LoadOptions(**fields["load"])})


def llama_server_command(launch: Launch, *, port: int) -> list[str]:
    """Return the command line of a ``llama-server`` binary: the flags that Ollama gives it.

    Three differences. Log lines keep their prefix, whose letter says which ones are errors.
    ``--metrics`` is on, for the lab. An engine that embeds and whose model names no pooling gets the
    mean, where Ollama has none and refuses with 501.

    Raises:
        ValueError: The launch names no binary.
    """
    if launch.llama_server is None:
        raise ValueError("this launch names no llama-server binary")
    load = launch.load
    batch = str(load.batch_tokens)
    flash = {None: "auto", True: "on", False: "off"}[load.flash_attention]
    command = [launch.llama_server, "--model", launch.model_path]
    command += ["--host", "127.0.0.1", "--port", str(port), "--no-webui", "--offline", "--metrics"]
    command += ["-c", str(load.num_ctx * load.num_parallel), "-np", str(load.num_parallel)]
    command += ["--log-verbosity", "4", "--flash-attn", flash, "-b", batch, "-ub", batch]
    if load.embedding:
        command += ["--embedding"]
    if launch.mean_pooling:
        command += ["--pooling", "mean"]
    if load.use_mmap is False:
        command += ["--load-mode", "none"]
    if load.kv_cache_type:
        command += ["--cache-type-k", load.kv_cache_type, "--cache-type-v", load.kv_cache_type]
    if load.num_gpu >= 0:
        command += ["-ngl", str(load.num_gpu)]
    if load.main_gpu is not None:
        command += ["--split-mode", "none", "--main-gpu", str(load.main_gpu)]
    if load.num_thread:
        command += ["-t", str(load.num_thread)]
    if load.shift:
        command += ["--context-shift", "--keep", str(KEEP_TOKENS)]
    return command
