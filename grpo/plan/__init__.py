"""The plan of a run: memory and time from the model's configuration alone, before anything is loaded."""
