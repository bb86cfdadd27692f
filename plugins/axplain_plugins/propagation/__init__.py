"""Rules and references of propagation methods."""
