"""Guided integrated gradients, a method for axplain: its spec lies beside its code."""
