"""Nested dicts of arrays: map, and cross between numpy and torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from slm_lab.lib.types import Batch, Tree


def tree_map(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """Apply `function` to the leaves of `tree` (and of trees of the same shape beside it)."""
    if not isinstance(tree, dict):
        return function(tree, *others)
    if not others:
        return {key: tree_map(function, value) for key, value in tree.items()}
    return {key: tree_map(function, value, *(other[key] for other in others)) for key, value in tree.items()}


def map_batch(function: Callable[..., Any], batch: Batch) -> Batch:
    """Apply `function` to every array to learn from: all fields but the last, `index` and `burn_in`."""
    *arrays, index, burn_in = batch
    found: list[Any] = []
    for value in arrays:  # most are arrays, or empty
        if type(value) is dict:
            value = {key: tree_map(function, leaf) for key, leaf in value.items()} if value else {}
        elif value is not None:
            value = function(value)
        found.append(value)
    return Batch(*[*found, index, burn_in])


def tree_copy(tree: Any) -> Any:
    """A copy that shares no array or tensor with `tree`, in which there may be lists and tuples."""
    if isinstance(tree, dict):
        return {key: tree_copy(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(tree_copy(value) for value in tree)
    if isinstance(tree, np.ndarray):
        return tree.copy()
    return tree.clone() if hasattr(tree, "clone") else tree  # a tensor


def tree_leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Each leaf with its dotted path."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from tree_leaves(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, tree


def to_torch(tree: Tree, device: Any = None) -> Any:
    """Arrays to tensors; no copy on the CPU."""
    import torch

    return tree_map(lambda leaf: torch.as_tensor(leaf, device=device), tree)


def to_numpy(tree: Tree) -> Any:
    """Tensors to arrays; no copy on the CPU."""
    return tree_map(lambda leaf: leaf.detach().cpu().numpy(), tree)
