"""The NBD server: negotiation, requests, answers, TLS, and the library for straight requests."""
