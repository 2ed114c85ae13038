"""Procedural pictures for the synthetic shop: numpy and Pillow only, a picture is a function of its generator."""
