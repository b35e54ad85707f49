"""What can be known of a run before anything large is loaded: checks, and plans of memory, disk and steps."""
