"""From text to packed training batches: sources, readers, prepare, shards, sampling, masking, batches."""
