"""Experiments of many runs: a grid of arms and seeds carried out, runs held against each other."""
