"""TLS for NBD connections: certificates and pre-shared keys.

context  TLS of the NBD server: from a certificate directory, or a file of keys
psk      Pre-shared keys (PSK), for servers on every Python
stream   A TLS connection with the methods of a socket that buffers.py calls
"""
