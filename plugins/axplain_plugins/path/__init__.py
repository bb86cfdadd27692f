"""Built-in axplain plugins: path."""
