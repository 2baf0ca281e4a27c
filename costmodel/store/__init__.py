"""What was measured, kept: append-only, in a file or in a team's database."""

from costmodel.store.store import Store

__all__ = ["Store"]
