"""The ground floor: ranks, DeepSpeed's settings, files that appear complete, locks, the log, exit codes."""
