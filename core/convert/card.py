"""The model card: base, data, recipe and verdict of a model, in the README.md that both hubs show. No torch.

Only what the workspace's files say; a path of this machine is never written, a dataset's rows neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from core.errors import StudioError
from core.models.catalogue import is_hub_id
from core.models.embedded import EMBEDDED_NAME
from core.recipe.files import change_recipe, dump_recipe
from core.recipe.schema import Recipe
from core.runs import Run, find_run
from core.words import Text
from core.workspace import Workspace, read_json

_EMBEDDED_BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"


@dataclass(frozen=True)
class Story:
    """Where a model comes from.

    Attributes:
        base: the base model as outsiders know it.
        run, step: the training and its step; None for a model that was only added.
        merged: `merge.json` of a merged model.
    """

    base: str
    run: Run | None = None
    step: int | None = None
    merged: dict[str, Any] | None = None


def public_name(source: str) -> str:
    """A base model as it may be called outside: a hub id stays, a path keeps its last part."""
    if source in ("embedded", EMBEDDED_NAME):
        return _EMBEDDED_BASE
    plain = source.removeprefix("hf:").removeprefix("modelscope:")
    return plain if is_hub_id(plain) else Path(plain).name


def story_of(workspace: Workspace, folder: Path, run: Run | None = None, step: int | None = None) -> Story:
    """What is known of a model folder, or of a step of a run."""
    if run is not None:
        return Story(public_name(run.recipe().model.source), run, step)
    try:
        merged = read_json(folder / "merge.json")
        name, _, text = str(merged["model"]).partition("@")
        base, number = public_name(str(merged["base"])), int(text)
    except (OSError, ValueError, KeyError, TypeError):
        return Story(public_name(folder.name))
    try:
        return Story(base, find_run(workspace, name), number, merged)
    except StudioError:
        return Story(base, None, number, merged)  # the run was deleted; the check of the merge is still known


def model_card(story: Story, repository: str, licence: str | None = None) -> str:
    """The text of README.md.

    Args:
        story: where the model comes from.
        repository: `org/name`, for the lines that show how to use it.
        licence: as the hubs spell it, such as apache-2.0; None leaves it out.
    """
    is_adapter = story.run is not None and story.merged is None and story.run.recipe().method.kind == "lora"
    head: dict[str, Any] = {"library_name": "peft" if is_adapter else "transformers", "pipeline_tag": "text-generation",
                            "tags": ["sweetspot", *(["lora"] if story.run is not None else [])]}
    if is_hub_id(story.base):
        head["base_model"] = story.base
    if licence:
        head["license"] = licence
    parts = [f"---\n{yaml.safe_dump(head, sort_keys=True)}---", f"# {repository.rsplit('/', 1)[-1]}", _what(story, is_adapter),
             "## Base model", _base(story), *_data(story), *_recipe(story), "## Verdict", *_verdict(story), *_merge(story),
             "## Use", _use(story, repository, is_adapter)]
    return "\n\n".join(parts) + "\n"


def _what(story: Story, is_adapter: bool) -> str:
    if story.run is None and story.merged is None:
        return "A model from a Sweetspot workspace; nothing is recorded there about how it was trained."
    kind = "A LoRA adapter" if is_adapter else "A model with its adapter merged in" if story.merged else "A fine-tuned model"
    return f"{kind}: step {story.step} of a training with Sweetspot."


def _base(story: Story) -> str:
    text = f"`{story.base}`"
    if story.base == _EMBEDDED_BASE:
        text += ", as 4-bit weights (Q4_1) widened to float32"
    if story.run is not None:
        recipe = story.run.recipe()
        if recipe.model.quantization != "none":
            text += f". It was held in {recipe.model.quantization} while the adapter was trained"
    return text + "."


def _data(story: Story) -> list[str]:
    if story.run is None:
        return []
    try:
        sources = story.run.dataset()["sources"]
    except (OSError, ValueError, KeyError, TypeError):
        return ["## Data", "Not recorded."]
    lines = ["| dataset | rows | groups | weight | SHA-256 |", "|---|---|---|---|---|"]
    for source in sources:
        groups = ", ".join(source.get("groups") or []) or "all"
        lines.append(f"| {source['dataset']} | {source.get('rows', '?')} | {groups} | {source.get('weight', 1.0)} | "
                     f"{str(source.get('sha256', '?'))[:16]} |")
    return ["## Data", "\n".join(lines)]


def _recipe(story: Story) -> list[str]:
    if story.run is None:
        return []
    public = change_recipe(story.run.recipe(), {"model.source": story.base, "log": Recipe().log.model_dump()}, "card")
    plain = "\n".join(line for line in dump_recipe(public).splitlines() if not line.lstrip().startswith("#") and line.strip())
    is_imported = "imported" in story.run.spec()
    note = ["The training was XTuner's; where its config is silent, what stands here is a default."] if is_imported else []
    return ["## Recipe", *note, f"```yaml\n{plain}\n```"]


def _verdict(story: Story) -> list[str]:
    """What was measured, and how sure that is."""
    verdict = story.run.verdict() if story.run is not None else None
    if verdict is None:
        return ["Not judged: nothing is known about what it learned and what it forgot."]
    parts = [str(Text.from_json(verdict["reason"]))]
    if verdict["pick"]["step"] != story.step:
        parts.append(f"This is step {story.step}, another one than the step {verdict['pick']['step']} that the sentence above is about.")
    score = next((score for score in story.run.scores() if score["step"] == story.step), None) if story.run else None
    if score:
        facts = [("questions it was taught, answered as taught", f"{score['hits']} of {score['identity_probes']}"),
                 ("other questions answered with what it was taught", f"{score['leaks']} of {score['other_probes']}"),
                 ("facts that it still knows", "-" if score.get("facts_kept") is None else f"{score['facts_kept']:.0%}")]
        parts.append("\n".join(["| measured on held-out questions | |", "|---|---|", *(f"| {what} | {value} |" for what, value in facts)]))
    if verdict.get("certainty"):
        parts.append(f"How sure: {Text.from_json(verdict['certainty'])}")
    if verdict.get("chosen_by") == "hand":
        parts.append(f"The step was chosen by hand; the rule takes step {verdict['rule_step']}.")
    return parts


def _merge(story: Story) -> list[str]:
    check = (story.merged or {}).get("verification")
    if not check:
        return []
    asked = check["answers_compared"]
    return [f"The merge was checked: {asked - len(check['differences'])} of {asked} greedy answers are those of base with adapter, "
            f"logits within {check['max_logit_difference']:.2g}, {check['tensors_changed']} tensors changed."]


def _use(story: Story, repository: str, is_adapter: bool) -> str:
    package, kind = ("peft", "AutoPeftModelForCausalLM") if is_adapter else ("transformers", "AutoModelForCausalLM")
    loading = f'from {package} import {kind}\n\nmodel = {kind}.from_pretrained("{repository}")'
    system = story.run.recipe().data.system if story.run is not None else None
    note = f"\n\nIt was trained with this system text: {system!r}" if system else ""
    return f"```python\n{loading}\n```\n\nThe chat template lies beside the weights and is the one it was trained with.{note}"
