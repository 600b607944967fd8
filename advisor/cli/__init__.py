"""The ``advisor`` command; ``main`` is its entry point."""

from advisor.cli.app import app, main

__all__ = ["app", "main"]
