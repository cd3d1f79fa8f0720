"""Every config that XTuner 0.2.0 comes with: nearly all that train a language model become recipes."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from core.errors import StudioError
from core.recipe.xtuner import import_file

# Folders of the wheel whose configs train a model that sees images; their other files are converters, not configs.
SEEING = {"llava", "internvl"}


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("xtuner")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), "xtuner==0.2.0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    wheels = list(folder.glob("*.whl"))
    if not wheels:
        pytest.skip(f"the wheel xtuner==0.2.0 cannot be had here: {done.stderr.strip()[-200:]}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        wheel.extractall(folder)
    return [path for path in sorted((folder / "xtuner" / "configs").rglob("*.py")) if path.name != "__init__.py"]


@pytest.mark.slow
def test_nearly_every_config_of_a_language_model_becomes_a_recipe(configs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.exec", None)
    monkeypatch.setattr("builtins.eval", None)
    assert len(configs) == 593
    wanted = [path for path in configs if path.parts[path.parts.index("configs") + 1] not in SEEING]
    imported, refused = {}, {}
    for path in wanted:
        try:
            imported[path] = import_file(path)
        except StudioError as error:
            refused[path] = str(error)
    assert len(wanted) == 533 and len(imported) == 513, "96 % of the language models"
    assert all("preferences" in reason or "reward model" in reason for reason in refused.values()), refused
    for path, found in imported.items():
        text, recipe = re.sub(r"#.*", "", path.read_text(encoding="utf-8")), found.recipe
        assert not found.of_kind("not_run"), f"{path.name}: nothing in these files does anything"
        assert recipe.model.source in text and recipe.schedule.warmup_ratio <= 0.1
        assert (recipe.method.kind == "full") == ("LoraConfig" not in text), path.name
        assert (recipe.model.quantization == "nf4") == ("load_in_4bit=True" in text), path.name
        lengths = re.findall(r"max_length = (\d+)(?: \* (\d+))?", text)
        assert recipe.data.max_length in {int(one) * int(other or 1) for one, other in lengths} or not lengths, path.name


@pytest.mark.slow
def test_models_that_see_are_refused(configs: list[Path]) -> None:
    seeing = [path for path in configs if path.parts[path.parts.index("configs") + 1] in SEEING]
    assert len(seeing) == 60
    for path in seeing:
        with pytest.raises(StudioError, match="sees images|sets no model"):
            import_file(path)
