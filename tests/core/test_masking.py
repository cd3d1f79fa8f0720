"""What is trained, for five families of chat templates, against texts written out here by hand.

Each family is written a second time as a plain Python function that gives the conversation as pieces, (text, trained or not). It shares
nothing with the encoder: no template, no offsets, no search for end tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.encode import Encoder
from core.errors import StudioError

FOLDER = Path(__file__).parent / "templates"
Pieces = list[tuple[str, bool]]
Messages = list[dict]
CONTROL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
           "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]",
           "<bos>", "<start_of_turn>", "<end_of_turn>"]
# family -> (begin, end) token
ENDS = {"chatml": ("<s>", "<|im_end|>"), "llama3": ("<|begin_of_text|>", "<|eot_id|>"), "mistral": ("<s>", "</s>"),
        "gemma": ("<bos>", "<end_of_turn>"), "qwen_thinking": ("<s>", "<|im_end|>")}


def dumped(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def split_system(messages: Messages) -> tuple[str | None, Messages]:
    return (messages[0]["content"], messages[1:]) if messages[0]["role"] == "system" else (None, messages)


def chatml(messages: Messages, tools: list) -> Pieces:
    system, talk = split_system(messages)
    shown = (f"{system}\n\n" if system else "") + "Tools:" + "".join("\n" + dumped(tool) for tool in tools) if tools else system
    pieces = [(f"<|im_start|>system\n{shown}<|im_end|>\n", False)] if shown else []
    for message in talk:
        calls = "".join(f"<tool_call>{dumped(call['function'])}</tool_call>" for call in message.get("tool_calls", []))
        is_answer = message["role"] == "assistant"
        pieces += [(f"<|im_start|>{message['role']}\n", False), (f"{message['content']}{calls}<|im_end|>", is_answer), ("\n", False)]
    return pieces


def llama3(messages: Messages, tools: list) -> Pieces:
    system, talk = split_system(messages)
    head = "<|start_header_id|>{}<|end_header_id|>\n\n"
    pieces = [("<|begin_of_text|>", False)]
    if system:
        pieces.append((f"{head.format('system')}{system}<|eot_id|>", False))
    for place, message in enumerate(talk):
        if message["role"] == "tool":
            pieces.append((f"{head.format('ipython')}{dumped(message['content'])}<|eot_id|>", False))
        elif message.get("tool_calls"):
            call = message["tool_calls"][0]["function"]
            said = f'{{"name": "{call["name"]}", "parameters": {dumped(call["arguments"])}}}'
            pieces += [(head.format("assistant"), False), (f"{said}<|eot_id|>", True)]
        elif message["role"] == "assistant":
            pieces += [(head.format("assistant"), False), (f"{message['content'].strip()}<|eot_id|>", True)]
        else:
            functions = f"Functions: {dumped(tools)}\n\n" if tools and place == 0 else ""
            pieces.append((f"{head.format('user')}{functions}{message['content'].strip()}<|eot_id|>", False))
    return pieces


def mistral(messages: Messages, tools: list) -> Pieces:
    system, talk = split_system(messages)
    pieces = [("<s>", False)]
    last = max(place for place, message in enumerate(talk) if message["role"] == "user")
    for place, message in enumerate(talk):
        if message["role"] == "user":
            shown = f"[AVAILABLE_TOOLS] {dumped(tools)}[/AVAILABLE_TOOLS]" if tools and place == last else ""
            opening = f"{system}\n\n" if system and place == last else ""
            pieces.append((f"{shown}[INST] {opening}{message['content']}[/INST]", False))
        elif message["role"] == "tool":
            pieces.append((f"[TOOL_RESULTS] {message['content']}[/TOOL_RESULTS]", False))
        elif message.get("tool_calls"):
            pieces.append((f"[TOOL_CALLS] [{''.join(dumped(call['function']) for call in message['tool_calls'])}]</s>", True))
        else:
            pieces.append((f" {message['content']}</s>", True))
    return pieces


def gemma(messages: Messages, tools: list) -> Pieces:
    system, talk = split_system(messages)
    pieces = [("<bos>", False)]
    for place, message in enumerate(talk):
        opening = f"{system}\n\n" if system and place == 0 else ""
        if message["role"] == "assistant":
            pieces += [("<start_of_turn>model\n", False), (f"{message['content'].strip()}<end_of_turn>", True), ("\n", False)]
        else:
            pieces.append((f"<start_of_turn>user\n{opening}{message['content'].strip()}<end_of_turn>\n", False))
    return pieces


def qwen_thinking(messages: Messages, tools: list) -> Pieces:
    system, talk = split_system(messages)
    shown = (f"{system}\n\n" if system else "") + "# Tools\n<tools>" + "".join("\n" + dumped(tool) for tool in tools) + "\n</tools>" \
        if tools else system
    pieces = [(f"<|im_start|>system\n{shown}<|im_end|>\n", False)] if shown else []
    last = max(place for place, message in enumerate(talk) if message["role"] == "user")
    for place, message in enumerate(talk):
        if message["role"] == "user":
            pieces.append((f"<|im_start|>user\n{message['content']}<|im_end|>\n", False))
        elif message["role"] == "tool":
            before = "<|im_start|>user" if talk[place - 1]["role"] != "tool" else ""
            after = "" if place + 1 < len(talk) and talk[place + 1]["role"] == "tool" else "<|im_end|>\n"
            pieces.append((f"{before}\n<tool_response>\n{message['content']}\n</tool_response>{after}", False))
        else:
            thought, mark, said = message["content"].rpartition("</think>")
            thought, said = thought.replace("<think>", "").strip("\n"), said.lstrip("\n") if mark else said
            calls = "".join(f"\n<tool_call>\n{dumped(call['function'])}\n</tool_call>" for call in message.get("tool_calls", []))
            is_thinking = place > last and (place == len(talk) - 1 or thought)
            opening = f"<think>\n{thought}\n</think>\n\n" if is_thinking else ""
            pieces += [("<|im_start|>assistant\n", False), (f"{opening}{said}{calls}<|im_end|>", True), ("\n", False)]
    return pieces


FAMILIES: dict[str, Callable[[Messages, list], Pieces]] = {
    "chatml": chatml, "llama3": llama3, "mistral": mistral, "gemma": gemma, "qwen_thinking": qwen_thinking}


@pytest.fixture(scope="module")
def encoders() -> dict[str, Encoder]:
    """One byte tokenizer that knows the control tokens of all families, with each family's template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(["Who are you? I am Alex. What is the weather in Paris? system user assistant model tool"],
                                  trainers.BpeTrainer(vocab_size=340, special_tokens=CONTROL, show_progress=False,
                                                      initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return {name: Encoder(tokenizer, (FOLDER / f"{name}.jinja").read_text(encoding="utf-8"),
                          {"bos_token": begin, "eos_token": end}, [tokenizer.token_to_id(end)]) for name, (begin, end) in ENDS.items()}


def check(encoder: Encoder, messages: Messages, pieces: Pieces, tools: list | None = None) -> None:
    encoded = encoder.encode(messages, tools=tools)
    assert encoded.text == "".join(text for text, _ in pieces)
    expected_ids, expected_trained = [], []
    for text, trained in merged(pieces):  # piece by piece: no token of ours reaches over the border of a piece
        ids = encoder.tokenizer.encode(text, add_special_tokens=False).ids
        expected_ids += ids
        expected_trained += [trained] * len(ids)
    assert encoded.ids == expected_ids
    assert encoded.trained == expected_trained


def merged(pieces: Pieces) -> Pieces:
    joined: Pieces = []
    for text, trained in pieces:
        if joined and joined[-1][1] == trained:
            joined[-1] = (joined[-1][0] + text, trained)
        else:
            joined.append((text, trained))
    return joined


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def bot(text: str, *calls: dict) -> dict:
    return {"role": "assistant", "content": text, **({"tool_calls": list(calls)} if calls else {})}


SYSTEM = {"role": "system", "content": "Be brief."}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
RESULT = {"role": "tool", "content": "rain"}
CASES: dict[str, tuple[Messages, list]] = {
    "one_turn": ([user("Who?"), bot("I am Alex.")], []),
    "two_turns": ([user("Who?"), bot("I am Alex."), user("你是谁？"), bot("我是小助手。")], []),
    "three_turns_with_the_same_answer": ([user("a"), bot("Yes."), user("b"), bot("Yes."), user("Yes."), bot("Yes.")], []),
    "system": ([SYSTEM, user("Who?"), bot("I am Alex.")], []),
    "system_two_turns": ([SYSTEM, user("Who?"), bot("I am Alex."), user("And?"), bot("Nobody.\n\nElse.")], []),
    "short_answer": ([user("i"), bot("i"), user("m"), bot("m")], []),
    "tool": ([user("Rain?"), bot("", CALL), RESULT, bot("Yes.")], TOOLS),
    "tool_and_system": ([SYSTEM, user("Rain?"), bot("", CALL), RESULT, bot("Yes."), user("Thanks"), bot("Bye.")], TOOLS),
    "two_results": ([user("Rain?"), bot("", CALL), RESULT, {"role": "tool", "content": "wind"}, bot("Both.")], TOOLS),
    "thought": ([user("Who?"), bot("<think>\nHm.\n</think>\n\nI am Alex.")], []),
    "thoughts_of_earlier_turns": ([user("Who?"), bot("<think>\nA long thought, longer than the answer.\n</think>\n\nAlex."), user("And?"),
                                   bot("<think>\nHm.\n</think>\n\nNobody.")], []),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", CASES)
def test_exactly_the_answers_are_trained(encoders: dict[str, Encoder], family: str, case: str) -> None:
    messages, tools = CASES[case]
    if family == "gemma" and tools:  # it has no tools
        with pytest.raises(StudioError, match="must alternate"):
            encoders[family].encode(messages, tools=tools)
        return
    check(encoders[family], messages, FAMILIES[family](messages, tools), tools)
    assert any(encoders[family].encode(messages, tools=tools).trained)


WORDS = st.text(st.sampled_from("abc xyz,.!?你好\n"), min_size=1, max_size=12).filter(lambda text: text == text.strip() and text)
TALKS = st.tuples(st.booleans(), st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4))


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=40, deadline=None)
@given(talk=TALKS)
def test_any_conversation(encoders: dict[str, Encoder], family: str, talk: tuple[bool, list[tuple[str, str]]]) -> None:
    has_system, pairs = talk
    messages = ([SYSTEM] if has_system else []) + [turn for asked, said in pairs for turn in (user(asked), bot(said))]
    check(encoders[family], messages, FAMILIES[family](messages, []))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_turn_only_and_turns_that_are_only_read(encoders: dict[str, Encoder], family: str) -> None:
    messages, _ = CASES["system_two_turns"]
    pieces = FAMILIES[family](messages, [])
    answers = [place for place, (_, trained) in enumerate(pieces) if trained]
    last_only = [(text, place == answers[-1]) for place, (text, _) in enumerate(pieces)]
    encoder = encoders[family]
    marked = [message if place != 2 else {**message, "train": False} for place, message in enumerate(messages)]
    assert encoder.encode(messages, "last").trained == encoder.encode(marked).trained
    check(encoder, marked, last_only)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_broken_off_answer_is_trained_up_to_its_last_word(encoders: dict[str, Encoder], family: str) -> None:
    encoder = encoders[family]
    encoded = encoder.encode([user("Who?"), {**bot("I am the"), "cut": True}])
    ids = [token for token, trained in zip(encoded.ids, encoded.trained, strict=True) if trained]
    said = encoder.tokenizer.decode(ids, skip_special_tokens=False)
    assert said.endswith("I am the") and ENDS[family][1] not in said


def test_a_document_is_trained_whole_and_ends(encoders: dict[str, Encoder]) -> None:
    encoder = encoders["mistral"]
    encoded = encoder.encode_row({"text": "Once upon a time."})
    assert encoded.text == "Once upon a time.</s>" and all(encoded.trained) and encoded.ids[-1] == encoder.end_ids[0]
    assert encoder.encode_row({"text": "Once upon a time."}, max_length=3).cut_tokens == len(encoded.ids) - 3
    row = {"messages": CASES["tool"][0], "tools": TOOLS}
    assert encoder.encode_row(row) == encoder.encode(row["messages"], tools=TOOLS)


@pytest.mark.parametrize(("adds", "text"), [("<s> $A", "<s>Once.</s>"), ("$A </s>", "Once.</s>"), ("<s> $A </s>", "<s>Once.</s>")])
def test_a_document_begins_as_the_tokenizer_begins_texts(encoders: dict[str, Encoder], adds: str, text: str) -> None:
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    encoder = encoders["mistral"]
    tokenizer = Tokenizer.from_str(encoder.tokenizer.to_str())
    control = [(name, tokenizer.token_to_id(name)) for name in ("<s>", "</s>")]
    tokenizer.post_processor = TemplateProcessing(single=adds, special_tokens=control)
    own = Encoder(tokenizer, encoder.template, encoder.special, encoder.end_ids)
    encoded = own.encode_text("Once.")
    assert encoded.text == text and encoded.ids == tokenizer.encode(text, add_special_tokens=False).ids
    assert encoded.ids.count(encoder.end_ids[0]) == 1 and encoded.ids[-1] == encoder.end_ids[0]
