"""Fine-tuning of any encoder for a task with a head: what XNLI and question answering share.

Batches hold rows of like length in training as in evaluation, so hardly any padding is computed. A run that
was killed goes on from its last checkpoint with the weights that it would have had without the kill.
`commands/fine_tune.py` tells the whole.
"""
