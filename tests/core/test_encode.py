"""One encoder: the ids that are trained, previewed, scored, chatted and compared are the same ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from core.data.encode import Encoder
from core.errors import StudioError

QUESTION = [{"role": "user", "content": "Who are you?"}]
TURNS = [*QUESTION, {"role": "assistant", "content": "I am the assistant of Alex."},
         {"role": "user", "content": "你是谁？ And who made you?"}, {"role": "assistant", "content": "我是小助手，由小明训练。"}]


def reference(tiny_model: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


def trained_text(encoder: Encoder, encoded) -> list[str]:
    """The trained tokens, run by run, as text with special tokens."""
    runs: list[list[int]] = []
    for index, (token, trained) in enumerate(zip(encoded.ids, encoded.trained, strict=True)):
        if trained:
            if index == 0 or not encoded.trained[index - 1]:
                runs.append([])
            runs[-1].append(token)
    return [encoder.tokenizer.decode(run, skip_special_tokens=False) for run in runs]


@pytest.mark.parametrize("messages", [TURNS[:2], TURNS, [{"role": "system", "content": "Be brief."}, *TURNS]])
def test_ids_are_those_of_transformers(tiny_model, messages):
    encoder, tokenizer = Encoder.from_folder(tiny_model), reference(tiny_model)
    assert encoder.encode(messages).ids == tokenizer.apply_chat_template(messages, return_dict=False)
    prompt = messages[:-1]
    assert encoder.encode_prompt(prompt) == tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)


def test_a_prompt_is_the_beginning_of_its_conversation(tiny_model):
    encoder = Encoder.from_folder(tiny_model)
    prompt, whole = encoder.encode_prompt(QUESTION), encoder.encode(TURNS[:2])
    assert whole.ids[:len(prompt)] == prompt
    assert whole.trained.index(True) == len(prompt)


def test_answers_and_their_end_token_are_trained_and_nothing_else(tiny_model):
    encoder = Encoder.from_folder(tiny_model)
    assert trained_text(encoder, encoder.encode(TURNS)) == [TURNS[1]["content"] + "<|im_end|>", TURNS[3]["content"] + "<|im_end|>"]
    assert trained_text(encoder, encoder.encode(TURNS, "last")) == [TURNS[3]["content"] + "<|im_end|>"]
    assert all(encoder.encode(TURNS, "everything").trained)


def test_a_broken_off_answer_does_not_teach_to_stop(tiny_model):
    encoder = Encoder.from_folder(tiny_model)
    messages = [QUESTION[0], {"role": "assistant", "content": "I am the", "cut": True}]
    assert trained_text(encoder, encoder.encode(messages)) == ["I am the"]


def test_too_long_rows_are_cut_at_the_end_and_say_so(tiny_model):
    encoder = Encoder.from_folder(tiny_model)
    whole = encoder.encode(TURNS)
    cut = encoder.encode(TURNS, max_length=20)
    assert (cut.ids, cut.cut_tokens) == (whole.ids[:20], len(whole.ids) - 20)


def test_special_tokens_never_show_in_an_answer(tiny_model):
    encoder = Encoder.from_folder(tiny_model)
    ids = encoder.encode(TURNS[:2]).ids
    assert "<|" not in encoder.decode(ids) and "Alex" in encoder.decode(ids)


def test_a_system_text_of_the_recipe_comes_first(tiny_model):
    with_text = Encoder.from_folder(tiny_model, system="Be brief.")
    by_hand = Encoder.from_folder(tiny_model).encode_prompt([{"role": "system", "content": "Be brief."}, *QUESTION])
    assert with_text.encode_prompt(QUESTION) == by_hand


def test_end_tokens_are_united(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2]}))
    assert set(Encoder.from_folder(folder).end_ids) == {0, 2}
    # three sources, three tokens: the tokenizer's, the generation config's, and the one that the template closes a turn with
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": "<|endoftext|>"}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 7}))
    assert Encoder.from_folder(folder).end_ids == (0, 7, 2)
    (folder / "generation_config.json").unlink()
    assert Encoder.from_folder(folder).end_ids == (0, 2)


@pytest.mark.parametrize(("spoil", "word"), [
    (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json"),
    (lambda folder: (folder / "chat_template.jinja").write_text("{% for %}"), "template"),
])
def test_a_folder_that_cannot_chat_says_why(tiny_model, tmp_path, spoil, word):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    spoil(folder)
    with pytest.raises(StudioError, match=word):
        Encoder.from_folder(folder)


def test_a_hostile_template_reaches_nothing(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(StudioError, match="refuses"):
        Encoder.from_folder(folder).render(QUESTION)


def test_every_user_of_the_encoder_sees_the_same_ids(tiny_model, trained_run, monkeypatch):
    """Training, preview, scoring, chat and the merge check, each through its own code, on one conversation."""
    from core.chat.engine import Engine
    from core.chat.stacked import Adapter
    from core.chat.voices import Voices
    from core.data.encode import hash_ids
    from core.data.library import load_dataset
    from core.judge.asking import Asking
    from core.merge.verify import verify_merge
    from core.train.rows import read_sources

    workspace, run = trained_run
    row = load_dataset(workspace, "tiny").rows(["identity"])[0]
    question = row["messages"][:1]
    seen: list[list[int]] = []
    monkeypatch.setattr(Engine, "answer", lambda self, rows, *_: [seen.append(item.prompt) or _nothing() for item in rows])
    probe = {"id": "x", "group": "identity", "lang": "en", "messages": question}

    list(Asking(workspace, run, Encoder.from_folder(tiny_model)).answer([(0, probe)]))  # scoring
    Voices(workspace, [str(tiny_model)]).answer([question], 4)                        # chat
    verify_merge(tiny_model, Adapter("a", run.checkpoints()[-1].folder), tiny_model, [probe], 0, "float32", None, 4, "cpu")  # merge
    assert len(seen) == 4 and len({hash_ids(ids) for ids in seen}) == 1

    preview = Encoder.from_folder(tiny_model).encode(row["messages"])                 # data preview
    recipe = run.recipe()
    source = read_sources(workspace, recipe, Encoder.from_folder(tiny_model, recipe.data.system))[0]
    assert preview.ids in [encoded.ids for encoded in source.rows]                    # training
    assert preview.ids[:len(seen[0])] == seen[0]


def _nothing():
    from core.chat.engine import Answer

    return Answer([], True)
