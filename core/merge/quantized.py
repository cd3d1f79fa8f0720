"""QLoRA: the weights an adapter was trained over were 4-bit ones, and a merge has two choices of what to add the adapter to.

The base's own 16-bit weights are nearer to the model as it was published, but the adapter never saw them: the sum answers a little
otherwise than what was judged. The 4-bit weights widened again are exactly what it saw, so that sum answers alike up to rounding, with
the quality of 4 bits. Loads torch.
"""

from __future__ import annotations

from pathlib import Path

import torch


class Requantizer:
    """Rounds the linear layers of a model to NF4 and back, as bitsandbytes does when it loads the model for QLoRA."""

    def __init__(self, base: Path, compute: torch.dtype) -> None:
        """Find the layers.

        Args:
            base: the model's folder.
            compute: the format that the weights were loaded in before they were quantised; it decides the last bits.
        """
        self.names = _quantised_names(base)
        self._compute = compute

    def apply(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """The weight (out, in) as training saw it, in the format of training; a tensor that was not quantised is given back as it is."""
        if name not in self.names:
            return weight
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit

        # NF4 in blocks of 64 with double quantisation: see core.models.load.
        packed, state = quantize_4bit(weight.to(self._compute).contiguous(), blocksize=64, compress_statistics=True, quant_type="nf4")
        return dequantize_4bit(packed, state).reshape(weight.shape)


def _quantised_names(base: Path) -> set[str]:
    """Names of the weights that transformers quantises: linear layers, the output head excepted."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False),
                                                 trust_remote_code=False)
    head = model.get_output_embeddings()
    return {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and module is not head}

