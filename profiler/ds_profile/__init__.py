"""`ds-profile`: where a request's time goes, layer by layer if need be, and a search for a better
configuration. It starts `ds-serve` as a process of its own and is a client like any other.
"""
