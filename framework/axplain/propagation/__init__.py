"""Gradients under a rule set: a function mode, the tape of the references, and two witnesses of what is not covered."""
