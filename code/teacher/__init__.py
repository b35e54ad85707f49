"""The teacher: its hidden states, the cache that holds them on disk, and how both are made."""
