"""Castling keeps a hot, switch-ready copy of production and proves that it is right."""

__version__ = "0.1.0"
