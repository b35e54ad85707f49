"""Pairs of answers -> questions to a language model as the judge -> verdicts -> wins, ties, losses, position bias."""
