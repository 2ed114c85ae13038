"""Uni-AdGen on a Janus-Pro base, in plain PyTorch: tensors in, tensors out. It knows no Ray, no storage and no prompt text."""

import logging

# transformers imports torchao where it is installed, and torchao logs every kernel that is for another device.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
