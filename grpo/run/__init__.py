"""The run folder: what a run leaves behind and shows, how it can stop at any moment, and how it goes on."""
