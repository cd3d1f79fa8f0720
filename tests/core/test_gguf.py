"""GGUF: what is written, loaded back by transformers, is the same model; what cannot be said in the format is refused."""

from __future__ import annotations

import shutil
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from core.convert.gguf_export import export_gguf, interleave_halves
from core.convert.gguf_job import LARGEST_SHIFT, check_file, gguf_job, refuse_another_model
from core.convert.gguf_vocabulary import read_vocabulary
from core.convert.ollama import FAMILIES, modelfile, ollama_family
from core.convert.start import start_gguf
from core.data.encode import Encoder
from core.errors import StudioError
from core.jobs.folder import JobState
from core.jobs.worker import Recorder
from core.models.gguf_reading import load_gguf, read_gguf_header
from core.workspace import Workspace, read_json, write_json

LLAMA3 = ("{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] }}<|eot_id|>"
          "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}")
INTERNLM2 = ("{{ bos_token }}{% for m in messages %}"
             "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
             "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
LLAMA2 = ("{% for m in messages %}{% if m.role == 'system' %}{% elif m.role == 'user' %}{{ bos_token + '[INST] ' }}"
          "{% if loop.index0 == 1 and messages[0].role == 'system' %}{{ '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' }}{% endif %}"
          "{{ m.content + ' [/INST]' }}{% else %}{{ ' ' + m.content + ' </s>' }}{% endif %}{% endfor %}")


def export(folder: Path, target: Path, form: str) -> Path:
    export_gguf(folder, target, form, "tiny", lambda done, total: None)
    return target


@pytest.mark.parametrize("form", ["f32", "f16", "q8_0"])
def test_what_is_loaded_back_is_the_same_model(form: str, tiny_model: Path, tmp_path: Path) -> None:
    file = export(tiny_model, tmp_path / "a.gguf", form)
    check = check_file(tiny_model, file, 1)
    refuse_another_model(check, form)
    assert check.same_ids and check.spread > 0.01 and check.prompts == 4
    assert check.largest_difference <= {"f32": 1e-5, "f16": 0.01 * check.spread, "q8_0": LARGEST_SHIFT["q8_0"] * check.spread}[form]
    header = read_gguf_header(file)
    assert (header["architecture"], header["context_tokens"], header["has_chat_template"]) == ("llama", 512, True)
    assert header["dtype"] == {"f32": "F32", "f16": "F16", "q8_0": "Q8_0"}[form]


def test_a_wrong_order_of_rows_is_noticed(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.convert.gguf_export.interleave_halves", lambda rows, heads: rows)
    check = check_file(tiny_model, export(tiny_model, tmp_path / "a.gguf", "f16"), 1)
    with pytest.raises(StudioError, match="The GGUF file was not kept"):
        refuse_another_model(check, "f16")


def test_rows_are_interleaved_within_each_head() -> None:
    rows = np.arange(8)  # two heads of width 4: 0 and 2 are a pair, 1 and 3
    assert interleave_halves(rows, 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_the_job_leaves_file_modelfile_and_report_or_nothing(workspace: Workspace, tiny_model: Path, tmp_path: Path,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.convert.start.start_job", lambda job: None)
    shutil.copytree(tiny_model, workspace.models / "alex")
    job = start_gguf(workspace, "alex", "f16")
    recorder = Recorder(job, JobState(kind="gguf", created=0))
    result = gguf_job(workspace, job, recorder)
    folder = workspace.root / "exports" / "alex-f16"
    assert {path.name for path in folder.iterdir()} == {"alex-f16.gguf", "Modelfile", "export.json"}
    assert read_json(folder / "export.json")["check"] == result["check"] and result["check"]["same_ids"]
    with pytest.raises(StudioError, match="exists already"):
        start_gguf(workspace, "alex", "f16")
    monkeypatch.setattr("core.convert.gguf_job.refuse_another_model", lambda *_: (_ for _ in ()).throw(StudioError("No.", "No.")))
    job = start_gguf(workspace, "alex", "f16", str(tmp_path / "other"))
    with pytest.raises(StudioError):
        gguf_job(workspace, job, recorder)
    assert not list(tmp_path.glob("*other*"))
    for model, form, words in (("alex", "q4", "no GGUF format q4"), ("run@2", "f16", "is a checkpoint"),
                               ("nobody", "f16", "No model is called")):
        with pytest.raises(StudioError, match=words):
            start_gguf(workspace, model, form)


def test_what_the_format_cannot_say_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "tiny")
    config = read_json(folder / "config.json")
    for changes, words in (({"model_type": "gpt2"}, "type gpt2 cannot be written"), ({"tie_word_embeddings": False}, "no output head"),
                           ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2}}, "by yarn")):
        write_json(folder / "config.json", config | changes)
        with pytest.raises(StudioError, match=words):
            export(folder, tmp_path / "a.gguf", "f16")
    tokenizer = read_json(folder / "tokenizer.json")
    for changes in ({"pre_tokenizer": {"type": "Whitespace"}}, {"model": {"type": "WordPiece", "vocab": {}}}):
        write_json(folder / "tokenizer.json", tokenizer | changes)
        with pytest.raises(StudioError, match="no name in llama.cpp"):
            read_vocabulary(folder, 400)


def test_a_tokenizer_with_byte_fallback_gets_scores_in_the_order_of_its_merges(tmp_path: Path) -> None:
    write_json(tmp_path / "tokenizer.json", {
        "model": {"type": "BPE", "byte_fallback": True, "unk_token": "<unk>", "merges": [["a", "b"], ["ab", "c"], ["▁", "ab"]],
                  "vocab": {"<unk>": 0, "<0x0A>": 1, "a": 2, "b": 3, "c": 4, "▁": 5, "ab": 6, "abc": 7, "▁ab": 8}},
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}]},
        "added_tokens": [{"id": 9, "content": "<|im_end|>", "special": True}]})
    vocabulary = read_vocabulary(tmp_path, 11)
    assert (vocabulary.model, vocabulary.adds_space, vocabulary.tokens[9:]) == ("llama", True, ["<|im_end|>", "[PAD10]"])
    assert vocabulary.types == [2, 6, 1, 1, 1, 1, 1, 1, 1, 3, 5]
    assert vocabulary.scores[6] > vocabulary.scores[7] > vocabulary.scores[8] > vocabulary.scores[2]


def with_template(folder: Path, template: str, bos: str = "<|endoftext|>") -> Encoder:
    whole = Encoder.from_folder(folder)
    return Encoder(whole.tokenizer, template, whole.special | {"bos_token": bos}, whole.end_ids)


@pytest.mark.parametrize(("template", "family", "bos"), [
    (INTERNLM2, "ChatML", "<s>"), (LLAMA3, "Llama 3", "<|begin_of_text|>"), (LLAMA2, "Llama 2", "<s>")])
def test_the_family_of_a_template_is_found_by_what_it_writes(template: str, family: str, bos: str, tiny_model: Path) -> None:
    found, default = ollama_family(with_template(tiny_model, template, bos))
    assert (found.name, default) == (family, None)


def test_the_modelfile_of_a_template_that_adds_a_system_text(tiny_model: Path) -> None:
    encoder = Encoder.from_folder(tiny_model)
    text = modelfile(encoder, "tiny.gguf")
    assert "FROM ./tiny.gguf\n" in text and 'SYSTEM """You are a tiny assistant made for tests"""' in text
    assert 'PARAMETER stop "<|im_end|>"' in text and FAMILIES[0].go in text
    assert 'SYSTEM """Be brief."""' in modelfile(Encoder.from_folder(tiny_model, "Be brief."), "tiny.gguf")
    with pytest.raises(StudioError, match="cannot say"):
        modelfile(Encoder.from_folder(tiny_model, 'a """ b'), "tiny.gguf")


def test_go_templates_write_what_their_families_write(tiny_model: Path) -> None:
    """The two templates that only loop, worked out by hand as Go does: `{{-` takes the white space before it."""
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"},
                {"role": "user", "content": "R"}]
    for family in FAMILIES[:2]:
        body, rest = family.go.removeprefix("{{- range .Messages }}").split("{{ end }}")
        turns = [body.replace("{{ .Role }}", m["role"]).replace("{{ .Content }}", m["content"]) for m in messages]
        assert "".join(turns) + rest == family.write(messages)


@pytest.mark.parametrize("template", ["{% for m in messages %}{{ m.content }}\n{% endfor %}",
                                      INTERNLM2.replace("'\n' + m", "' ' + m"), "Today. " + INTERNLM2])
def test_other_templates_are_refused_for_ollama(template: str, tiny_model: Path) -> None:
    with pytest.raises(StudioError, match="of no family that can be written for Ollama"):
        ollama_family(with_template(tiny_model, template))


def test_values_beyond_sixteen_bits_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_model, tmp_path / "tiny")
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    save_file(tensors | {name: torch.full_like(tensors[name], 70_000.0)}, folder / "model.safetensors")
    with pytest.raises(StudioError, match="beyond what 16-bit floats hold"):
        export(folder, tmp_path / "a.gguf", "f16")


def gguf_with(kind: int, value: bytes, tensors: int = 0, pairs: int = 1) -> bytes:
    """The head of a GGUF file with one pair."""
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, pairs) + struct.pack("<Q", 1) + b"a" + struct.pack("<I", kind) + value


@pytest.mark.parametrize("head", [
    gguf_with(9, struct.pack("<IQ", 0, 2**62)),  # a list of numbers that is longer than the file
    gguf_with(9, struct.pack("<IQ", 0, 6_000_000) + bytes(6_000_000)),  # each would become an object of its own
    gguf_with(9, struct.pack("<IQ", 8, 2**40)), gguf_with(9, struct.pack("<IQ", 9, 1) * 3000),
    gguf_with(8, struct.pack("<Q", 2**63)), gguf_with(4, bytes(4), pairs=2**60), gguf_with(4, bytes(4), tensors=2**60),
    gguf_with(4, bytes(4), tensors=1) + struct.pack("<Q", 1) + b"t" + struct.pack("<I", 2**31), b"GGUF", b"GGUF" + bytes(20)],
    ids=["endless list", "long list", "endless texts", "lists in lists", "endless text", "pairs", "tensors", "dimensions", "magic",
         "zeros"])
def test_a_gguf_file_that_says_what_cannot_be_is_refused_at_once(head: bytes, tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    file.write_bytes(head)
    began = time.thread_time()
    for read in (read_gguf_header, load_gguf):
        with pytest.raises(StudioError, match="is cut off or damaged"):
            read(file)
    assert time.thread_time() - began < 5
