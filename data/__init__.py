"""Sources of data sets, and the built-in tasks and model."""
