"""Uni-AdGen on a Janus-Pro base, as plain PyTorch: tensors in, tensors out. Knows no Ray, no storage, no prompt text."""
