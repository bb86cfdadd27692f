"""Axioms: one function each, that says how far a method is from it in one case."""
