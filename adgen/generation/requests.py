"""Requests as ranks send them to each other: plain values in a JSON document, and a list of tensors."""

import dataclasses
from collections.abc import Sequence

import torch

from adgen.generation.generate import Request

_SENT = [field.name for field in dataclasses.fields(Request) if not field.name.startswith("check_")]
"""Checks are functions: the leader asks them and tells the others what they said."""


def pack_requests(requests: Sequence[Request], agreement: str) -> tuple[dict, list[torch.Tensor]]:
    """Requests as plain values and a list of tensors, to which the values refer by index. A tensor that several requests
    share is sent once, and is shared again by the receiver."""
    rows, tensors, places = [], [], {}
    for request in requests:
        row = {name: getattr(request, name) for name in _SENT}
        for name, value in row.items():
            if isinstance(value, torch.Tensor):
                if id(value) not in places:
                    places[id(value)] = len(tensors)
                    tensors.append(value)
                row[name] = {"tensor": places[id(value)]}
        rows.append(row)
    return {"agreement": agreement, "requests": rows}, tensors


def unpack_requests(document: dict, tensors: list[torch.Tensor]) -> list[Request]:
    """What `pack_requests` packed."""

    def value(stored):
        if isinstance(stored, dict):
            return tensors[stored["tensor"]]
        return tuple(stored) if isinstance(stored, list) else stored

    return [Request(**{name: value(stored) for name, stored in row.items()}) for row in document["requests"]]
