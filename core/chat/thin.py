"""Products of a weight matrix with a handful of rows, as decoding a few answers at once needs them on a processor.

For 2 to 6 rows the usual call packs the whole weight matrix anew each time and takes 3 to 4 times as long as one row does. Asked the
other way round (weights times the rows as columns) the library reads the weights once: two or three answers then cost about what one
costs. Prompts have many rows; they take the fast product where the processor has one.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from core.models.products import product

_FEWEST_ROWS, _MOST_ROWS = 2, 6


class ThinLinear(torch.nn.Linear):
    """A linear layer that is quick with few rows; the same numbers up to rounding."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.numel() // self.in_features
        if not _FEWEST_ROWS <= rows <= _MOST_ROWS:
            return product(x, self.weight, self.bias)
        # Both row by row in memory: columns side by side cost 3 to 4 times as much here, and attention and norms lose by them too.
        result = torch.mm(self.weight, x.reshape(rows, self.in_features).contiguous().t()).t().contiguous()
        if self.bias is not None:
            result = result + self.bias
        return result.reshape(*x.shape[:-1], self.out_features)


def use_thin_products(model: PreTrainedModel) -> None:
    """Turn the model's float32 linear layers on the processor into thin ones, in place; others stay as they are."""
    for module in model.modules():
        if type(module) is torch.nn.Linear and module.weight.dtype == torch.float32 and module.weight.device.type == "cpu":
            module.__class__ = ThinLinear  # the same fields, another forward
