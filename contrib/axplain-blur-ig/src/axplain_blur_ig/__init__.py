"""Blur integrated gradients for axplain: a method in TOML, and the path that it needs."""
