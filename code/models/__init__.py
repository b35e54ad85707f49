"""Loading, heads, probes, vocabulary."""
