"""The server that items are put to: a running one, or one for the time being."""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from heed_server.measuring import servers
from heed_server.measuring.servers import ServerError, raised_signals
from heed_server.scoring.errors import ScoringError


@contextmanager
def server_at(url: str | None, model: str, flags: Sequence[str]) -> Iterator[str]:
    """The address `url`, or that of a `local_server` of `model` with these flags where there is none."""
    if url is not None:
        yield url
        return
    sys.stderr.write(f"starting a server of {model}\n")
    with local_server(model, flags) as local:
        yield local


@contextmanager
def local_server(model: str, flags: Sequence[str]) -> Iterator[str]:
    """`heed serve` on a free loopback port until the block ends; gives its address.

    A SIGTERM or SIGHUP ends the block as well: it is raised in it as `SystemExit`.

    Raises:
        ScoringError: it did not start; the end of its log is in the message.
    """
    with raised_signals(), tempfile.TemporaryDirectory(prefix="heed-") as folder:
        # Its session is its own: Ctrl-C is for this process, which then ends the server.
        server = servers.heed(model, flags, Path(folder) / "server.log")
        with ExitStack() as running:
            try:
                running.enter_context(server)
            except ServerError as error:
                raise ScoringError(str(error)) from error
            yield server.url
