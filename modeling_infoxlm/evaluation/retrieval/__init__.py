"""Retrieval and mining: aligned sentences, nearest neighbours, margins."""
