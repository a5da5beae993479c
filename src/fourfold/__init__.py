"""Fourfold: which transfer strategy wins for your data, by how much, with what certainty and at what cost."""

__version__ = "0.1.0"
