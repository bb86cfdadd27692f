"""The specs of every built-in plugin: one TOML file each, in rooms by family. Data, never code."""
