"""Where data sets come from, and the built-in arithmetic task."""
