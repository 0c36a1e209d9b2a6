"""Teaching material: exercises, notebook, playground. It imports the trainer; nothing imports it."""
