"""Methods in TOML; there is no code."""
