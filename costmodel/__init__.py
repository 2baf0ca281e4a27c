"""Predict how long a kernel will run from its text, before anybody compiles it."""

__version__ = "0.1.0"
