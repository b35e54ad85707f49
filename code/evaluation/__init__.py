"""Generation, ROUGE-L, results."""
