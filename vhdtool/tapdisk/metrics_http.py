"""The figures of metrics.py where Prometheus fetches them. Loaded only when they are asked for."""

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from vhdtool.errors import VhdtoolError
from vhdtool.tapdisk.listen import TcpPlace


class MetricsServer:
    """Answers GET /metrics until `stop`. Raises VhdtoolError when it cannot listen."""

    def __init__(self, place: TcpPlace, text: Callable[[], str]) -> None:
        class Handler(BaseHTTPRequestHandler):
            timeout = 10

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

        try:
            self._server = ThreadingHTTPServer((place.host, place.port), Handler)
        except (OSError, OverflowError) as error:
            raise VhdtoolError(f"{place}: cannot listen: {error}") from None
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(3600,), name="metrics", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        self._server.socket.close()
