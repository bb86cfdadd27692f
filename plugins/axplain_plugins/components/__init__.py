"""Built-in axplain plugins: components."""
