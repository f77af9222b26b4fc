"""The processes around `vhdtool serve`: a command that it runs, what has started it, Prometheus.

command       The command of `serve --run`, whose end is the server's end
manager       Sockets that systemd passes, notifications, the pid file
metrics_http  The HTTP server that Prometheus asks for metrics
"""
