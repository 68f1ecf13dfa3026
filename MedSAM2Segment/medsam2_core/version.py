"""The version of the package, read by pyproject.toml and by the worker's handshake."""

__version__ = "0.2.0"
