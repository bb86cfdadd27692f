"""Seats: where an attribution lands when it is not the input, and the model that begins there."""
