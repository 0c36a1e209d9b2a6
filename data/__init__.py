"""Where data sets come from, and the built-in tasks and model."""
