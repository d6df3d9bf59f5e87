"""What the server allows: limits of a request, of the queue, of connections and times, and who may ask."""

import ipaddress
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Limits:
    """Limits of one request and of all together. Sizes are bytes, times seconds."""

    body: int = 1 << 20  # of a request
    prompts: int = 256  # texts in one request, of all routes that take lists
    sequences: int = 64  # texts that one request may generate: prompts x n (or best_of)
    tokens: int | None = None  # to generate in each text; None: as many as the context has room for
    logprobs: int = 100  # alternatives at each token
    body_seconds: float = 30.0  # to send a request's body
    idle_seconds: float = 75.0  # of a connection without a request, until its next one has arrived with its head
    write_seconds: float = 10.0  # that a response may wait for a client that does not read
    request_seconds: float = 600.0  # from the request's arrival to the end of its answer
    connections: int = 512


@dataclass(frozen=True)
class Settings:
    """Who may ask, and how the server answers.

    With `keys` each request needs one of them, except for `/health`. `hosts` are names by which the server may be
    addressed, in addition to its own address.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    keys: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    allow_grammar: bool = False
    shutdown_seconds: float = 10.0  # that requests in progress have to end
    limits: Limits = field(default_factory=Limits)

    @property
    def is_loopback(self) -> bool:
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine reach that address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
