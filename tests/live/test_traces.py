"""Spans of a server that writes traces, as a collector gets them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from live_server import FLAGS, serving
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

pytestmark = pytest.mark.slow

Attributes = dict[str, Any]
SOON = {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf", "OTEL_BSP_SCHEDULE_DELAY": "200"}
PATIENCE = 60
"""Seconds that an exporter may take on a busy machine."""


@contextmanager
def collecting() -> Iterator[tuple[str, list[Attributes]]]:
    """Where a collector listens, and the attributes of the requests' spans that it has got so far."""
    found: list[Attributes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent = ExportTraceServiceRequest()
            sent.ParseFromString(self.rfile.read(int(self.headers["Content-Length"])))
            for scope in (scope for each in sent.resource_spans for scope in each.scope_spans):
                spans = [span for span in scope.spans if span.name == "llm_request"]
                found.extend({pair.key: value(pair.value) for pair in s.attributes} for s in spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *told: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1/traces", found
    server.shutdown()


def value(of: Any) -> Any:
    kind = of.WhichOneof("value")
    if kind == "array_value":
        return [value(each) for each in of.array_value.values]
    return getattr(of, kind)


def test_spans_say_what_was_edited_and_stay_vllms_own_where_nothing_was(tmp_path: Path) -> None:
    with collecting() as (endpoint, found):
        flags = [*FLAGS, "--otlp-traces-endpoint", endpoint]
        with serving(tmp_path / "server.log", flags, environment=SOON) as server:
            prompt = server.prompt(40)
            server.complete(prompt, max_tokens=5)
            edits = [{"method": "zerotuning", "gamma": 2, "layers": [1, 2]}, {"method": "locore"}]
            server.complete(prompt, edits, max_tokens=5, n=2, temperature=1, seed=1)
            deadline = time.monotonic() + PATIENCE
            while len(found) < 3 and time.monotonic() < deadline:
                time.sleep(0.2)
    plain, *edited = sorted(found, key=len)
    assert not any(name.startswith("heed.") for name in plain)
    assert len(edited) == 2
    for span in edited:
        assert span["gen_ai.usage.completion_tokens"] == 5
        assert span["heed.methods"] == ["zerotuning", "locore"]
        assert span["heed.statuses"] == ["applied", "applied"]
        assert span["heed.head_counts"] == [12, 36] and span["heed.cache"] == "salted"
        assert span["heed.edited_generated_tokens"] == [8, 8]
        first, none = span["heed.edited_prompt_tokens"]
        assert 40 <= first <= 80 and none == 0
