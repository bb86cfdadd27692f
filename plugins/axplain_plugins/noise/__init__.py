"""Built-in axplain plugins: noise."""
