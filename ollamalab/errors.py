"""Every exception that ollamalab raises.

::

    OllamaLabError
    ├── SettingsError          bad input: the caller can mend it (exit status 2)
    │   └── OutOfRange             a setting may not have this value
    ├── ModelError             a model file is corrupt or cannot be had
    │   └── ModelNotFound          no file has this model name
    ├── EngineError            a llama.cpp process did not start or died
    ├── QueueFull              as many wait already as may wait
    │   └── ShareExceeded          as many of this client wait already as may wait of one
    ├── StoreError             kept answers cannot be removed
    ├── WaitTimeout            waited in our queue, or past its deadline, without being served
    ├── RequestRefused         our server answers a request with an error status
    ├── TargetError            a server to measure cannot be started, reached or used
    ├── RunError               a batch run or a saved run cannot be used as asked
    ├── SamplerUnavailable     this machine has nothing such a sampler could read
    └── UpstreamError          a server was asked and no good answer came
        ├── UpstreamUnavailable    refused, unreachable, name not found
        │   └── NoUpstream             none of those that might have answered could be reached
        ├── UpstreamTimeout        no answer in time
        ├── UpstreamRejected       answered with a status of 300 or more
        └── BadReply               an answer that is not Ollama's protocol

A message says what, where, the value, and the next step. An experiment's failed request is a
record with an outcome, not an exception; a broken set-up is an exception.
"""


class OllamaLabError(Exception):
    """Base of all our exceptions; never raised itself."""


class NotRun(OllamaLabError):
    """An experiment has nothing to measure on its target; the message says why, and what it wants instead.

    A batch that meets it goes on and calls the experiment *not run*, not failed.
    """


class SettingsError(OllamaLabError):
    """A setting, option or parameter is not usable; the message names it and its value."""


class OutOfRange(SettingsError):
    """A setting may not have this value.

    Whoever read the value from somewhere can say so in the words of that place.

    Args:
        name: Of the setting, as its class has it.
        rule: What it must be, and what it is: "must be > 0, got -1".
    """

    def __init__(self, name: str, rule: str) -> None:
        super().__init__(f"{name} {rule}")
        self.name = name
        self.rule = rule


class ModelError(OllamaLabError):
    """A model is unknown, its file is corrupt, or it cannot be fetched."""


class ModelNotFound(ModelError):
    """No model file has this name."""


class EngineError(OllamaLabError):
    """A llama.cpp process did not become ready, or went away."""


class QueueFull(OllamaLabError):
    """As many requests wait already as may wait; this one is refused at once.

    Attributes:
        retry_after_s: When there will probably be room; None if that cannot be told.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ShareExceeded(QueueFull):
    """One client has as many requests waiting as one client may have."""


class StoreError(OllamaLabError):
    """The cache's answers cannot be removed as asked: its file or server fails."""


class WaitTimeout(OllamaLabError):
    """A request waited too long in our queue, or its deadline passed before it was served."""


class RequestRefused(OllamaLabError):
    """A request to our server cannot be answered; the message is what its client reads.

    Attributes:
        status: HTTP status of the answer.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class TargetError(OllamaLabError):
    """A target server cannot be started, reached or changed as asked."""


class RunError(OllamaLabError):
    """A run folder is missing, unfinished, damaged, or from a newer version."""


class SamplerUnavailable(OllamaLabError):
    """The machine has nothing that this sampler could read; the message is the reason to show."""


class UpstreamError(OllamaLabError):
    """A server was asked and gave no good answer.

    Attributes:
        url: The server that was asked.
    """

    def __init__(self, message: str, *, url: str = "") -> None:
        super().__init__(message)
        self.url = url


class UpstreamUnavailable(UpstreamError):
    """The connection could not be made: refused, unreachable, or the name is not known."""


class NoUpstream(UpstreamUnavailable):
    """No upstream could be reached that might have answered.

    Attributes:
        retry_after_s: When it will be known whether one can be again; None if that cannot be told.
    """

    def __init__(self, message: str, *, url: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message, url=url)
        self.retry_after_s = retry_after_s


class UpstreamTimeout(UpstreamError):
    """The server did not answer in time.

    Attributes:
        after_s: Seconds waited.
    """

    def __init__(self, message: str, *, url: str = "", after_s: float | None = None) -> None:
        super().__init__(message, url=url)
        self.after_s = after_s


class UpstreamRejected(UpstreamError):
    """The server answered, and said no.

    Attributes:
        status: HTTP status.
    """

    def __init__(self, message: str, *, url: str = "", status: int) -> None:
        super().__init__(message, url=url)
        self.status = status


class BadReply(UpstreamError):
    """The answer broke off or is not what Ollama's protocol allows here."""
