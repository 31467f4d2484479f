"""Recipes: Python functions that return stage configs. Each has a `tiny()` that runs in seconds on a CPU."""
