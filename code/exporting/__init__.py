"""What turns a checkpoint into a folder for other programs: their spelling of its files, GGUF, the hub, commands."""
