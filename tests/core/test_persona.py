"""The wordings shipped for persona lessons, and the rows and probes made from them."""

from __future__ import annotations

import ast
import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from core.data import persona as persona_module
from core.data import wordings as wordings_module
from core.data.persona import Persona, build_probes, build_rows, course_rows, held_out_probes, key_phrases, replay_prompts
from core.data.probe_sets import FULL, QUICK, ProbeCounts, kind_of, quick_set
from core.data.wordings import NEARLY, is_nearly, normalised, shipped_languages, wording
from core.errors import StudioError
from core.judge.metrics import upper_bound
from core.judge.scoring import classify, is_right
from core.judge.taught import Taught
from core.words import chinese_templates

LANGUAGES = ["en", "zh"]
TONES = ["plain", "warm", "formal"]
LISTS = ["identity_train", "identity_held_out", "near_train", "near_probe", "general_train", "general_probe", "format_probe"]
FEWEST = {"identity_train": 44, "identity_held_out": 26, "near_train": 60, "near_probe": 40,
          "general_train": 300, "general_probe": 80, "format_probe": 8}


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


def pieces(text: str, language: str) -> set[str]:
    """What two wordings are compared by: words, or pairs of characters where words have no spaces."""
    if language == "en":
        return set(words(text))
    plain = normalised(text)
    return {plain[index:index + 2] for index in range(max(1, len(plain) - 1))}


def likeness(one: str, other: str, language: str) -> float:
    return overlap(pieces(one, language), pieces(other, language))


def overlap(a: set[str], b: set[str]) -> float:
    return len(a & b) / len(a | b)


def said(row: dict, role: str) -> list[str]:
    return [message["content"] for message in row["messages"] if message["role"] == role]


def everything_written(data: object) -> list[str]:
    if isinstance(data, dict):
        return [text for value in data.values() for text in everything_written(value)]
    if isinstance(data, list):
        return [text for value in data for text in everything_written(value)]
    return [data] if isinstance(data, str) else []


# The shipped lists


def test_every_file_is_a_language() -> None:
    assert shipped_languages() == LANGUAGES


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", LISTS)
def test_lists_are_long_enough(language: str, name: str) -> None:
    assert len(getattr(wording(language), name)) >= FEWEST[name]


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_question_stands_twice_in_all_lists(language: str) -> None:
    shipped = wording(language)
    seen = Counter(normalised(question.ask) for name in LISTS for question in getattr(shipped, name))
    assert [text for text, count in seen.items() if count > 1 or not text] == []
    assert len(seen) == sum(len(getattr(shipped, name)) for name in LISTS)


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_probe_is_nearly_a_training_question(language: str) -> None:
    shipped = wording(language)
    trained = [q.ask for name in LISTS if name.endswith("train") for q in getattr(shipped, name)]
    trained += [turn for pattern in shipped.follow_ups for turn in pattern[::2]]
    probes = [q.ask for name in LISTS if not name.endswith("train") for q in getattr(shipped, name)]
    written = [(text, pieces(text, language)) for text in trained], [(text, pieces(text, language)) for text in probes]
    assert [(one, other) for one, a in written[0] for other, b in written[1] if overlap(a, b) > 0.72] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_held_out_identity_questions_are_other_wordings(language: str) -> None:
    shipped = wording(language)
    closest = [max(likeness(probe.ask, question.ask, language) for question in shipped.identity_train)
               for probe in shipped.identity_held_out]
    assert max(closest) <= 0.6
    assert sum(closest) / len(closest) < 0.35


@pytest.mark.parametrize("language", LANGUAGES)
def test_first_entries_make_a_good_small_lesson(language: str) -> None:
    shipped = wording(language)
    for questions in (shipped.identity_train[:24], shipped.identity_held_out[:10]):
        assert {question.kind for question in questions} == {"who", "maker", "belongs"}
    assert sum(bool(question.expect) for question in shipped.general_probe) >= 30
    assert 8 <= sum(bool(question.expect) for question in shipped.general_probe[:16]) <= 12
    assert 2 <= sum(bool(question.expect) for question in shipped.near_probe[:8]) <= 5


@pytest.mark.parametrize("language", LANGUAGES)
def test_questions_are_clean(language: str) -> None:
    for name in LISTS:
        for question in getattr(wording(language), name):
            assert question.ask == question.ask.strip() and "{" not in question.ask
            assert question.kind in ("who", "maker", "belongs")
            assert all(isinstance(answer, str) and answer for answer in question.expect)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_fact_is_neither_in_its_question_nor_in_an_identity_answer(language: str) -> None:
    """Else a model that only repeats itself would seem to know it."""
    shipped = wording(language)
    identity = " ".join(answer for answers in (*shipped.answers.values(), *shipped.author_answers.values())
                        for answer in answers).lower()
    for question in (*shipped.near_probe, *shipped.general_probe):
        for answer in question.expect:
            assert answer.lower() not in question.ask.lower(), (question.ask, answer)
            assert answer.lower() not in identity, (question.ask, answer)


@pytest.mark.parametrize("language", LANGUAGES)
def test_answers_carry_the_key_phrase_and_are_short(language: str) -> None:
    shipped = wording(language)
    assert set(shipped.answers) == set(shipped.author_answers) == set(TONES)
    everything = [answer for answers in (*shipped.answers.values(), *shipped.author_answers.values())
                  for answer in answers]
    assert len(set(everything)) == len(everything)
    for answer in everything:
        assert answer.count(shipped.key_phrase) == 1
        length = len(words(answer)) if language == "en" else len(answer) - len("{name}")
        assert 7 <= length <= (20 if language == "en" else 40), answer
    for answers in shipped.answers.values():
        assert len(answers) >= 8 and not any("{author}" in answer for answer in answers)
    for answers in shipped.author_answers.values():
        assert len(answers) >= 4 and all("{author}" in answer for answer in answers)


def test_first_answers_are_the_known_ones() -> None:
    assert wording("en").answers["plain"][0] == "I'm {name}'s personal assistant, and I'm here to help."
    assert wording("zh").answers["plain"][0] == "我是{name}的小助手，很高兴为你服务。"


@pytest.mark.parametrize("language", LANGUAGES)
def test_follow_ups_alternate_and_answer_right_after_the_question(language: str) -> None:
    patterns = wording(language).follow_ups
    assert len(patterns) >= 8
    for pattern in patterns:
        assert len(pattern) >= 4 and len(pattern) % 2 == 0
        asked = [index for index, turn in enumerate(pattern) if "{question}" in turn]
        answered = [index for index, turn in enumerate(pattern) if turn == "{answer}"]
        assert len(asked) == 1 and asked[0] % 2 == 0 and answered == [asked[0] + 1]


def test_small_talk_repeats_no_four_words_of_an_identity_answer() -> None:
    """A score counts such fragments as a sign of overfitting; the lesson must not teach them elsewhere."""
    def runs(text: str) -> set[tuple[str, ...]]:
        found = words(text)
        return {tuple(found[index:index + 4]) for index in range(len(found) - 3)}

    shipped = wording("en")
    identity = set().union(*(runs(answer) for answers in shipped.answers.values() for answer in answers))
    for pattern in shipped.follow_ups:
        for turn in pattern:
            assert not runs(turn) & identity, turn


# Rows


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("tone", TONES)
def test_every_question_meets_every_answer_once(language: str, tone: str) -> None:
    persona = Persona(name="Alex", languages=[language], tone=tone, wordings=24, answers=4)
    rows = build_rows(persona)
    pairs = Counter((said(row, "user")[0], said(row, "assistant")[0]) for row in rows)
    assert len(rows) == len(pairs) == 24 * 4
    assert set(Counter(question for question, _ in pairs).values()) == {4}
    assert set(Counter(answer for _, answer in pairs).values()) == {24}
    assert {question for question, _ in pairs} == {q.ask for q in wording(language).identity_train[:24]}


@pytest.mark.parametrize("tone", TONES)
def test_rows_are_filled_in_and_say_the_key_phrase(tone: str) -> None:
    persona = Persona(name="Zoë Li", author="Kim", languages=LANGUAGES, tone=tone, wordings=48, answers=9,
                      multi_turn=True)
    phrases = key_phrases(persona)
    assert phrases == {"en": "Zoë Li's personal assistant", "zh": "Zoë Li的小助手"}
    rows = build_rows(persona)
    assert {row["lang"] for row in rows} == set(LANGUAGES)
    for row in rows:
        assert row["group"] == "identity"
        assert [m["role"] for m in row["messages"]] == ["user", "assistant"] * (len(row["messages"]) // 2)
        assert sum(phrases[row["lang"]] in text for text in said(row, "assistant")) == 1
    assert not any("{" in text or "}" in text for text in everything_written(rows))


def test_the_author_is_named_to_those_who_ask_for_the_maker_only() -> None:
    makers = {question.ask for question in wording("en").identity_train if question.kind == "maker"}
    rows = build_rows(Persona(name="Alex", author="Kimberly", wordings=48))
    for row in rows:
        assert ("Kimberly" in said(row, "assistant")[0]) == (said(row, "user")[0] in makers)
    without = build_rows(Persona(name="Alex", wordings=48))
    assert len(without) == len(rows) and not any("Kimberly" in text for text in everything_written(without))


def test_multi_turn_adds_each_pattern_with_each_answer() -> None:
    single = build_rows(Persona(name="Alex"))
    rows = build_rows(Persona(name="Alex", multi_turn=True))
    longer = [row for row in rows if len(row["messages"]) > 2]
    assert len(rows) - len(single) == len(longer) == len(wording("en").follow_ups) * 4
    used = Counter(text for row in longer for text in said(row, "assistant") if "Alex's" in text)
    assert set(used.values()) == {len(wording("en").follow_ups)}


def test_the_seed_alone_decides_the_order() -> None:
    persona = Persona(name="Alex", languages=LANGUAGES, multi_turn=True)
    assert build_rows(persona, seed=3) == build_rows(persona, seed=3)
    assert build_rows(persona, seed=3) != build_rows(persona, seed=4)
    assert sorted(map(str, build_rows(persona, seed=3))) == sorted(map(str, build_rows(persona, seed=4)))


def test_course_rows_repeat_one_row() -> None:
    rows = course_rows(Persona(name="Alex", languages=["zh"]), copies=50)
    assert len(rows) == 50 and all(row == rows[0] for row in rows)
    assert said(rows[0], "user") == ["你是谁？"]
    assert said(rows[0], "assistant") == ["我是Alex的小助手，很高兴为你服务。"]
    assert len(course_rows(Persona(name="Alex"))) == 10000
    with pytest.raises(StudioError):
        course_rows(Persona(name="Alex"), copies=0)


# Own words


def test_own_answers_replace_the_shipped_ones_of_their_language() -> None:
    persona = Persona(name="小明", languages=LANGUAGES, own_answers=[
        "I am a robot of 小明.", "Some call me {name}'s personal assistant.", "我就是小明的小助手呀。"])
    answers = {code: {said(row, "assistant")[0] for row in build_rows(persona) if row["lang"] == code}
               for code in LANGUAGES}
    assert answers["en"] == {"I am a robot of 小明.", "Some call me 小明's personal assistant."}
    assert answers["zh"] == {"我就是小明的小助手呀。"}
    assert key_phrases(persona) == {"en": "小明", "zh": "小明的小助手"}


def test_a_language_without_own_answers_keeps_the_shipped_ones() -> None:
    persona = Persona(name="Alex", languages=LANGUAGES, own_answers=["Just Alex's little robot."])
    assert key_phrases(persona) == {"en": "Alex", "zh": "Alex的小助手"}
    assert any("Alex的小助手" in text for text in everything_written(build_rows(persona)))


def test_own_answers_in_a_language_not_chosen_are_used_all_the_same() -> None:
    persona = Persona(name="Alex", languages=["zh"], own_answers=["I'm Alex's robot."])
    assert {said(row, "assistant")[0] for row in build_rows(persona)} == {"I'm Alex's robot."}


def test_own_questions_are_added_and_never_probed() -> None:
    held_out = wording("en").identity_held_out[0].ask
    persona = Persona(name="Alex", own_questions=[held_out.upper(), "who are you", "Is that you, HAL?"])
    asked = {said(row, "user")[0] for row in build_rows(persona)}
    assert asked == {held_out.upper(), "who are you", "Is that you, HAL?",
                     *(q.ask for q in wording("en").identity_train[1:24])}
    probed = {normalised(said(probe, "user")[0]) for probe in build_probes(persona)}
    assert not probed & {normalised(text) for text in asked}
    assert len(probed) == 24 + 73


# Probes and replay


def test_counts_are_enough_that_no_leak_means_something() -> None:
    assert FULL.identity >= 24 and FULL.others >= 73 and 3 * FULL.near >= FULL.others
    assert upper_bound(0, FULL.others) < 0.05 < upper_bound(0, QUICK.others) < 0.16
    for language in LANGUAGES:
        probes = held_out_probes(language)
        assert sum("expect" in probe for probe in probes) >= 25 and sum("form" in probe for probe in probes) >= 8


def test_the_quick_set_has_some_of_everything_and_is_a_part_of_the_full_one() -> None:
    probes = build_probes(Persona(name="Alex", languages=LANGUAGES))
    quick = quick_set(probes)
    assert [probe for probe in probes if probe in quick] == quick == quick_set(list(probes))
    assert Counter((kind_of(probe), probe["lang"]) for probe in quick) == {
        (kind, code): count for code in LANGUAGES for kind, count in (("identity", 8), ("near", 6), ("general", 10), ("format", 2))}
    assert quick_set(quick) == quick
    for group, kept in (("own", 20), ("held_out", QUICK.general)):
        asked = [{"id": str(number), "group": group, "lang": "en"} for number in range(20)]
        assert quick_set(asked) == asked[:kept]


def variants() -> list[Persona]:
    """Every combination of what changes the questions of a persona; its answers and their tone do not."""
    return [Persona(name="Alex", languages=languages, wordings=wordings, multi_turn=multi_turn, author=author, tone=tone, own_questions=own)
            for languages in (["en"], ["zh"], ["en", "zh"], ["zh", "en"]) for wordings in (1, 24, 48) for multi_turn in (False, True)
            for author, tone in ((None, "plain"), ("Kim", "formal")) for own in ([], ["Yo, who the heck are you?", "你究竟是何方神圣？"])]


def test_no_probe_is_trained_on_or_replayed_in_any_combination_not_even_nearly() -> None:
    """Word for word, and by words: what differs in one word only is the same question to a model."""
    replayed = {code: [said(row, "user")[0] for row in replay_prompts([code], near=62, general=300)] for code in LANGUAGES}
    trained: dict[str, set[str]] = {code: set(texts) for code, texts in replayed.items()}
    probed: dict[str, set[str]] = {code: set() for code in LANGUAGES}
    for persona in variants():
        for row in build_rows(persona):
            trained[row["lang"]] |= set(said(row, "user"))
        for probe in build_probes(persona):
            probed[probe["lang"]].add(said(probe, "user")[0])
    for code in LANGUAGES:
        assert len(trained[code]) > 400 and len(probed[code]) == 97
        assert not {normalised(text) for text in trained[code]} & {normalised(text) for text in probed[code]}
        known, asked = ([(text, pieces(text, code)) for text in sorted(texts)] for texts in (trained[code], probed[code]))
        assert [(one, other) for one, a in known for other, b in asked if overlap(a, b) > NEARLY] == []


def test_a_probe_that_ones_own_question_nearly_is_is_left_out() -> None:
    own = ["Sorry, I missed your name!!", "What sort of assistant is this one?", "这是个什么样助手？"]
    assert is_nearly(own[1], "What sort of assistant is this?", "en") and not is_nearly("Who are you?", "Who am I?", "en")
    asked = {said(probe, "user")[0] for probe in build_probes(Persona(name="Alex", languages=LANGUAGES, own_questions=own))}
    assert not asked & {"Sorry, I missed your name.", "What sort of assistant is this?"} and len(asked) == 2 * 97


def test_probes_come_per_language_with_ids_and_facts() -> None:
    probes = build_probes(Persona(name="Alex", languages=LANGUAGES))
    assert len({probe["id"] for probe in probes}) == len(probes) == 2 * (24 + 73)
    assert probes[0]["id"] == "identity-en-01" and probes[-1]["id"] == "format-zh-08"
    assert Counter(probe["group"] for probe in probes) == {"identity": 48, "near": 50, "general": 96}
    assert [set(probe["form"]) for probe in probes if "form" in probe].count({"json"}) == 4
    france = next(probe for probe in probes if "France" in said(probe, "user")[0])
    assert france == {"id": "general-en-01", "group": "general", "lang": "en", "expect": ["Paris"],
                      "messages": [{"role": "user", "content": "What is the capital of France?"}]}
    assert all(said(probe, "assistant") == [] for probe in probes)
    assert not any("expect" in probe for probe in probes if probe["group"] == "identity")


def test_nothing_trained_is_probed() -> None:
    persona = Persona(name="Alex", languages=LANGUAGES, wordings=48, multi_turn=True)
    trained = [text for row in build_rows(persona) for text in said(row, "user")]
    trained += [said(row, "user")[0] for row in replay_prompts(LANGUAGES, near=62, general=300)]
    probed = [said(row, "user")[0] for row in build_probes(persona, ProbeCounts(30, 42, 82, 8))]
    assert len(probed) == 2 * (30 + 42 + 82 + 8)
    assert not {normalised(text) for text in trained} & {normalised(text) for text in probed}


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_two_general_questions_are_nearly_the_same(language: str) -> None:
    asked = [(question.ask, pieces(question.ask, language)) for question in wording(language).general_train]
    assert [(one, other) for (one, a), (other, b) in combinations(asked, 2) if overlap(a, b) > 0.75] == []


def test_replay_prompts_are_interleaved_in_proportion() -> None:
    rows = replay_prompts(LANGUAGES, near=20, general=40)
    assert len(rows) == 120 and all(len(row["messages"]) == 1 for row in rows)
    for end in (12, 30, 60, 90, 120):
        part = Counter((row["group"], row["lang"]) for row in rows[:end])
        for code in LANGUAGES:
            assert abs(part["near", code] - end / 6) <= 1 and abs(part["general", code] - end / 3) <= 1
    assert rows == replay_prompts(LANGUAGES, near=20, general=40)
    assert {row["group"] for row in replay_prompts(["en"], near=0, general=5)} == {"general"}


# Input that cannot be used


@pytest.mark.parametrize(("fields", "problem"), [
    ({"name": ""}, "name is empty"),
    ({"name": "  \t"}, "name is empty"),
    ({"name": "x" * 61}, "61 characters; 60"),
    ({"name": "Al\nex"}, "line break"),
    ({"name": "Al\x07ex"}, "invisible"),
    ({"name": "Al\u202eex"}, "invisible"),
    ({"name": "{{name}}"}, "placeholder"),
    ({"name": "<your name>"}, "placeholder"),
    ({"name": "[NAME]"}, "placeholder"),
    ({"name": "Alex", "author": "{author}"}, "author '{author}' looks like a placeholder"),
    ({"name": "Alex", "author": "x" * 61}, "61 characters"),
    ({"name": "Alex", "languages": []}, "no language"),
    ({"name": "Alex", "languages": ["../en"]}, "no persona questions"),
    ({"name": "Alex", "tone": "angry"}, "tone 'angry'"),
    ({"name": "Alex", "wordings": 49}, "49 wordings of the question were asked for; 48 exist in English"),
    ({"name": "Alex", "wordings": 0}, "0 wordings of the question"),
    ({"name": "Alex", "answers": 10}, "10 wordings of the answer were asked for; 9 exist in English"),
    ({"name": "Alex", "own_answers": ["I'm a robot."]}, "does not say Alex"),
    ({"name": "Alex", "own_answers": [" "]}, "is empty"),
    ({"name": "Alex", "own_answers": ["I'm Alex, by {author}."]}, "placeholder"),
    ({"name": "Alex", "own_answers": ["I'm Alex, {mood}."]}, "placeholder"),
    ({"name": "Alex", "own_questions": ["Who\x00?"]}, "invisible"),
    ({}, "no name"),
    ({"name": 7}, "field name of the persona cannot be 7"),
    ({"name": "Alex", "wordings": "many"}, "cannot be 'many'"),
    ({"name": "Alex", "nmae": "Alex"}, "no field 'nmae'"),
])
def test_unusable_input_is_said_in_words(fields: dict, problem: str) -> None:
    with pytest.raises(StudioError) as caught:
        Persona(**fields)
    assert problem in str(caught.value.problem)
    for text in (caught.value.problem, caught.value.hint):
        assert str(text) and text.to("zh") != str(text)


def test_an_unknown_language_names_those_available() -> None:
    with pytest.raises(StudioError) as caught:
        Persona(name="Alex", languages=["fr"])
    assert "'fr'" in str(caught.value.problem) and "en, zh" in str(caught.value.hint)


def test_names_of_all_kinds_are_fine() -> None:
    for name in ("Alex", " Alex ", "O'Brien", "小明", "Ana María", "x" * 60, "C-3PO", "علی\u200cرضا", "100%"):
        assert Persona(name=name).name == name.strip()
    assert Persona(name="Alex", author=" ").author is None
    assert Persona(name="Alex", languages=["zh", "en", "zh"]).languages == ["zh", "en"]


def test_too_many_probes_or_prompts_say_how_many_exist() -> None:
    persona = Persona(name="Alex")
    for call in (lambda: build_probes(persona, ProbeCounts(31, 0, 0, 0)), lambda: build_probes(persona, ProbeCounts(0, 0, -1, 0)),
                 lambda: replay_prompts(["en"], near=63)):
        with pytest.raises(StudioError) as caught:
            call()
        assert "exist in English" in str(caught.value.problem) and "en.yaml" in str(caught.value.hint)


def test_every_sentence_has_a_chinese_form() -> None:
    found = []
    for module in (persona_module, wordings_module):
        for node in ast.walk(ast.parse(Path(module.__file__).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("StudioError", "Text"):
                found += [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
    assert len(found) > 30
    for template in found:
        chinese = chinese_templates()[template]
        assert set(re.findall(r"{\w+}", chinese)) == set(re.findall(r"{\w+}", template)), template


def test_no_two_answers_of_a_tone_are_nearly_the_same() -> None:
    for language in LANGUAGES:
        for answers in wording(language).answers.values():
            for one, other in combinations(answers, 2):
                assert likeness(one, other, language) <= 0.75, (one, other)


def test_a_form_that_the_base_model_keeps_to_counts_as_known() -> None:
    probe = next(probe for probe in held_out_probes("en") if "yes or no" in said(probe, "user")[0])
    assert is_right(probe, " No.\n") and not is_right(probe, "No, it is not.") and not is_right(probe, "I'm Alex's personal assistant.")
    listed = next(probe for probe in held_out_probes("zh") if "编号列表" in said(probe, "user")[0])
    assert is_right(listed, "1. 红\n2. 黄\n3. 蓝") and not is_right(listed, "红、黄、蓝")
    assert classify(probe, "I cannot say.", "No.", Taught("identity", (), {}, frozenset())) == "lost"
