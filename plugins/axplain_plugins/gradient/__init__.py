"""Built-in axplain plugins: gradients."""
