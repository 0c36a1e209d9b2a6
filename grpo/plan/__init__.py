"""What a run will take, in bytes and hours, said before anything is loaded; and what around it would make it fail."""
