"""NanoGrid: a self-hosted function platform."""

__version__ = "0.1.0"
