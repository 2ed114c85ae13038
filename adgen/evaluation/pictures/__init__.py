"""Scores of pictures: tensors in, tensors out."""
