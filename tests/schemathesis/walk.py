"""Ask every route of a running Heed for what its OpenAPI document allows, and for what it does not.

    python -m venv ENV && ENV/bin/pip install -r tests/schemathesis/requirements.txt
    python tests/schemathesis/walk.py --schemathesis ENV/bin/schemathesis [--examples 50]

Starts `heed serve` with the bundled model and lets schemathesis walk the document: boundary values, and bodies
made at random, valid and not. The exit status is 1 where an answer is a 5xx, or the server is not well when
the walk is over. Not part of the test suite: schemathesis has an environment of its own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "live"))
from live_server import FLAGS, serving

# It rescales the engine, which one without elastic parallelism answers with a 500 of vLLM's own.
LEFT_OUT = ("/scale_elastic_ep",)


def main() -> int:
    parser = argparse.ArgumentParser(description="Walk the served OpenAPI document.")
    parser.add_argument("--schemathesis", required=True, metavar="PROGRAM")
    parser.add_argument("--examples", type=int, default=50, help="for each route and kind")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        flags = [*FLAGS, "--allow-privileged-interventions"]
        with serving(Path(folder) / "server.log", flags) as server:
            command = [options.schemathesis, "run", f"{server.url}/openapi.json"]
            command += ["--checks", "not_a_server_error", "--mode", "all", "--seed", "1"]
            command += ["--max-examples", str(options.examples), "--request-timeout", "60"]
            for path in LEFT_OUT:
                command += ["--exclude-path", path]
            status = subprocess.run(command, cwd=folder, check=False).returncode
            well = server.client.get("/health").status_code == 200
            answered = server.raw_completion("Once").status_code == 200
    return 0 if status == 0 and well and answered else 1


if __name__ == "__main__":
    sys.exit(main())
