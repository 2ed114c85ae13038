"""Uni-AdGen on a Janus-Pro base, as plain PyTorch: tensors in, tensors out. Knows no Ray, no storage, no prompt text."""

import logging

# transformers imports torchao wherever it is installed, and that tells of each of its kernels that is for another device.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
