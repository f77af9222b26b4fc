"""TLS for NBD connections: certificates, and keys that both sides share.

context  TLS of the NBD server: what a certificate directory or a file of keys is
         made into
psk      Keys that both sides know beforehand (PSK), for servers on every Python
stream   A TLS connection with the methods of a socket that buffers.py calls
"""
