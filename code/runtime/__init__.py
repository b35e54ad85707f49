"""What every entry point stands on: ranks, DeepSpeed's settings, atomic writing, locks, the log, exit codes."""
