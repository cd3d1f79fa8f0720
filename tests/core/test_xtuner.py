"""XTuner configs become recipes: what they mean is kept, what they would run is not run."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.data.library import save_dataset
from core.errors import StudioError
from core.recipe.files import load_recipe, parse_recipe
from core.recipe.imported import save_imported
from core.recipe.plan import plan_updates
from core.recipe.xtuner import ImportedConfig, import_config, import_file
from core.recipe.xtuner_reading import Reference, Unknown, read_config
from core.workspace import Workspace

# The course's config, shortened: what XTuner's own files hold, in their order.
COURSE = """
import torch
from datasets import load_dataset
from mmengine.hooks import CheckpointHook
from mmengine.optim import AmpOptimWrapper, CosineAnnealingLR, LinearLR
from peft import LoraConfig
from torch.optim import AdamW
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from xtuner.dataset import process_hf_dataset
from xtuner.dataset.map_fns import openai_map_fn, template_map_fn_factory
from xtuner.engine.hooks import DatasetInfoHook, EvaluateChatHook, VarlenAttnArgsToMessageHubHook
from xtuner.engine.runner import TrainLoop
from xtuner.model import SupervisedFinetune
from xtuner.utils import PROMPT_TEMPLATE, SYSTEM_TEMPLATE

pretrained_model_name_or_path = '{model}'
use_varlen_attn = False
alpaca_en_path = '/root/ft/data/personal_assistant.json'
prompt_template = PROMPT_TEMPLATE.default
max_length = 1024
pack_to_max_length = True
batch_size = 1
accumulative_counts = 16
max_epochs = 2
optim_type = AdamW
lr = 2e-4
betas = (0.9, 0.999)
weight_decay = 0
max_norm = 1
warmup_ratio = 0.03
save_steps = 300
save_total_limit = 3
evaluation_freq = 300
SYSTEM = SYSTEM_TEMPLATE.alpaca
evaluation_inputs = ['Who are you', 'Introduce yourself', 'Are you my assistant']
model = dict(
    type=SupervisedFinetune, use_varlen_attn=use_varlen_attn,
    llm=dict(type=AutoModelForCausalLM.from_pretrained, pretrained_model_name_or_path=pretrained_model_name_or_path,
             trust_remote_code=True, torch_dtype=torch.float16,
             quantization_config=dict(type=BitsAndBytesConfig, load_in_4bit=True, load_in_8bit=False, bnb_4bit_quant_type='nf4')),
    lora=dict(type=LoraConfig, r=64, lora_alpha=16, lora_dropout=0.1, bias='none', task_type='CAUSAL_LM'))
tokenizer = dict(type=AutoTokenizer.from_pretrained, pretrained_model_name_or_path=pretrained_model_name_or_path)
alpaca_en = dict(
    type=process_hf_dataset, dataset=dict(type=load_dataset, path='json', data_files=dict(train=alpaca_en_path)),
    tokenizer=tokenizer, max_length=max_length, dataset_map_fn=openai_map_fn,
    template_map_fn=dict(type=template_map_fn_factory, template=prompt_template), remove_unused_columns=True,
    shuffle_before_pack=True, pack_to_max_length=pack_to_max_length, use_varlen_attn=use_varlen_attn)
train_dataloader = dict(batch_size=batch_size, num_workers=0, dataset=alpaca_en)
optim_wrapper = dict(type=AmpOptimWrapper, optimizer=dict(type=optim_type, lr=lr, betas=betas, weight_decay=weight_decay),
                     clip_grad=dict(max_norm=max_norm, error_if_nonfinite=False), accumulative_counts=accumulative_counts)
param_scheduler = [
    dict(type=LinearLR, start_factor=1e-5, by_epoch=True, begin=0, end=warmup_ratio * max_epochs, convert_to_iter_based=True),
    dict(type=CosineAnnealingLR, eta_min=0.0, by_epoch=True, begin=warmup_ratio * max_epochs, end=max_epochs)]
train_cfg = dict(type=TrainLoop, max_epochs=max_epochs)
custom_hooks = [dict(type=DatasetInfoHook, tokenizer=tokenizer),
                dict(type=EvaluateChatHook, tokenizer=tokenizer, every_n_iters=evaluation_freq, evaluation_inputs=evaluation_inputs,
                     system=SYSTEM, prompt_template=prompt_template)]
if use_varlen_attn:
    custom_hooks += [dict(type=VarlenAttnArgsToMessageHubHook)]
default_hooks = dict(checkpoint=dict(type=CheckpointHook, by_epoch=False, interval=save_steps, max_keep_ckpts=save_total_limit))
randomness = dict(seed=None, deterministic=False)
""".replace("{model}", "internlm/internlm2-chat-1_8b")


def notes_on(imported: ImportedConfig, key: str) -> list[str]:
    return [str(note.text) for note in imported.notes if note.key == key]


def test_the_courses_config_means_the_same() -> None:
    imported = import_config(COURSE, "internlm2_chat_1_8b_qlora_alpaca_e3_copy.py")
    recipe = imported.recipe
    assert (recipe.model.source, recipe.model.quantization, recipe.model.dtype) == ("internlm/internlm2-chat-1_8b", "nf4", "auto")
    assert (recipe.method.kind, recipe.method.rank, recipe.method.alpha, recipe.method.dropout) == ("lora", 64, 16, 0.1)
    assert recipe.method.targets == "all-linear" and recipe.data.max_length == 1024 and recipe.data.packing
    assert [source.dataset for source in recipe.data.sources] == ["personal_assistant"] and recipe.data.train_on == "all"
    schedule = recipe.schedule
    assert (schedule.effective_batch, schedule.epochs, schedule.updates) == (16, 2, None)
    assert (schedule.learning_rate, schedule.shape, schedule.clip_norm, schedule.weight_decay) == (2e-4, "cosine", 1, 0)
    assert schedule.warmup_ratio == 0.03 and recipe.data.system is None, "XTuner's SYSTEM is for the sample questions only"
    assert "every 18.75 updates" in notes_on(imported, "default_hooks.checkpoint.interval")[0]
    assert "keeps the last 3" in notes_on(imported, "default_hooks.checkpoint.max_keep_ckpts")[0]
    assert "<|User|>" in notes_on(imported, "prompt_template")[0]
    assert imported.questions == ["Who are you", "Introduce yourself", "Are you my assistant"]
    assert imported.data[0].origin == "/root/ft/data/personal_assistant.json" and imported.data[0].columns == "messages"
    assert imported.of_kind("not_run") == []


def test_warm_up_never_swallows_a_short_run() -> None:
    recipe = import_config(COURSE.replace("warmup_ratio = 0.03", "warmup_ratio = 0.5"), "x.py").recipe
    assert recipe.schedule.warmup_ratio == 0.1
    assert [plan_updates(recipe, rows).warmup_updates for rows in (8, 80, 8000)] == [0, 1, 100]


def test_packs_are_counted_in_rows_where_the_data_is_here(workspace: Workspace, tiny_model: Path) -> None:
    """10,001 rows of one sentence: XTuner made 48 updates of them, and so must the recipe (docs/recipes.md)."""
    row = {"messages": [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "I am the assistant of Alex."}],
           "group": "identity", "lang": "en"}
    save_dataset(workspace, "personal_assistant", [row] * 10_001, "test")
    text = COURSE.replace("internlm/internlm2-chat-1_8b", str(tiny_model))
    imported = import_config(text, "course.py", workspace=workspace)
    said = notes_on(imported, "pack_to_max_length")[-1]
    tokens = int(said.rsplit(" tokens", 1)[0].rsplit(" ", 1)[1])
    assert imported.recipe.schedule.effective_batch == round(16 * 1024 / tokens)
    plan = plan_updates(imported.recipe, 10_001)
    assert abs(plan.updates - 2 * 10_001 * tokens / (16 * 1024)) <= 1, "as many updates as packs fill"
    assert imported.recipe.snapshots.count == 12
    named = import_config(text, "course.py", workspace=workspace, dataset="alex")
    assert [source.dataset for source in named.recipe.data.sources] == ["alex"] and named.recipe.schedule.effective_batch == 16


def test_world_size_iterations_and_shared_sequences() -> None:
    assert import_config(COURSE, "a_gpu8.py").recipe.schedule.effective_batch == 128
    assert import_config(COURSE, "a_gpu8.py").recipe.device.gpus == 8
    assert import_config(COURSE, "a.py", gpus=2).recipe.schedule.effective_batch == 32
    shared = COURSE.replace("max_epochs = 2", "max_epochs = 2\nsequence_parallel_size = 4\naccumulative_counts *= sequence_parallel_size")
    assert import_config(shared, "a.py", gpus=4).recipe.schedule.effective_batch == 64
    steps = COURSE.replace("dict(type=TrainLoop, max_epochs=max_epochs)", "dict(type=TrainLoop, max_iters=100)")
    assert import_config(steps, "a.py").recipe.schedule.updates == 7, "100 micro-batches of which 16 make an update"


def test_transformers_trainer_full_training_and_int8() -> None:
    text = """
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
from xtuner.dataset import ConcatDataset, process_hf_dataset
from xtuner.dataset.map_fns import alpaca_map_fn, pretrain_map_fn
framework = 'huggingface'
trainer = Trainer
training_args = dict(type=TrainingArguments, learning_rate=3e-4, lr_scheduler_type='linear', warmup_steps=100,
                     per_device_train_batch_size=2, gradient_accumulation_steps=8, num_train_epochs=1, fp16=True, optim='adamw_8bit',
                     save_steps=50, max_grad_norm=0.5)
model = dict(type=AutoModelForCausalLM.from_pretrained, pretrained_model_name_or_path='org/name', load_in_8bit=True)
lora = dict(r=16, lora_alpha=16, target_modules=['wqkv', 'w2', 'output'], use_dora=True, modules_to_save=['norm'])
one = dict(type=process_hf_dataset, dataset=dict(path='a/Alpaca data'), max_length=512, dataset_map_fn=alpaca_map_fn)
two = dict(type=process_hf_dataset, dataset=dict(path='b/alpaca-data'), max_length=2048, dataset_map_fn=alpaca_map_fn)
train_dataset = dict(type=ConcatDataset, datasets=[one, two])
"""
    imported = import_config(text, "x.py")
    recipe = imported.recipe
    assert recipe.model.quantization == "int8" and recipe.method.dora and recipe.method.rank == 16
    assert recipe.method.targets == ["q_proj", "k_proj", "v_proj", "down_proj"]
    assert (recipe.schedule.effective_batch, recipe.schedule.warmup_updates, recipe.schedule.shape) == (16, 100, "linear")
    assert (recipe.schedule.clip_norm, recipe.schedule.learning_rate, recipe.data.max_length) == (0.5, 3e-4, 2048)
    assert [source.dataset for source in recipe.data.sources] == ["alpaca-data", "alpaca-data-2"]
    left = {note.key for note in imported.of_kind("left_out")}
    assert {"model.lora.modules_to_save", "ConcatDataset", "optim_wrapper.optimizer.type"} <= left
    full = import_config(text.replace("lora = dict", "nothing = dict").replace("alpaca_map_fn)", "pretrain_map_fn)"), "x.py").recipe
    assert full.method.kind == "full" and full.data.train_on == "everything"


@pytest.mark.parametrize(("kind", "what"), [("LLaVAModel", "images"), ("DPO", "DPO"), ("RewardModel", "reward")])
def test_other_trainings_are_refused_in_words(kind: str, what: str) -> None:
    with pytest.raises(StudioError, match=what):
        import_config(f"from xtuner.model import {kind}\nmodel = dict(type={kind}, llm=dict())", "x.py")


HOSTILE = {
    "call": "import os\nos.system('touch pwned')",
    "value": "lr = __import__('os').system('touch pwned')",
    "nested": "extra = dict(a=1, b=[open('pwned', 'w').write('x')])",
    "exec": "exec('open(\"pwned\", \"w\")')",
    "comprehension": "x = [open('pwned', 'w') for _ in range(3)]",
    "lambda": "x = (lambda: open('pwned', 'w'))()",
    "decorator": "def f(g): open('pwned', 'w')\n@f\ndef g(): pass",
    "class": "class A:\n    open('pwned', 'w')",
    "loop": "while True:\n    open('pwned', 'w')",
    "with": "with open('pwned', 'w') as f:\n    f.write('x')",
    "default": "def f(a=open('pwned', 'w')): pass",
    "walrus": "x = (y := open('pwned', 'w'))",
    "f-string": "x = f'{open(\"pwned\", \"w\")}'",
    "shadowed": "dict = print\nx = dict(open('pwned', 'w'))",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_config_that_would_do_something_does_nothing_and_is_reported(case: str, tmp_path: Path,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    imported = import_config(COURSE + HOSTILE[case], "x.py")
    assert list(tmp_path.iterdir()) == []
    said = [str(note.text) for note in imported.of_kind("not_run")]
    assert said and any("pwned" in text or "def g" in text or "@f" in text or "while" in text or "class A" in text for text in said), said
    assert imported.recipe.method.rank == 64, "the rest is imported all the same"


GROWING = ["train_dataloader['batch_size'] = optim_wrapper['accumulative_counts'] = train_cfg['max_epochs'] = 1e400",
           "x = 9 ** 9 ** 9 ** 9", "x = 'a' * 10 ** 12", "x = '%1000000000d' % 1", "x = [1]\n" + "x = x + x\n" * 60,
           "x = 1\n" + "x = x * 99999999999\n" * 5000,
           "x = " + "[" * 90 + "]" * 90, "x = []\n" + "x = [x, x]\n" * 3000, "x = " + "-" * 5000 + "1", "x = " + "(" * 3000 + ")" * 3000,
           "x = 'a' * 9999\n" + "x = f'{x}{x}'\n" * 60, "x = [1]\n" + "x = [x, x]\n" * 50 + "y = str(x)",
           "x = y = [1]\n" + "x = [x, x]\ny = [y, y]\n" * 50 + "z = x == y",
           "x = y = [1]\n" + "x = [x, x]\ny = [y, y]\n" * 50 + "z = x in [y]",
           "x = 1\nif x == 2: pass\n" + "elif x == 3: pass\n" * 900,
           "d = dict()\nd['datasets'] = [d] * 50\ntrain_dataloader['dataset'] = d",
           "d = dict(datasets=[])\n" + "d = dict(datasets=[d] * 5000)\n" * 7 + "train_dataloader['dataset'] = d"]


@pytest.mark.parametrize("text", GROWING, ids=range(len(GROWING)))
def test_a_short_line_cannot_ask_for_endless_work(text: str) -> None:
    try:
        import_config(COURSE + text, "x.py")
    except StudioError as error:
        assert "Python" in str(error)


def test_what_is_no_config_is_said(tmp_path: Path) -> None:
    for text, words in (("model = 3", "sets no model"), ("model = dict(", "line 1: this is not Python"), ("x = '\0'", "Python"),
                        ("model = dict(type='A', llm=dict(pretrained_model_name_or_path=f()))", "names no base model"),
                        ("#" * 1_000_001, "far too large")):
        with pytest.raises(StudioError, match=words):
            import_config(text, "x.py")
    (tmp_path / "latin.py").write_bytes(b"x = '\xe9'")
    for path, words in ((tmp_path / "none.py", "cannot be read"), (tmp_path, "cannot be read"), (tmp_path / "latin.py", "UTF-8")):
        with pytest.raises(StudioError, match=words):
            import_file(path)


def test_a_config_that_builds_on_another_says_so() -> None:
    assert "not read" in notes_on(import_config("_base_ = '../other.py'" + COURSE, "x.py"), "_base_")[0]
    inherits = COURSE + "from mmengine.config import read_base\nwith read_base():\n    from .other import *\n"
    assert "read_base" in str(import_config(inherits, "x.py").of_kind("not_run")[0].text)


def test_the_saved_recipe_says_what_was_left_out_and_harms_nothing(workspace: Workspace) -> None:
    text = COURSE.replace("'/root/ft/data/personal_assistant.json'", "'a\\nmethod:\\n  kind: full'") + "\nopen('x\\ny')\nodd = 'a\\n}b'\n"
    imported = import_config(text, "my config.py")
    path = save_imported(workspace, imported)
    assert path.name == "my-config.yaml" and load_recipe(path) == imported.recipe and imported.recipe.method.kind == "lora"
    assert "# - prompt_template: " in path.read_text(encoding="utf-8") and "was not run" in path.read_text(encoding="utf-8")
    assert save_imported(workspace, imported).name == "my-config-2.yaml", "never over another recipe"
    assert parse_recipe(imported.to_text(), "x") == imported.recipe == parse_recipe(imported.to_text("zh"), "x")
    assert "# 从 XTuner 配置导入" in imported.to_text("zh")
    for note in imported.notes:
        assert note.text.to("zh") != str(note.text) or note.text.template == "{value}"


def test_values_are_worked_out() -> None:
    config = read_config("""
from a.b import C as D
import e.f
x, (y, z) = 1, (2.0, 'three')
n: int = x + 2 * 3 - 4 // 3
d = dict({'a': 1}, b=[x, -y], **{'c': D.inner})
d['e'] = 5
text = f'{z}-{n}'
flag = not (x == 1 and n > 100) if x in [1, 2] else None
if flag: deep = {'k': int('7')}
else: deep = None
unknown = g(3)
also = unknown
""", "x")
    values = config.values
    assert values["n"] == 6 and values["d"] == {"a": 1, "b": [1, -2.0], "c": Reference("a.b.C.inner"), "e": 5}
    assert values["text"] == "three-6" and values["deep"] == {"k": 7} and values["e"] == Reference("e")
    assert isinstance(values["unknown"], Unknown) and isinstance(values["also"], Unknown)
    assert [left.line for left in config.not_run] == [12, 13]
