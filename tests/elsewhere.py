"""A device that this machine lacks: tensors without storage, and a watch over every operation.

An operation that mixes them with tensors of the processor is an error, as it is on CUDA. Numbers
that are read back are all one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ELSEWHERE = torch.device("meta")
_COPIES = {
    torch.ops.aten.copy_.default,
    torch.ops.aten._foreach_copy_.default,
    torch.ops.aten._to_copy.default,
}


class Elsewhere(TorchDispatchMode):
    """Meanwhile nothing crosses from one device to the other unless it is copied there."""

    def __torch_dispatch__(
        self, operator: Any, types: Any, given: Any = (), named: Any = None
    ) -> Any:
        named = named or {}
        with self:  # where nothing is differentiated, operations come here that are made of others
            found = operator.decompose(*given, **named)
        if found is not NotImplemented:
            return found
        tensors = [each for each in tree_leaves((given, named)) if isinstance(each, Tensor)]
        if operator is torch.ops.aten._local_scalar_dense.default and given[0].is_meta:
            return 1.0 if given[0].is_floating_point() else 1
        if "_fused_" in str(operator):
            return self._look_at_lists(operator, given)
        is_copy = operator in _COPIES
        kinds = {each.device.type for each in tensors if each.dim()}
        if len(kinds) > 1 and not is_copy:
            raise AssertionError(f"{operator} mixes {sorted(kinds)}")
        if is_copy and operator is torch.ops.aten.copy_.default and given[1].is_meta:
            return given[0]
        if is_copy and named.get("device") == torch.device("cpu") and given[0].is_meta:
            dtype = named.get("dtype") or given[0].dtype
            return torch.ones(given[0].shape, dtype=dtype)
        return operator(*given, **named)

    def _look_at_lists(self, operator: Any, given: Any) -> None:
        """PyTorch's fused optimizers know no tensors without storage, not even of one number."""
        kinds = {each.device.type for each in tree_leaves(given) if isinstance(each, Tensor)}
        if len(kinds) > 1:
            raise AssertionError(f"{operator} mixes {sorted(kinds)}")
