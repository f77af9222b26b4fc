"""The HTTP server that Prometheus asks for metrics. Imported only when it is needed."""

from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any

from vhdtool.nbd.accept import Acceptor, Peer
from vhdtool.nbd.metrics import Latency
from vhdtool.nbd.sockets import TcpAddress, keep_alive, listen_tcp
from vhdtool.tapdisk.states import State

MOST_CLIENTS = 16
TIMEOUT = 10.0
"""Seconds that a client has to send its request and to receive the reply."""


class MetricsServer:
    """Serves GET /metrics until `stop`. Raises VhdtoolError when it cannot listen."""

    def __init__(self, address: TcpAddress, text: Callable[[], str]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path.partition("?")[0] not in ("/", "/metrics"):
                    self.send_error(404)
                    return
                body = text().encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Logs no scrapes."""

        def serve(peer: Peer) -> None:
            keep_alive(peer.socket)
            # One request a connection: it is never settled, so the deadline covers all of it.
            Handler(peer.socket, peer.socket.getpeername(), self)  # type: ignore[arg-type]

        listener = listen_tcp(address)
        self.port: int = listener.getsockname()[1]
        self._acceptor = Acceptor(listener, serve, "metrics", MOST_CLIENTS, TIMEOUT)

    @property
    def clients(self) -> int:
        """How many are connected."""
        return self._acceptor.clients

    def stop(self) -> None:
        self._acceptor.stop()


def prometheus(status: dict[str, Any], latency: Latency) -> str:
    """Returns a disk's status and latencies in Prometheus' text format."""
    lines = []
    for name, kind, value in (
        ("vhdtool_read_bytes_total", "counter", status["read_bytes"]),
        ("vhdtool_written_bytes_total", "counter", status["written_bytes"]),
        ("vhdtool_allocations_total", "counter", status["allocations"]),
        ("vhdtool_clients", "gauge", status["clients"]),
        ("vhdtool_disk_bytes", "gauge", status["size"]),
        ("vhdtool_lease_held", "gauge", int(status["lease"])),
        ("vhdtool_epoch", "gauge", status["epoch"] or 0),
    ):
        lines += [f"# TYPE {name} {kind}", f"{name} {value}"]
    lines.append("# TYPE vhdtool_requests_total counter")
    for kind, count in status["requests"].items():
        lines.append(f'vhdtool_requests_total{{kind="{kind}"}} {count}')
    lines.append("# TYPE vhdtool_state gauge")
    lines += [f'vhdtool_state{{state="{s}"}} {int(s == status["state"])}' for s in State]
    lines.append("# TYPE vhdtool_request_seconds histogram")
    lines += latency.lines("vhdtool_request_seconds")
    return "\n".join(lines) + "\n"
