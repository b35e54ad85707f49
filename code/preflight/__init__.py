"""What can be known of a run before anything large is loaded: flags, files, models, steps, memory, disk."""
