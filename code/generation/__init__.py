"""Answers to prompts, as token ids."""
