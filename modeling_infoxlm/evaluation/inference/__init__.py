"""Natural language inference: XNLI."""
