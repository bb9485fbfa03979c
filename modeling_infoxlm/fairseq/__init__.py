"""Checkpoints of the released code, a fork of fairseq 0.9: read safely, checked, converted."""
