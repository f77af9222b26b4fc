"""The figures of metrics.py where Prometheus fetches them. Loaded only when they are asked for."""

from collections.abc import Callable
from http.server import BaseHTTPRequestHandler

from vhdtool.nbd.accept import Acceptor, Peer
from vhdtool.nbd.sockets import TcpAddress, keep_alive, listen_tcp

MOST_CLIENTS = 16
PATIENCE = 10.0
"""Seconds that a client has to ask, and to take what it asked for."""


class MetricsServer:
    """Answers GET /metrics until `stop`. Raises VhdtoolError when it cannot listen."""

    def __init__(self, place: TcpAddress, text: Callable[[], str]) -> None:
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
                """A scrape is no event."""

        def serve(peer: Peer) -> None:
            keep_alive(peer.socket)
            # It answers one request and ends, so it is never settled: the whole has a deadline.
            Handler(peer.socket, peer.socket.getpeername(), self)  # type: ignore[arg-type]

        listener = listen_tcp(place)
        self.port: int = listener.getsockname()[1]
        self._acceptor = Acceptor(listener, serve, "metrics", MOST_CLIENTS, PATIENCE)

    def stop(self) -> None:
        self._acceptor.stop()
