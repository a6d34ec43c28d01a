"""Requests that nobody would send on purpose: `python -m loadtests.fuzz`.

HTTP: schemathesis makes them from the server's own OpenAPI description. gRPC: messages of every
method, changed or of any bytes, and connections that speak no gRPC at all.
"""
