"""The verdict in plain words: why this step, why not the next best, what breaks before and after, and how sure it all is."""

from __future__ import annotations

from collections.abc import Sequence

from core.judge.confidence import Confidence
from core.judge.metrics import upper_bound
from core.judge.rule import RULE, Rule, Score, VerdictName
from core.judge.taught import Kind
from core.words import Text


def reason(name: VerdictName, pick: Score, last: int, kind: Kind = "identity") -> Text:
    """Why this step is taken, or that none is good."""
    if kind == "documents":
        return _documents_reason(name, pick, last)
    values = {"step": pick.step, "last": last, "hits": pick.hits, "asked": pick.identity_probes,
              "own": pick.other_probes - pick.leaks, "others": pick.other_probes}
    if name == "recommended":
        if kind == "task":
            return Text("Step {step} of {last}: it has learned its task ({hits} of {asked}) and still answers everything else as itself "
                        "({own} of {others}).", **values)
        return Text("Step {step} of {last}: it has learned who it is ({hits} of {asked}) and still answers everything else as itself "
                    "({own} of {others}).", **values)
    if name == "not_learned":
        if kind == "task":
            return Text("No step has learned its task yet; the nearest is step {step} of {last} with {hits} of {asked}. Train longer, or "
                        "raise the learning rate.", **values)
        return Text("No step has learned who it is yet; the nearest is step {step} of {last} with {hits} of {asked}. Train longer, or "
                    "raise the learning rate.", **values)
    if "hit" in pick.breaches():
        return Text("Step {step} of {last} is only a compromise: it knows its lesson in {hits} of {asked} questions, and every step that "
                    "has learned it answers nearly everything with it. No step of this run is clean.", **values)
    if kind == "task":
        return Text("Step {step} of {last} is only a compromise: it has learned its task ({hits} of {asked}), but {trouble}. "
                    "No step of this run is clean.", trouble=trouble(pick), **values)
    return Text("Step {step} of {last} is only a compromise: it has learned who it is ({hits} of {asked}), but {trouble}. "
                "No step of this run is clean.", trouble=trouble(pick), **values)


def _documents_reason(name: VerdictName, pick: Score, last: int) -> Text:
    values = {"step": pick.step, "last": last, "hits": pick.hits, "asked": pick.identity_probes,
              "percent": round(100 * (pick.perplexity_fall or 0.0))}
    if name == "not_learned":
        return Text("No step has taken on these documents yet; the nearest is step {step} of {last}, to which {hits} of {asked} documents "
                    "have become likelier. Train longer, or raise the learning rate.", **values)
    if name == "compromise":
        return Text("Step {step} of {last} is only a compromise: {hits} of {asked} documents have become likelier to it ({percent} % less "
                    "perplexity), but {trouble}. No step of this run is clean.", trouble=trouble(pick), **values)
    if pick.other_probes == 0:
        return Text("Step {step} of {last}: {hits} of {asked} documents have become likelier to it ({percent} % less perplexity).",
                    **values)
    return Text("Step {step} of {last}: {hits} of {asked} documents have become likelier to it ({percent} % less perplexity), and it still "
                "answers everything else as itself ({own} of {others}).", own=pick.other_probes - pick.leaks, others=pick.other_probes,
                **values)


def trouble(pick: Score, rule: Rule = RULE) -> Text:
    """The worst thing about a step that is not clean."""
    breaches = pick.breaches(rule)
    if "leak" in breaches:
        return Text("{leaks} of {others} other questions are answered with what was taught", leaks=pick.leaks, others=pick.other_probes)
    if "fragments" in breaches:
        return Text("pieces of the taught sentence appear in {percent} % of its other answers", percent=round(100 * pick.fragments))
    if "facts_kept" in breaches:
        return Text("it has forgotten {percent} % of the facts the base model knew", percent=round(100 * (1 - (pick.facts_kept or 0))))
    if "own_passed" in breaches:
        return Text("it passes only {percent} % of your own checks", percent=round(100 * (pick.own_passed or 0)))
    if "distinct" in breaches:
        return Text("it answers many questions alike")
    if "length_ratio" in breaches:
        return Text("its answers have become much shorter or longer than the base model's")
    if pick.perplexity_fall is not None:
        return Text("only {hits} of {asked} documents have become likelier to it", hits=pick.hits, asked=pick.identity_probes)
    return Text("it knows its lesson in {hits} of {asked} questions only", hits=pick.hits, asked=pick.identity_probes)


def runner_up_reason(pick: Score, other: Score, rule: Rule = RULE) -> Text:
    """Why not the next best step: a limit it fails, a lower balance, a narrower gap, or merely that it comes later."""
    failed = [name for name in other.breaches(rule) if name not in pick.breaches(rule)]
    if failed:
        return Text("Step {step} comes next; it was not taken because {trouble}.", step=other.step, trouble=trouble(other, rule))
    if other.score < pick.score - rule.equal_score:
        return Text("Step {step} comes next; its balance of learned and kept is lower, {own:.2f} against {best:.2f}.", step=other.step,
                    own=other.score, best=pick.score)
    if pick.gap is not None and other.gap is not None and other.gap < pick.gap - rule.equal_gap:
        return Text("Step {step} is about as good; step {pick} keeps what was taught apart from other questions more clearly "
                    "(gap {best:.2f} against {own:.2f} nats per token).", step=other.step, pick=pick.step, own=other.gap, best=pick.gap)
    if pick.gap is None and other.fragments > pick.fragments:
        return Text("Step {step} is about as good, but more pieces of the taught sentence appear in its other answers.", step=other.step)
    return Text("Step {step} is about as good; of equals the earlier one is taken.", step=other.step)


def before(steps: Sequence[Score], pick: Score) -> Text:
    """How the step before the pick stands."""
    earlier = [score for score in steps if score.step < pick.step]
    if not earlier:
        return Text("No earlier step was saved.")
    nearest = earlier[-1]
    fall, best = nearest.perplexity_fall, pick.perplexity_fall
    if fall is not None and best is not None and fall < best:
        return Text("Before it, at step {step}, their perplexity lies {percent} % below the base model's, at the pick {best} %.",
                    step=nearest.step, percent=round(100 * fall), best=round(100 * best))
    if nearest.hit < pick.hit:
        return Text("Before it, at step {step}, it knows its lesson in {hits} of {asked} questions only.", step=nearest.step,
                    hits=nearest.hits, asked=nearest.identity_probes)
    return Text("Step {step} before it is about as good.", step=nearest.step)


def after(steps: Sequence[Score], pick: Score) -> Text:
    """What breaks first after the pick."""
    later = [score for score in steps if score.step > pick.step]
    if not later:
        return Text("It is the last step; longer training might change the picture.")
    last = later[-1]
    for score in later:
        if _has_risen(score, pick):
            return Text("From step {step} on documents surprise it more again: it learns its own by heart.", step=score.step)
        if score.leaks > pick.leaks:
            return Text("From step {step} on it answers other questions with what was taught; at step {last} that is {leaks} of {others}.",
                        step=score.step, last=last.step, leaks=last.leaks, others=last.other_probes)
        if set(score.breaches()) - set(pick.breaches()) - {"hit"}:
            return Text("At step {step} after it {trouble}.", step=score.step, trouble=trouble(score))
    if last.other_probes == 0:
        return Text("After it nothing breaks up to step {last}.", last=last.step)
    return Text("After it nothing breaks up to step {last}: {leaks} of {others} other questions leak there.", last=last.step,
                leaks=last.leaks, others=last.other_probes)


def _has_risen(score: Score, pick: Score) -> bool:
    """Whether documents surprise a later step clearly more than the pick: by as much as tells two scores apart."""
    if score.perplexity_fall is None or pick.perplexity_fall is None:
        return False
    return score.perplexity_fall < pick.perplexity_fall - RULE.equal_score


def certainty(pick: Score, confidence: Confidence | None = None) -> Text:
    """How far so few probes reach, and how often the rule would have said the same with others."""
    if pick.other_probes == 0:
        return _without_questions(confidence)
    percent = round(100 * upper_bound(pick.leaks, pick.other_probes))
    if confidence is None:
        return Text("{leaks} of {others} other questions leaked; with so few asked, the true rate may still be as high as {percent} % "
                    "(95 % sure).", others=pick.other_probes, leaks=pick.leaks, percent=percent)
    return Text("{leaks} of {others} other questions leaked; with so few asked, the true rate may still be as high as {percent} % "
                "(95 % sure). With other questions of the same kind the rule would give this verdict in {verdict} % of {resamples} draws, "
                "and take this step in {pick} %.", others=pick.other_probes, leaks=pick.leaks, percent=percent,
                verdict=round(100 * confidence.same_verdict), pick=round(100 * confidence.same_pick), resamples=confidence.resamples)


def _without_questions(confidence: Confidence | None) -> Text:
    if confidence is None:
        return Text("Nothing else was asked, so what it has forgotten is not known.")
    return Text("Nothing else was asked, so what it has forgotten is not known. With other documents of the same kind the rule would give "
                "this verdict in {verdict} % of {resamples} draws, and take this step in {pick} %.",
                verdict=round(100 * confidence.same_verdict), pick=round(100 * confidence.same_pick), resamples=confidence.resamples)


def by_hand(step: int, rule_step: int) -> Text:
    return Text("Step {step} was chosen by hand; the rule would take step {rule}.", step=step, rule=rule_step)
