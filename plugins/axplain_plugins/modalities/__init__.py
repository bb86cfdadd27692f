"""Built-in axplain plugins: modalities."""
