"""Teacher-forced losses: the tree against rows of their own, many adapters against one, all against transformers by itself."""

from __future__ import annotations

import numpy as np
import pytest

from core.judge.branches import Question, grow

torch = pytest.importorskip("torch")

PROMPTS = [[1, 20, 30, 40, 50, 60, 70], [1, 20, 30, 40, 50, 61], [1, 20, 30, 40, 50, 60, 71, 72, 73]]
ANSWERS = [[100, 101, 102, 103], [100, 101, 110], [120], []]


def test_answers_that_begin_alike_share_their_beginning():
    tree = grow(Question([7, 8], ANSWERS, drift_of=1), read_already=1)
    assert tree.tokens == [8, 100, 101, 102]  # last tokens are predicted, never read
    assert tree.parents == [-1, 0, 1, 2]
    assert tree.sources == [0, 1, 2, 3]
    assert tree.edges == [(0, 100), (1, 101), (2, 102), (3, 103), (2, 110), (0, 120)]
    assert tree.paths == [[0, 1, 2, 3], [0, 1, 4], [5], []]
    assert tree.drift == [0, 1, 2]


def test_a_branch_sees_the_prompt_and_itself_only():
    tree = grow(Question([7], [[1, 2, 3], [4, 5, 6]]))
    assert tree.tokens == [7, 1, 2, 4, 5] and tree.depths() == [0, 1, 2, 1, 2]
    assert tree.visible().astype(int).tolist() == [
        [1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 0, 0, 1, 0], [1, 0, 0, 1, 1]]


def test_answers_are_encoded_in_their_place(tiny_model):
    from core.data.encode import Encoder

    encoder = Encoder.from_folder(tiny_model)
    prompt, answers = encoder.encode_answers([{"role": "user", "content": "Who are you?"}], ["I am Alex.", ""])
    assert encoder.decode(answers[0]) == "I am Alex." and answers[1] == []
    assert encoder.tokenizer.decode(prompt + answers[0], skip_special_tokens=False).endswith("<|im_start|>assistant\nI am Alex.")


@pytest.fixture(scope="module")
def tiny(tiny_model):
    from core.models.load import load_model

    return load_model(tiny_model, torch.float32, "cpu")


def by_transformers(model, prompt, answer):
    """Log-likelihoods of an answer, and the tokens said on the way, from one plain call."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
    at = [len(prompt) - 1 + step for step in range(len(answer))]
    return [float(logits[place, token]) for place, token in zip(at, answer, strict=True)], logits[len(prompt) - 1:].argmax(-1).tolist()


@pytest.mark.parametrize("can_branch", [True, False])
def test_losses_are_those_of_plain_calls(tiny, can_branch):
    from core.judge.forced import Reader, answer_losses

    reader = Reader(tiny, 2)
    reader._can_branch = can_branch
    readings = reader.read([Question(prompt, ANSWERS) for prompt in PROMPTS])[0]
    for prompt, reading in zip(PROMPTS, readings, strict=True):
        for number, answer in enumerate(ANSWERS):
            expected, said = by_transformers(tiny, prompt, answer)
            assert reading.log_probs[number] == pytest.approx(expected, abs=1e-4)
            assert reading.first == said[0]
            agreed = next((step for step, token in enumerate(answer) if said[step] != token), len(answer))
            assert reading.agreed[number] == agreed
    losses = answer_losses(reader, PROMPTS, ANSWERS)
    assert losses.shape == (1, 3, 4) and np.isnan(losses[:, :, 3]).all()
    assert losses[0, 1, 0] == pytest.approx(-np.mean(by_transformers(tiny, PROMPTS[1], ANSWERS[0])[0]), abs=1e-4)


def test_what_a_model_says_itself_is_agreed_with(tiny):
    from core.chat.engine import Engine, Row
    from core.judge.forced import Reader

    said = Engine(tiny, [2], 2).answer([Row(0, prompt) for prompt in PROMPTS], 6)
    readings = Reader(tiny, 2).read([Question(prompt, [answer.ids, [9]]) for prompt, answer in zip(PROMPTS, said, strict=True)])[0]
    assert [reading.agreed[0] for reading in readings] == [len(answer.ids) for answer in said]
    assert [reading.first for reading in readings] == [answer.ids[0] for answer in said]


def test_branching_is_found_to_work_and_given_up_where_it_does_not(tiny, monkeypatch):
    from core.judge.forced import Reader

    reader = Reader(tiny, 2)
    reader.read([Question(PROMPTS[0], ANSWERS)])
    assert reader._can_branch is True
    plain = Reader._tensors
    monkeypatch.setattr(Reader, "_tensors", lambda self, *given: (*plain(self, *given)[:2], None))  # a model deaf to the mask
    deaf = Reader(tiny, 2)
    readings = deaf.read([Question(PROMPTS[0], ANSWERS)])[0]
    assert deaf._can_branch is False
    assert readings[0].log_probs[1] == pytest.approx(by_transformers(tiny, PROMPTS[0], ANSWERS[1])[0], abs=1e-4)


def test_all_adapters_at_once_read_as_each_alone(tiny_model, tmp_path):
    from peft import LoraConfig, get_peft_model

    from core.chat.stacked import Adapter, stack_adapters
    from core.judge.forced import Reader
    from core.models.load import load_model

    folders, alone = [], []
    for seed in range(2):
        torch.manual_seed(seed)
        peft = get_peft_model(load_model(tiny_model, torch.float32, "cpu"), LoraConfig(r=4, target_modules=["q_proj", "down_proj"],
                                                                                      init_lora_weights=False)).eval()
        peft.save_pretrained(tmp_path / str(seed))
        folders.append(tmp_path / str(seed))
        alone.append(Reader(peft, 2).read([Question(prompt, ANSWERS, 0) for prompt in PROMPTS])[0])  # as in training: not stacked
    model = load_model(tiny_model, torch.float32, "cpu")
    alone.insert(0, Reader(model, 2).read([Question(prompt, ANSWERS, 0) for prompt in PROMPTS])[0])
    routing = stack_adapters(model, [Adapter("base"), Adapter("a", folders[0]), Adapter("b", folders[1])])
    together = Reader(model, 2, routing).read([Question(prompt, ANSWERS, 0) for prompt in PROMPTS], [0, 1, 2], reference=0)
    for slot in range(3):
        for one, other in zip(together[slot], alone[slot], strict=True):
            assert (one.first, one.agreed) == (other.first, other.agreed)
            assert sum(one.log_probs, []) == pytest.approx(sum(other.log_probs, []), abs=1e-4)
    assert together[0][0].drift == [0.0] * 4 and min(together[1][0].drift) > 0
    with torch.no_grad():  # the first token's divergence, by torch's own
        both = [model_logits(load_model(tiny_model, torch.float32, "cpu"), None), model_logits(load_model(tiny_model, torch.float32, "cpu"),
                                                                                                 folders[1])]
    expected = torch.nn.functional.kl_div(both[1], both[0], log_target=True, reduction="sum")
    assert together[2][0].drift[0] == pytest.approx(float(expected), abs=1e-4)


def model_logits(model, adapter):
    from peft import PeftModel

    model = PeftModel.from_pretrained(model, adapter).eval() if adapter else model
    return model(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1].log_softmax(-1)
