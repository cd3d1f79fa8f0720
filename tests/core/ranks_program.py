"""What the ranks of `test_ranks` run: `torchrun ... ranks_program.py MODEL OUT STAGES DTYPE KIND...`.

One update at each stage in turn, each going on from the state that the stage before left behind. STAGES are as in `1,2o,3a`: a letter
adds an offload, of the optimizer's state or of all.
"""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from core.data.encode import Encoded, Encoder
from core.train.batches import Fit
from core.train.fit import Accumulator
from core.train.model import make_step, prepare_model
from core.train.ranks import Ranks
from tests.core.conftest import tiny_recipe, tiny_rows

ROWS_PER_UPDATE = 5  # not a multiple of two or three ranks
RATE = 2e-3


def rows_for(model: Path, update: int) -> list[Encoded]:
    encoder = Encoder.from_folder(model)
    rows = [encoder.encode(row["messages"], "all", 128) for row in tiny_rows()]
    return [rows[(update + number) % len(rows)] for number in range(ROWS_PER_UPDATE)]


OFFLOAD = {"": "none", "o": "optimizer", "a": "all"}


def main(model: Path, out: Path, stages: list[str], dtype: str, kinds: list[str]) -> None:
    ranks = Ranks.join("cpu")
    for kind in kinds:
        state: dict[str, torch.Tensor] = {}
        numbers = []
        for update, stage in enumerate(stages):
            unset_hf_deepspeed_config()  # of the stage before; a real training has one
            recipe = tiny_recipe(model, device__zero=int(stage[0]), device__offload=OFFLOAD[stage[1:]], method__kind=kind,
                                 model__dtype=dtype, data__packing=True)
            torch.manual_seed(0)
            step, is_packed = make_step(recipe, prepare_model(recipe, model, "cpu"), rows_for(model, 0)[0].ids, "cpu", ranks)
            if state:
                step.restore(state, update)
            accumulator = Accumulator(step, ranks, Fit(8192, 2), 2, "cpu", is_packed)
            loss = accumulator.run(rows_for(model, update), update)
            numbers.append([loss, step.apply(RATE)])
            state = ranks.told_by_first({name: value.clone() for name, value in step.state()})
            weights = {name: value.clone() for name, value in step.weights()}
            if ranks.index == ranks.count - 1:  # only one of them has the gradient that is no number; all must hear of it
                next(iter(step.parameters.values())).register_hook(lambda gradient: gradient * math.inf)
            accumulator.run(rows_for(model, update), update)
            assert not math.isfinite(step.apply(RATE)), (stage, kind)
        if ranks.is_first:
            assert all(torch.equal(weights[name].float(), state[f"parameter.{name}"]) for name in weights)
            save_file(state, out / f"{kind}.safetensors")
            (out / f"{kind}.json").write_text(json.dumps(numbers))
    ranks.wait_for_all()
    ranks.leave()
    os._exit(0)  # as core.train.rank does


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3].split(","), sys.argv[4], sys.argv[5:])
