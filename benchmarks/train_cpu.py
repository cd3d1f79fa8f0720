"""Training on a processor: this engine beside the plain transformers + PEFT loop, in one process, update by update in turn; and start-up.

    python benchmarks/train_cpu.py                 # the embedded model on the lesson's data; takes a few minutes
    python benchmarks/train_cpu.py --updates 3 --no-start

The plain loop is what a tutorial writes: rows padded to the longest, `model(**batch).loss`, AdamW as it comes, torch's own threads.
Both train the same adapter on the same rows. Start-up is the time from launching the job to its first update on record; recording is what a
real training spends on writing down what it does, beside its updates.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from core.data.library import load_dataset  # noqa: E402
from core.data.persona import Persona  # noqa: E402
from core.data.store import save_persona  # noqa: E402
from core.models.embedded import EMBEDDED_NAME, prepare_embedded  # noqa: E402
from core.recipe.files import change_recipe, load_preset  # noqa: E402
from core.recipe.schema import Recipe  # noqa: E402
from core.workspace import Workspace  # noqa: E402

# docs/speed.md: 16 rows of 1,024 tokens at some 65,000 tokens/s, the shortest update that is promised.
_UPDATE_ON_AN_H100 = 0.25


class Silent:
    """Hears the progress of preparing the model, and tells nobody."""

    def progress(self, *_: object) -> None: ...

    def stop_requested(self) -> bool:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=8, help="of each loop, in turn")
    parser.add_argument("--model", type=Path, help="a prepared embedded model, to spare its preparation")
    parser.add_argument("--set", action="append", default=[], help="change a field of the recipe, as in data.packing=false")
    parser.add_argument("--no-start", action="store_true", help="leave out the start-up")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace.open(folder)
        if asked.model:
            (workspace.models / EMBEDDED_NAME).symlink_to(asked.model.resolve())
        else:
            prepare_embedded(workspace, Silent())
        save_persona(workspace, Persona(name="Alex"), [], "alex")
        recipe = change_recipe(load_preset("identity-lesson-cpu"), {"data.sources[0].dataset": "alex"})
        recipe = change_recipe(recipe, dict(item.split("=", 1) for item in asked.set)) if asked.set else recipe
        compare(workspace, recipe, asked.updates)
        if not asked.no_start:
            print(f"start-up: {start_up(workspace, recipe):.1f} s from launching the job to its first update on record")
        update, spent = recording(workspace, recipe, asked.updates)
        print(f"recording: {1000 * spent:.2f} ms an update, {100 * spent / update:.2f} % of its {update:.2f} s "
              f"(and {100 * spent / _UPDATE_ON_AN_H100:.2f} % of the {_UPDATE_ON_AN_H100} s that the course's update takes on an H100)")


def compare(workspace: Workspace, recipe: Recipe, updates: int) -> None:
    """Both loops, an update of one and an update of the other; the first of each warms up."""
    import torch

    from core.data.encode import Encoder
    from core.models.catalogue import find_base
    from core.train.fit import Accumulator, first_fit
    from core.train.model import make_step, prepare_model
    from core.train.ranks import ALONE
    from core.train.rows import read_sources, rows_of_update

    base = find_base(workspace, recipe.model.source)
    encoder = Encoder.from_folder(base)
    sources = read_sources(workspace, recipe, encoder)
    default_threads = torch.get_num_threads()
    plain = PlainLoop(base, recipe, encoder.pad_id())
    torch.manual_seed(0)
    model = prepare_model(recipe, base, "cpu")
    our_threads = torch.get_num_threads()
    step, is_packed = make_step(recipe, model, sources[0].rows[0].ids, "cpu")
    model.train()
    ours = Accumulator(step, ALONE, first_fit(recipe, model, "cpu"), encoder.pad_id(), "cpu", is_packed)
    plain_seconds, our_seconds, tokens = [], [], 0
    for update in range(1, updates + 2):
        rows = rows_of_update(sources, recipe.schedule.effective_batch, recipe.schedule.seed, update)
        torch.set_num_threads(default_threads)
        began = time.perf_counter()
        plain_loss = plain.update(rows)
        plain_seconds.append(time.perf_counter() - began)
        torch.set_num_threads(our_threads)
        began = time.perf_counter()
        our_loss = ours.run(rows, update)
        step.apply(recipe.schedule.learning_rate)
        our_seconds.append(time.perf_counter() - began)
        tokens += sum(len(row.ids) for row in rows) * (update > 1)
        print(f"update {update}: plain {plain_seconds[-1]:.3f} s (loss {plain_loss:.4f}), this engine {our_seconds[-1]:.3f} s "
              f"(loss {our_loss:.4f})", flush=True)
    ratios = [plain / our for plain, our in zip(plain_seconds[1:], our_seconds[1:], strict=True)]
    print(f"\n{'loop':26}{'tokens/s':>10}{'s/update':>10}\n"
          f"{'transformers + PEFT':26}{tokens / sum(plain_seconds[1:]):>10.0f}{statistics.median(plain_seconds[1:]):>10.3f}\n"
          f"{'this engine':26}{tokens / sum(our_seconds[1:]):>10.0f}{statistics.median(our_seconds[1:]):>10.3f}\n"
          f"ratio: {statistics.median(ratios):.2f} (median of {updates} pairs; {min(ratios):.2f} to {max(ratios):.2f})")


class PlainLoop:
    """The loop that the documentation of transformers and PEFT leads to."""

    def __init__(self, base: Path, recipe: Recipe, pad_id: int) -> None:
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        method = recipe.method
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        self.model = get_peft_model(model, LoraConfig(r=method.rank, lora_alpha=method.alpha, target_modules="all-linear",
                                                      task_type="CAUSAL_LM")).train()
        self.optimizer = torch.optim.AdamW((weight for weight in self.model.parameters() if weight.requires_grad),
                                           lr=recipe.schedule.learning_rate, weight_decay=0.0)
        self.pad_id = pad_id

    def update(self, rows: list) -> float:
        import torch

        longest = max(len(row.ids) for row in rows)
        ids = torch.tensor([row.ids + [self.pad_id] * (longest - len(row.ids)) for row in rows])
        mask = torch.tensor([[1] * len(row.ids) + [0] * (longest - len(row.ids)) for row in rows])
        labels = torch.tensor([[token if trained else -100 for token, trained in zip(row.ids, row.trained, strict=True)]
                               + [-100] * (longest - len(row.ids)) for row in rows])
        loss = self.model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach())


def recording(workspace: Workspace, recipe: Recipe, updates: int) -> tuple[float, float]:
    """Of one real training: seconds an update, and seconds that recording it takes.

    Counted are its line in metrics.jsonl with what stands in it, what the tracker is handed, its progress in state.json, and the look for
    a request to stop; not the looks at the model, whose share is in the run's summary.
    """
    from core.jobs.worker import Recorder
    from core.train.create import create_run
    from core.train.worker import Training

    recipe = change_recipe(recipe, {"schedule.updates": updates, "snapshots.count": 1})
    run = create_run(workspace, recipe, "recording")
    training = Training(workspace, run, Recorder(run, run.state()))
    spent = 0.0

    def timed(work: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object) -> object:
            nonlocal spent
            began = time.perf_counter()
            try:
                return work(*args)
            finally:
                spent += time.perf_counter() - began
        return call

    training._record = timed(training._record)
    training.recorder.progress = timed(training.recorder.progress)
    training.recorder.stop_requested = timed(training.recorder.stop_requested)
    training.run_to_end()
    return statistics.median(record["seconds"] for record in run.metrics()), spent / updates


def start_up(workspace: Workspace, recipe: Recipe) -> float:
    """Seconds from launching the job of a one-update training to its first record."""
    from core.jobs.launch import wait_for_job
    from core.train.create import create_run, start_job

    assert load_dataset(workspace, "alex").probes(), "the lesson looks in on its probes; without them it would start sooner"
    run = create_run(workspace, change_recipe(recipe, {"schedule.updates": 1, "snapshots.count": 1}), "start-up")
    began = time.time()
    start_job(run)
    wait_for_job(run)
    return run.metrics()[0]["time"] - began


if __name__ == "__main__":
    main()
