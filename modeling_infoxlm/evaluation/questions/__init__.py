"""Extractive question answering: MLQA, XQuAD, TyDi QA."""
