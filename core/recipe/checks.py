"""What is wrong with a recipe before it is started: findings with the numbers and the way out.

An `error` keeps a run from starting or from meaning anything; a `warning` is a surprise avoided. Nothing is loaded or fetched.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from core.data.library import Dataset, load_dataset
from core.data.measure import encoder_of, measure_dataset
from core.errors import StudioError
from core.machine import read_gpus
from core.models.catalogue import find_local_base
from core.models.header import read_header
from core.recipe.device_checks import check_busy, check_device, check_memory, check_zero
from core.recipe.finding import Finding
from core.recipe.forecast import Forecast, forecast, rounded, selected_rows
from core.recipe.schema import Recipe
from core.recipe.template_checks import check_template
from core.train.create import check_disk, lora_parameters
from core.words import Text
from core.workspace import Workspace

# Updates x learning rate, about how far AdamW carries a weight. The lesson knew its name after 12 updates at 2e-4.
_LESSON_REACH = 12 * 2e-4
_FEW_UPDATES = 8
# Seen this often, the rows themselves come out as answers.
_MANY_EXPOSURES = 10
_FEW_ROWS = 10
# With fewer there is little to choose from: the way from learned to collapsed takes some five updates in the lesson.
_FEW_SNAPSHOTS = 4
# (least, most) learning rate that people use, with room on both sides.
_USUAL_RATES = {"lora": (1e-5, 2e-3), "full": (1e-6, 2e-4)}


def check_recipe(workspace: Workspace, recipe: Recipe) -> list[Finding]:
    """Everything that can be said before the start, errors first."""
    found = [*_data(workspace, recipe), *_model(workspace, recipe), *check_device(recipe, read_gpus()), *_rate(recipe)]
    try:
        known = forecast(workspace, recipe)
    except StudioError as error:
        known = None
        if not any(finding.level == "error" for finding in found):
            found.append(Finding("no_rows", "error", error.problem, error.hint, "data.sources"))
    if known is not None:
        found += [*_length_of_run(recipe, known), *_batch(recipe, known), *_snapshots(recipe, known), *_disk(workspace, recipe, known),
                  *check_memory(recipe, known), *check_busy(workspace, known)]
    return sorted(found, key=lambda finding: finding.level)  # "error" < "warning"


def _data(workspace: Workspace, recipe: Recipe) -> Iterator[Finding]:
    for index, source in enumerate(recipe.data.sources):
        field = f"data.sources[{index}]"
        try:
            dataset = load_dataset(workspace, source.dataset)
        except StudioError as error:
            yield Finding("no_dataset", "error", error.problem, Text("Choose a dataset that is here, or make it on the Data page."),
                          f"{field}.dataset")
            continue
        rows = selected_rows(dataset.card, source)
        if rows == 0:
            yield Finding("no_rows", "error", Text(
                "The dataset {name} has no rows in the groups {groups}; it has: {existing}.", name=source.dataset,
                groups=", ".join(source.groups or []) or "-",
                existing=", ".join(f"{group} {count}" for group, count in dataset.card.groups.items()) or "-"),
                Text("Choose other groups, or leave the groups out to take all rows."), f"{field}.groups")
        elif rows < _FEW_ROWS:
            yield Finding("few_rows", "warning", Text("{name} gives only {count} rows: the model learns them by heart.",
                                                      name=source.dataset, count=rows),
                          Text("Add more wordings of the same; a persona dataset has them ready."), f"{field}.dataset")
        yield from _lengths(workspace, recipe, dataset, index)
    yield from _probes(workspace, recipe)


def _lengths(workspace: Workspace, recipe: Recipe, dataset: Dataset, index: int) -> Iterator[Finding]:
    try:
        base = find_local_base(workspace, recipe.model.source)
        if base is None:
            return
        encoder = encoder_of(base, recipe.data.system)
        measure = measure_dataset(dataset, encoder, recipe.data.sources[index].groups, recipe.data.train_on)
    except StudioError:
        return  # the model or the groups are wrong; that is said elsewhere
    limit, seen = recipe.data.max_length, len(measure.places)
    cut, lost = len(measure.cut_at(limit)), len(measure.lost_at(limit))
    if measure.refused and encoder.template:
        yield Finding("refused_rows", "error", Text(
            "The model's chat template refuses {count} of {seen} rows of {name}, and the training would not start.",
            count=len(measure.refused), seen=seen, name=dataset.card.name),
            Text("Remove them on the Data page, under Checks."), f"data.sources[{index}].dataset")
    if cut and not measure.documents:
        yield Finding("cut_rows", "warning", Text(
            "{count} of {seen} rows of {name} are longer than {limit} tokens and lose their end; {lost} lose the whole answer.",
            count=cut, seen=seen, name=dataset.card.name, limit=limit, lost=lost),
            Text("Raise data.max_length to {longest}, or shorten these rows.", longest=max(measure.tokens)), "data.max_length")


def _probes(workspace: Workspace, recipe: Recipe) -> Iterator[Finding]:
    try:
        card = load_dataset(workspace, recipe.probe_dataset).card
    except StudioError as error:
        if recipe.probes.dataset:
            yield Finding("no_probe_dataset", "error", error.problem, Text("Choose a dataset that has probes."), "probes.dataset")
        return
    if card.probes == 0:
        yield Finding("no_probes", "warning", Text(
            "The dataset {name} has no probes, so its run can only be judged by rows that it was trained on.", name=card.name),
            Text("Take some rows out first with `sweetspot data hold-out`, or choose a dataset with probes for the questions."),
            "probes.dataset")


def _has_conversations(workspace: Workspace, recipe: Recipe, base: Path) -> bool:
    """Whether some of the rows are no plain documents; also where that cannot be known."""
    try:
        encoder = encoder_of(base, recipe.data.system)
        measures = [measure_dataset(load_dataset(workspace, source.dataset), encoder, source.groups, recipe.data.train_on)
                    for source in recipe.data.sources]
    except StudioError:
        return True
    return any(measure.documents < len(measure.places) for measure in measures)


def _model(workspace: Workspace, recipe: Recipe) -> Iterator[Finding]:
    source = recipe.model.source
    try:
        base = find_local_base(workspace, source)
        if base is None:
            yield _not_here_yet(source)
            yield from check_zero(recipe, None, 0)
            return
        header = read_header(base)
        if recipe.method.kind == "lora" and lora_parameters(base, recipe) == 0:
            yield Finding("no_layers", "error", Text("The model has no layer with one of these names: {targets}.",
                                                     targets=", ".join(recipe.method.targets)),
                          Text("Use all-linear, which fits every model."), "method.targets")
    except StudioError as error:
        yield Finding("no_model", "error", error.problem, error.hint, "model.source")
        return
    yield from check_template(base, header, recipe, _has_conversations(workspace, recipe, base))
    yield from check_zero(recipe, base, header.parameters)
    if header.context_tokens and recipe.data.max_length > header.context_tokens:
        yield Finding("too_long", "warning", Text("Rows may have {limit} tokens, but the model was made for {context}.",
                                                  limit=recipe.data.max_length, context=header.context_tokens),
                      Text("Set data.max_length to at most {context}.", context=header.context_tokens), "data.max_length")


def _not_here_yet(source: str) -> Finding:
    if "/" in source:
        return Finding("to_fetch", "warning", Text("The model {name} is not on this machine; the run fetches it first.", name=source),
                       Text("Check that this machine has a network, or copy the model here and name its folder."), "model.source")
    return Finding("not_prepared", "error", Text("The embedded model is not prepared yet."),
                   Text("Prepare it once; it takes about 20 seconds."), "model.source")


def _rate(recipe: Recipe) -> Iterator[Finding]:
    rate = recipe.schedule.learning_rate
    least, most = _USUAL_RATES[recipe.method.kind]
    if not least <= rate <= most:
        text = (Text("The learning rate {rate} is far above what {method} usually takes ({least} to {most}): the model may break at once.",
                     rate=f"{rate:g}", method=recipe.method.kind, least=f"{least:g}", most=f"{most:g}") if rate > most else
                Text("The learning rate {rate} is far below what {method} usually takes ({least} to {most}): it may learn nothing.",
                     rate=f"{rate:g}", method=recipe.method.kind, least=f"{least:g}", most=f"{most:g}"))
        yield Finding("unusual_rate", "warning", text, Text("Start from {rate}.", rate="2e-4" if recipe.method.kind == "lora" else "2e-5"),
                      "schedule.learning_rate")


def _length_of_run(recipe: Recipe, known: Forecast) -> Iterator[Finding]:
    updates = known.plan.updates
    field = "schedule.updates" if recipe.schedule.updates is not None else "schedule.epochs"
    mean = 1.0 if recipe.schedule.shape == "constant" else 0.5  # of the learning rate over the run
    reach = updates * recipe.schedule.learning_rate * mean / _LESSON_REACH
    rate = f"{recipe.schedule.learning_rate:g}"
    if recipe.method.kind == "lora" and reach < 0.5:
        yield Finding("few_updates", "warning", Text(
            "{updates} updates at a learning rate of {rate} may be too few to learn: they reach {share} % of what the identity lesson "
            "needed (12 at 2e-4).", updates=updates, rate=rate, share=round(100 * reach)),
            Text("Ask for more updates, or a higher learning rate."), field)
    elif updates < _FEW_UPDATES:
        yield Finding("few_updates", "warning", Text(
            "{updates} updates may be too few to learn: the identity lesson needed 12, and fewer, larger ones go past what they should "
            "learn.", updates=updates), Text("Ask for more updates."), field)
    for use in known.sources:
        if use.exposures > _MANY_EXPOSURES:
            yield Finding("many_exposures", "warning", Text(
                "Each of the {rows} rows of {name} is seen {times} times. From about {many} times on a model repeats its rows instead of "
                "learning from them.", rows=use.rows, name=use.dataset, times=rounded(use.exposures), many=_MANY_EXPOSURES),
                Text("Add rows, or ask for fewer updates."), field)


def _batch(recipe: Recipe, known: Forecast) -> Iterator[Finding]:
    rows = sum(use.rows for use in known.sources)
    if recipe.schedule.effective_batch > rows:
        yield Finding("large_batch", "warning", Text(
            "One update sees {batch} rows, but there are only {rows}: every update repeats some.",
            batch=recipe.schedule.effective_batch, rows=rows),
            Text("Set schedule.effective_batch to at most {rows}.", rows=rows), "schedule.effective_batch")


def _snapshots(recipe: Recipe, known: Forecast) -> Iterator[Finding]:
    kept = len(known.plan.snapshot_steps)
    if kept < _FEW_SNAPSHOTS:
        yield Finding("few_snapshots", "warning", Text(
            "Only {count} snapshots will be kept: too few to find the one before it overfits.", count=kept),
            Text("Ask for 12 or more; each is small."), "snapshots.count")


def _disk(workspace: Workspace, recipe: Recipe, known: Forecast) -> Iterator[Finding]:
    if known.snapshot_bytes is None:
        return
    try:
        check_disk(workspace, recipe, known.plan)
    except StudioError as error:
        yield Finding("disk", "error", error.problem, error.hint, "snapshots.count")
