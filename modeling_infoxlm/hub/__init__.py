"""Releases: what a trained model is turned into for others to load."""
