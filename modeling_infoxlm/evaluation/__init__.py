"""Measures of how well an encoder aligns languages."""
