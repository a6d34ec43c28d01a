"""Benchmarks: what a server does under load, beside its engine called directly."""
