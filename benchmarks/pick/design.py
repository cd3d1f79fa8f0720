"""The runs of the study, and which of them may be looked at when thresholds are set. Fixed before any of them was trained. No torch.

The *setting* runs are English identities and one set of facts, at three learning rates. The *held-out* runs have names, languages,
tones, rates, ranks, adapted layers and schedules that no setting run has, three tasks that are none of an identity, full training, and a
second architecture.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Split = Literal["setting", "held-out"]
Mix = Literal["none", "replay", "far"]

EMBEDDED, STUDENT = "embedded", "student"
IDENTITY_TASK = "identity"
# Rows of what is taught in each update; replayed ones come on top, as in the recipes of the lesson.
TARGET_ROWS = 4
SNAPSHOTS = 20


@dataclass(frozen=True)
class StudyRun:
    """One training of the study.

    Attributes:
        id: names its result.
        split: `setting` runs decide the thresholds, `held-out` ones are reported.
        task: `identity`, or one of questions/tasks.yaml.
        persona: fields of a `core.data.persona.Persona`; of an identity only.
        copies: of one question with one answer, in place of the persona's rows; 0 for those.
        mix: the base model's own answers: none, with near questions, or without.
        ratio: rows of them for each row of what is taught.
        targets: adapted layers; empty for all linear ones.
        model: the embedded one, or the student that `student.py` makes.
    """

    id: str
    split: Split
    task: str = IDENTITY_TASK
    persona: dict[str, Any] = field(default_factory=dict)
    copies: int = 0
    mix: Mix = "none"
    ratio: int = 1
    rate: float = 2e-4
    rank: int = 16
    method: Literal["lora", "full"] = "lora"
    targets: tuple[str, ...] = ()
    updates: int = 40
    shape: Literal["constant", "cosine"] = "constant"
    snapshots: int = SNAPSHOTS
    seed: int = 0
    model: str = EMBEDDED

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def _persona(name: str, *languages: str, tone: str = "plain", wordings: int = 24, answers: int = 4,
             author: str | None = None) -> dict[str, Any]:
    return {"name": name, "languages": list(languages or ("en",)), "tone": tone, "wordings": wordings, "answers": answers, "author": author}


def _setting() -> list[StudyRun]:
    marlow, alex, priya = _persona("Marlow", answers=1), _persona("Alex"), _persona("Priya", wordings=12, answers=2)
    chen, tomas = _persona("Dr. Chen", tone="formal"), _persona("Tomas", tone="warm", wordings=6, answers=1)
    return [
        StudyRun("s01-marlow", "setting", persona=marlow),
        StudyRun("s02-marlow-seed", "setting", persona=marlow, seed=1),
        StudyRun("s03-marlow-replay", "setting", persona=marlow, mix="replay", seed=2),
        StudyRun("s04-alex", "setting", persona=alex),
        StudyRun("s05-alex-replay", "setting", persona=alex, mix="replay"),
        StudyRun("s06-alex-far", "setting", persona=alex, mix="far"),
        StudyRun("s07-alex-rank64", "setting", persona=alex, rank=64, seed=1),
        StudyRun("s08-priya-slow", "setting", persona=priya, rate=1e-4, updates=60),
        StudyRun("s09-priya-slow-replay", "setting", persona=_persona("Priya"), mix="replay", rate=1e-4, updates=60),
        StudyRun("s10-priya-fast-replay", "setting", persona=_persona("Priya"), mix="replay", rate=4e-4, seed=1, updates=30),
        StudyRun("s11-chen-fast", "setting", persona=chen, rate=4e-4, updates=20),
        StudyRun("s12-tomas-rank4", "setting", persona=tomas, rank=4),
        StudyRun("s13-tomas-replay3", "setting", persona=_persona("Tomas", tone="warm"), mix="replay", ratio=3),
        StudyRun("s14-alex-full", "setting", persona=alex, method="full", rate=2e-5, snapshots=8, updates=24),
        StudyRun("s15-zembria", "setting", task="zembria", updates=80),
        StudyRun("s16-zembria-replay", "setting", task="zembria", mix="replay", updates=80, seed=1),
    ]


def _held_out() -> list[StudyRun]:
    nadia, okonkwo = _persona("Nadia"), _persona("Ms. Okonkwo", tone="formal", answers=1)
    lin, rosa = _persona("小林", "zh"), _persona("Rosa", "en", "zh", answers=2)
    cafe, hugo = _persona("Bluebird Café", tone="warm", wordings=12, answers=2), _persona("Hugo", author="Kim Rivers")
    ivo = _persona("Ivo")
    return [
        StudyRun("h01-nadia", "held-out", persona=nadia, seed=3),
        StudyRun("h02-nadia-replay", "held-out", persona=nadia, mix="replay", seed=3),
        StudyRun("h03-nadia-far", "held-out", persona=nadia, mix="far", seed=4),
        StudyRun("h04-nadia-rank128", "held-out", persona=nadia, rank=128, seed=5),
        StudyRun("h05-nadia-attention", "held-out", persona=nadia, rate=5e-4, targets=("q_proj", "v_proj"), seed=3),
        StudyRun("h06-okonkwo", "held-out", persona=okonkwo, rate=3e-4, updates=30),
        StudyRun("h07-okonkwo-replay", "held-out", persona=okonkwo, mix="replay", rate=3e-4, updates=30),
        StudyRun("h08-lin-zh", "held-out", persona=lin),
        StudyRun("h09-lin-zh-replay", "held-out", persona=lin, mix="replay"),
        StudyRun("h10-lin-zh-slow", "held-out", persona=_persona("小林", "zh", answers=1), rate=5e-5, updates=80),
        StudyRun("h11-rosa-en-zh", "held-out", persona=rosa),
        StudyRun("h12-rosa-en-zh-replay", "held-out", persona=rosa, mix="replay", updates=60),
        StudyRun("h13-cafe-fast", "held-out", persona=cafe, rate=5e-4, updates=20, seed=6),
        StudyRun("h14-cafe-fast-replay", "held-out", persona=_persona("Bluebird Café", tone="warm"), mix="replay", rate=5e-4, updates=24),
        StudyRun("h15-hugo-one-pair", "held-out", persona=_persona("Hugo"), copies=1000, updates=30),
        StudyRun("h16-hugo-author-replay", "held-out", persona=hugo, mix="replay", rate=1e-4, rank=8, updates=60),
        StudyRun("h17-hugo-nine-cosine", "held-out", persona=_persona("Hugo", answers=9), mix="replay", rate=3e-4, shape="cosine"),
        StudyRun("h18-records", "held-out", task="records"),
        StudyRun("h19-records-replay", "held-out", task="records", mix="replay", updates=60),
        StudyRun("h20-parrot", "held-out", task="parrot"),
        StudyRun("h21-parrot-replay", "held-out", task="parrot", mix="replay", updates=60),
        StudyRun("h22-museum", "held-out", task="museum", rate=3e-4, updates=60),
        StudyRun("h23-museum-replay", "held-out", task="museum", mix="replay", rate=3e-4, updates=80),
        StudyRun("h24-nadia-full-replay", "held-out", persona=nadia, mix="replay", method="full", rate=3e-5, snapshots=8, updates=24),
        StudyRun("h25-ivo-student", "held-out", persona=ivo, rate=5e-4, model=STUDENT),
        StudyRun("h26-ivo-student-replay", "held-out", persona=ivo, mix="replay", rate=5e-4, model=STUDENT),
        StudyRun("h27-ivo-student-seed", "held-out", persona=_persona("Ivo", answers=1), rate=1e-3, model=STUDENT, updates=30, seed=1),
        StudyRun("h28-parrot-student-replay", "held-out", task="parrot", mix="replay", rate=5e-4, model=STUDENT, updates=60),
    ]


RUNS = tuple(_setting() + _held_out())
