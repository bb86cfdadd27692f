"""Methods that follow the attention weights of a transformer."""
