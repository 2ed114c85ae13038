"""Bytes of tensors: of a state that was loaded, and of all that hangs on an object."""

import gc
from types import FrameType, FunctionType, ModuleType

import torch


def tensor_bytes(state, seen: set[int] | None = None) -> int:
    """Of all tensors in a state, each storage once."""
    seen = set() if seen is None else seen
    if isinstance(state, torch.Tensor):
        storage = state.untyped_storage()
        fresh = storage.data_ptr() not in seen
        seen.add(storage.data_ptr())
        return storage.nbytes() if fresh else 0
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return sum(tensor_bytes(part, seen) for part in parts)


def reachable_bytes(root: object) -> int:
    """Of all tensors that hang on an object, gradients among them, each storage once."""
    todo, seen, found = [root], set(), {}
    while todo:
        each = todo.pop()
        if id(each) in seen or isinstance(each, type | ModuleType | FrameType):
            continue
        seen.add(id(each))
        if isinstance(each, torch.Tensor):
            for tensor in (each, each.grad if each.is_leaf else None):
                if tensor is not None:
                    found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        todo += (each.__closure__ or ()) if isinstance(each, FunctionType) else gc.get_referents(each)
    return sum(found.values())
