"""One solution for each exercise, under the same file name."""
