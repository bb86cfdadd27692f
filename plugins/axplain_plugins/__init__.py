"""Built-in axplain plugins."""
