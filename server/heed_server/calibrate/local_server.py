"""A server for one calibration, where none is running."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from heed_server.calibrate.errors import CalibrationError
from heed_server.measuring import servers
from heed_server.measuring.servers import ServerError, raised_signals


@contextmanager
def local_server(model: str, flags: Sequence[str]) -> Iterator[str]:
    """`heed serve` on a free loopback port until the block ends; gives its address.

    A SIGTERM or SIGHUP ends the block as well: it is raised in it as `SystemExit`.

    Raises:
        CalibrationError: it did not start; the end of its log is in the message.
    """
    with raised_signals(), tempfile.TemporaryDirectory(prefix="heed-") as folder:
        # Its session is its own: Ctrl-C is for this process, which then ends the server.
        server = servers.heed(model, flags, Path(folder) / "server.log")
        with ExitStack() as running:
            try:
                running.enter_context(server)
            except ServerError as error:
                raise CalibrationError(str(error)) from error
            yield server.url
