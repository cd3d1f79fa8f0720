"""From answers and losses to findings, one per probe, and from findings to a score. No torch: a page scores with the same code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from core.data.library import HELD_OUT, IDENTITY, NEAR, Dataset
from core.judge import metrics
from core.judge.checks import passes
from core.judge.rule import Score
from core.judge.taught import Kind, Probe, Taught, has_become_likely, learning_probes, other_probes, own_checks, says_reference, taught_by
from core.judge.taught import training_answers as training_answers
from core.runs import Run
from core.workspace import read_jsonl

# Ids of training rows that stand in for held-out ones begin so.
STAND_IN = "pair-"


class Forced(NamedTuple):
    """What one pass over a question told, without an answer; a line of `forced.jsonl`.

    Attributes:
        step: of the model.
        probe: its id; `pair-...` for a training row that stands in for held-out ones.
        asked: fingerprint of what was asked, so that a question that was edited is asked again.
        nll: smallest loss among the taught answers; of a held-out row the loss of its own answer. Nats per token.
        cross: of a held-out row the loss of another row's answer.
        first: most probable first token.
        is_taught: whether that is how a taught answer begins.
        base_nll: loss of the base's own answer, summed over its tokens.
        base_tokens: tokens of that answer.
        kl: KL(base || this) summed over them; None for whole models, which are read without the base beside them.
    """

    step: int
    probe: str
    asked: str
    nll: float | None = None
    cross: float | None = None
    first: int = -1
    is_taught: bool = False
    base_nll: float = 0.0
    base_tokens: int = 0
    kl: float | None = None


@dataclass
class Sheet:
    """Everything one step did, by probe id.

    Attributes:
        texts: answers.
        tokens: their lengths; missing in files of older versions.
        forced: losses; missing there too.
        passed: outcomes of checks; None where the judge of a check could not be asked.
    """

    step: int
    texts: dict[str, str] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    forced: dict[str, Forced] = field(default_factory=dict)
    passed: dict[str, bool | None] = field(default_factory=dict)


def read_sheets(run: Run, steps: Iterable[int]) -> dict[int, Sheet]:
    """What every step did, as far as it is on file; of several records the last one counts."""
    sheets = {step: Sheet(step) for step in steps}
    for record in run.answers():
        if (sheet := sheets.get(record["step"])) is not None:
            sheet.texts[record["probe"]] = record["text"]
            if "tokens" in record:
                sheet.tokens[record["probe"]] = record["tokens"]
    for record in read_jsonl(run.folder / "forced.jsonl"):
        if record["step"] in sheets:
            sheets[record["step"]].forced[record["probe"]] = Forced(**record)
    for record in read_jsonl(run.folder / "checks.jsonl"):
        if record["step"] in sheets:
            sheets[record["step"]].passed[record["probe"]] = record["passed"]
    return sheets


@dataclass(frozen=True)
class Finding:
    """What one step's answer to one probe shows. A probe with a check may be both, `learns` and `checked`.

    Attributes:
        learns: belongs to P.
        other: belongs to G.
        checked: the user's own, with a check.
        hit: for P, learned.
        passed: for checks.
        knew: the base model knows this fact, or keeps to the form that was asked for.
        knows: this step does.
        base: what the base model's pass told, beside `forced`, this step's.
    """

    probe: str
    learns: bool
    other: bool
    checked: bool
    is_near: bool
    text: str
    base_text: str
    hit: bool = False
    passed: bool | None = None
    leak: bool = False
    fragment: bool = False
    knew: bool = False
    knows: bool = False
    tokens: int = 0
    base_tokens: int = 0
    forced: Forced | None = None
    base: Forced | None = None


def find_all(probes: Sequence[Probe], sheet: Sheet, base: Sheet, taught: Taught) -> list[Finding]:
    """The findings of one step, a finding per probe that counts, in the order of `probes`."""
    learning, others, checked = ({probe["id"] for probe in part} for part in
                                 (learning_probes(probes), other_probes(probes), own_checks(probes)))
    is_counted = all(probe["id"] in each.tokens for probe in probes for each in (sheet, base) if probe["id"] in others)
    findings = []
    for probe in probes:
        name = probe["id"]
        if name not in learning | others | checked:
            continue
        text, reference = sheet.texts[name], base.texts[name]
        is_other = name in others
        findings.append(Finding(
            name, name in learning, is_other, name in checked, probe["group"] == NEAR, text, reference,
            hit=name in learning and is_hit(probe, sheet, base, taught), passed=sheet.passed.get(name),
            leak=is_other and metrics.is_leak(text, taught.phrase(probe["lang"]), taught.answers),
            fragment=is_other and metrics.has_fragment(text, reference, taught.grams),
            knew=is_other and is_right(probe, reference), knows=is_other and is_right(probe, text),
            tokens=sheet.tokens[name] if is_counted else len(metrics.words(text)),
            base_tokens=base.tokens[name] if is_counted else len(metrics.words(reference)),
            forced=sheet.forced.get(name), base=base.forced.get(name)))
    return findings


def is_hit(probe: Probe, sheet: Sheet, base: Sheet, taught: Taught) -> bool:
    """Whether the answer to a probe of P shows that the lesson was learned.

    Identity: it holds the key phrase. Own check: it passes. Held-out row: see `says_reference`.
    """
    name = probe["id"]
    if probe.get("check"):
        return bool(sheet.passed.get(name))
    if probe["group"] == HELD_OUT:
        own, before = sheet.forced.get(name), base.forced.get(name)
        return says_reference(sheet.texts[name], probe.get("answer", ""), own.nll if own else None, before.nll if before else None)
    return metrics.has_phrase(sheet.texts[name], taught.phrase(probe["lang"]))


def is_right(probe: Probe, answer: str) -> bool:
    """Whether an answer to one of G holds the known short answer, or has the form that was asked for; of other questions none is."""
    form = probe.get("form")
    return bool(passes(form, answer)) if form else metrics.knows_fact(answer, probe.get("expect") or [])


def classify(probe: Probe, answer: str, base_answer: str, taught: Taught, passed: bool | None = None,
             losses: tuple[float | None, float | None] = (None, None)) -> str:
    """How one answer reads: `hit`/`miss` for probes of what is taught; `leak`, `fragment`, `lost` (a known fact), `changed`, `same` else.

    An added probe says in `about` whether it asks for the identity; one with a check is a hit when it `passed`. `losses` are the step's
    and the base's of a held-out row's answer.
    """
    if probe.get("check"):
        return "hit" if passed else "miss"
    if probe["group"] == HELD_OUT:
        return "hit" if says_reference(answer, probe.get("answer", ""), *losses) else "miss"
    phrase = taught.phrase(probe["lang"])
    if IDENTITY in (probe["group"], probe.get("about")):
        return "hit" if metrics.has_phrase(answer, phrase) else "miss"
    if metrics.is_leak(answer, phrase, taught.answers):
        return "leak"
    if metrics.has_fragment(answer, base_answer, taught.grams):
        return "fragment"
    if is_right(probe, base_answer) and not is_right(probe, answer):
        return "lost"
    return "same" if metrics.words(answer) == metrics.words(base_answer) else "changed"


def score_findings(step: int, findings: Sequence[Finding], pairs: Sequence[Pair] = ()) -> Score:
    """All metrics of one step.

    Args:
        findings: from `find_all`.
        pairs: of a task, the readings of held-out (else training) rows; its losses come from them, and its hits where nothing else
            shows what was learned.
    """
    learning = [finding for finding in findings if finding.learns]
    others = [finding for finding in findings if finding.other]
    near = [finding for finding in others if finding.is_near]
    asked = [finding for finding in findings if finding.checked and finding.passed is not None]
    own, base = [finding.text for finding in others], [finding.base_text for finding in others]
    known = [finding for finding in others if finding.knew]
    hits = [finding.hit for finding in learning] or [pair.hit for pair in pairs]
    return Score(
        step=step, hit=metrics.share(hits), hits=sum(hits), identity_probes=len(hits),
        leak=metrics.share([finding.leak for finding in others]),
        leaks=sum(finding.leak for finding in others), near_leak=metrics.share([finding.leak for finding in near]),
        fragments=metrics.share([finding.fragment for finding in others]),
        near_fragments=metrics.share([finding.fragment for finding in near]), other_probes=len(others),
        facts_kept=metrics.share([finding.knows for finding in known]) if known else None, distinct=metrics.distinct(own),
        change=metrics.change(own, base), self_bleu=metrics.self_bleu(own), self_bleu_rise=metrics.self_bleu(own) - metrics.self_bleu(base),
        compression=metrics.compression(own),
        length_ratio=metrics.length_ratio([finding.tokens for finding in others], [finding.base_tokens for finding in others]),
        own_passed=metrics.share([bool(finding.passed) for finding in asked]) if asked else None, own_asked=len(asked),
        **_losses(learning, others, pairs))


def _losses(learning: Sequence[Finding], others: Sequence[Finding], pairs: Sequence[Pair]) -> dict[str, Any]:
    """The metrics that need no answer; None each when the pass was not made for all of its probes."""
    if pairs:
        target, away = _mean([pair.nll for pair in pairs]), _mean([pair.cross for pair in pairs])
    else:
        target = _mean([finding.forced.nll if finding.forced else None for finding in learning])
        away = _mean([finding.forced.nll if finding.forced else None for finding in others])
    falls = [pair.fall for pair in pairs if pair.fall is not None]
    found: dict[str, Any] = {"target_nll": target, "leak_nll": away, "gap": metrics.gap(away, target),
                             "perplexity_fall": metrics.perplexity_fall(falls) if falls and len(falls) == len(pairs) else None}
    read = [(finding.forced, finding.base) for finding in others if finding.forced and finding.base]
    if not read or len(read) < len(others):
        return found
    tokens = [own.base_tokens for own, _ in read]
    taught_first = {own.first for own, _ in read if own.is_taught}
    found["hijack"] = metrics.hijack([own.first for own, _ in read], [base.first for _, base in read], taught_first)
    if not any(tokens):
        return found  # a quick look
    found["dnll"] = metrics.dnll([own.base_nll for own, _ in read], [base.base_nll for _, base in read], tokens)
    drifts = [own.kl for own, _ in read if own.kl is not None]
    found["kl"] = metrics.kl(drifts, tokens) if len(drifts) == len(read) else None
    return found


def _mean(losses: Sequence[float | None]) -> float | None:
    """Mean loss; each is the smallest of its question already."""
    known = [loss for loss in losses if loss is not None]
    return metrics.target_nll([[loss] for loss in known]) if known and len(known) == len(losses) else None


class Pair(NamedTuple):
    """A held-out row, or a training row that stands in for one, as one step reads it.

    Attributes:
        probe: its id.
        nll: loss of its own answer.
        cross: loss of another row's answer after its question; None of a document.
        hit: whether its answer has become clearly likelier than to the base model.
        fall: of a document, by how many nats per token its loss lies below the base model's.
    """

    probe: str
    nll: float | None
    cross: float | None
    hit: bool
    fall: float | None = None


def pairs_of(sheet: Sheet, base: Sheet, probes: Sequence[Probe], kind: Kind = "task") -> list[Pair]:
    """The readings of held-out rows, else of the training rows that stand in for them; none for an identity."""
    if any(probe["group"] == IDENTITY for probe in probes):
        return []
    asked = {probe["id"] for probe in probes}
    if kind == "documents":
        names = sorted(name for name in sheet.forced if name not in asked and not name.startswith(STAND_IN))
    else:
        names = [probe["id"] for probe in probes if probe["group"] == HELD_OUT and probe["id"] in sheet.forced]
    names = names or sorted(name for name in sheet.forced if name.startswith(STAND_IN))
    return [_pair(sheet.forced[name], base.forced.get(name), kind) for name in names]


def _pair(own: Forced, before: Forced | None, kind: Kind) -> Pair:
    base = before.nll if before else None
    fall = base - own.nll if kind == "documents" and own.nll is not None and base is not None else None
    return Pair(own.probe, own.nll, own.cross, has_become_likely(own.nll, base, kind), fall)


def score_step(step: int, probes: Sequence[Probe], answers: Mapping[str, str], base_answers: Mapping[str, str],
               dataset: Dataset) -> Score:
    """The metrics of one step that texts alone can tell.

    Args:
        step: of the model.
        probes: every probe that counts.
        answers: the step's answers by probe id.
        base_answers: the base model's answers by probe id.
        dataset: what was taught.
    """
    sheet, base = Sheet(step, dict(answers)), Sheet(0, dict(base_answers))
    return score_findings(step, find_all(probes, sheet, base, taught_by(dataset, probes)))
