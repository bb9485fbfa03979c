"""Lower bounds of mutual information for the views of InfoXLM's three objectives."""
