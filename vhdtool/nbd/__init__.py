"""The NBD protocol: a client, a server with TLS, and the fast path in C for plain reads and writes.

tls/               TLS for NBD connections: certificates, and keys that
                   both sides share
accept             The accept loop of every listening socket: NBD,
                   control, tap-ctl and metrics
backend            What the fast path needs of a disk, and a disk of the
                   fast path
buffers            Memory for a client's requests and replies, with a
                   limit for all clients together
client             A storage behind an NBD server on a Unix socket: the
                   client's half of the protocol
connection         One client of the NBD server: negotiation, then its
                   requests in order
fast_path          Serves a client's plain reads and writes by the fast
                   path in C (csrc/), and the others in Python
metrics            What a disk does, in numbers: Prometheus' text format
                   over HTTP, and a dump for people
negotiation        NBD's negotiation, without sockets: an option goes in,
                   the bytes of its answer come out
protocol           The NBD protocol without sockets: bytes to values and
                   back
requests           What the NBD server answers to one request, over a
                   backend that says what it gives
server             The NBD server: where it listens, and how many clients
                   it serves at once
sockets            Listening sockets: Unix ones that only their owner
                   reaches, TCP ones on a named address
"""
