"""The NBD protocol: a server with TLS, its fast path in C, and a client.

tls/         TLS for NBD connections: certificates and pre-shared keys
accept       The accept loop of every listening socket: NBD, control, tap-ctl
             and metrics
backend      A disk, as the server and the fast path see it
buffers      Memory for a client's requests and replies, with a limit for all
             clients together
client       A storage behind an NBD server on a Unix socket
connection   One client of the server: negotiation, then its requests by the
             fast or the plain path
fast_path    Hands a client's plain reads and writes to the fast path in C
             (csrc/, _fast_path.pyi)
metrics      What clients do, in numbers: counters, and a histogram of
             latencies
negotiation  The options of a handshake, without sockets
plain_path   Receives one client's requests and serves them in Python
protocol     Requests, replies and options as bytes, without sockets
requests     What one request does to a backend, and the bytes of its reply
server       Where clients connect, and how many are served at once
sockets      Listening sockets: Unix ones that only their owner reaches, TCP
             ones on a named address
"""
