"""Engines: one module each, plus the specs and errors that everything else speaks in."""
