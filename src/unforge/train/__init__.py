"""One loop for whatever has `loss(batch)` and `parameter_groups()`: methods, backbones, codebooks."""
