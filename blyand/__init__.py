"""The daemon that every participant runs. docs/architecture.md is the map."""

__version__ = "0.1.0"
