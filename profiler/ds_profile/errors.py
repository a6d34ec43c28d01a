"""What ends a command with a sentence for a person."""

from __future__ import annotations


class ProfileError(Exception):
    """The command cannot go on; the message says why, and what would be right."""
