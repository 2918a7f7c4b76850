"""Prompts of chosen length that share no beginning, and the bodies made of them."""

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollamalab import workload
from ollamalab.errors import SettingsError
from ollamalab.workload import Prompt

CONVERSATION = Prompt(
    messages=(
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Why is the sky blue?"},
    ),
    num_predict=16,
    options={"seed": 7},
)


class TestDrawing:
    def test_equal_seeds_draw_equal_prompts_and_others_differ(self) -> None:
        drawn = [
            workload.draw_prompt(random.Random(seed), prompt_tokens=128, num_predict=8) for seed in (1, 1, 2)
        ]
        assert drawn[0] == drawn[1] != drawn[2]

    @given(st.integers(64, 4000), st.integers(0, 100))
    def test_length_is_one_word_per_token_over_the_fixed_part(self, tokens: int, seed: int) -> None:
        prompt = workload.draw_prompt(random.Random(seed), prompt_tokens=tokens, num_predict=8)
        words = prompt.messages[0]["content"].split("\n")[0].removeprefix("Words: ").removesuffix(".")
        assert len(words.split()) == tokens - workload.OVERHEAD_TOKENS
        assert set(words.split()) <= set(workload.WORDS)

    def test_several_prompts_differ_from_each_other(self) -> None:
        prompts = workload.draw_prompts(random.Random(0), 50, prompt_tokens=80, num_predict=8)
        assert len({prompt.messages[0]["content"] for prompt in prompts}) == 50
        assert {prompt.num_predict for prompt in prompts} == {8}

    def test_words_are_counted_once(self) -> None:
        assert len(set(workload.WORDS)) == len(workload.WORDS)


class TestNonce:
    def test_it_opens_the_system_message(self) -> None:
        first = workload.with_nonce(CONVERSATION, random.Random(0)).messages[0]
        assert first["role"] == "system"
        nonce, rest = first["content"].split("\n")
        assert nonce.isdigit()
        assert rest == "Be brief."

    def test_a_prompt_without_system_message_gets_one(self) -> None:
        """Else the template would put its own before the nonce: the same for every request."""
        plain = workload.text_prompt("Why?", num_predict=4, temperature=0.0)
        opened = workload.with_nonce(plain, random.Random(0))
        assert [message["role"] for message in opened.messages] == ["system", "user"]
        assert opened.messages[0]["content"][:9].isdigit()
        assert opened.messages[1:] == plain.messages
        assert (opened.num_predict, opened.options) == (plain.num_predict, plain.options)

    def test_the_prompt_itself_stays_as_it_was(self) -> None:
        before = json.dumps(CONVERSATION.messages)
        workload.with_nonce(CONVERSATION, random.Random(0))
        assert json.dumps(CONVERSATION.messages) == before

    def test_arms_of_a_block_say_the_same_after_different_nonces_of_one_length(self) -> None:
        prompts = workload.draw_prompts(random.Random(3), 20, prompt_tokens=80, num_predict=8)
        rng = random.Random(4)
        one, other = workload.with_nonces(prompts, rng), workload.with_nonces(prompts, rng)
        for left, right in zip(one, other, strict=True):
            assert left.messages[1:] == right.messages[1:]
            assert left.messages[0] != right.messages[0]
            assert len(left.messages[0]["content"]) == len(right.messages[0]["content"])

    def test_a_run_of_ten_thousand_has_no_nonce_twice(self) -> None:
        prompts = [workload.text_prompt("Why?")] * 10_000
        opened = workload.with_nonces(prompts, random.Random(0))
        assert len({prompt.messages[0]["content"] for prompt in opened}) == 10_000


class TestBodies:
    def test_chat_carries_messages_and_options(self) -> None:
        body = workload.chat_body(CONVERSATION, "smollm2:135m")
        assert body == {
            "model": "smollm2:135m",
            "messages": list(CONVERSATION.messages),
            "stream": True,
            "options": {"seed": 7, "num_predict": 16},
        }

    def test_keep_alive_is_sent_only_when_given(self) -> None:
        prompt = workload.text_prompt("Why?")
        assert workload.chat_body(prompt, "m", stream=False, keep_alive="10m") == {
            "model": "m",
            "messages": [{"role": "user", "content": "Why?"}],
            "stream": False,
            "options": {},
            "keep_alive": "10m",
        }
        assert workload.chat_body(prompt, "m", keep_alive=0)["keep_alive"] == 0

    def test_generate_carries_system_and_prompt(self) -> None:
        opened = workload.with_nonce(workload.text_prompt("Why?", num_predict=4), random.Random(0))
        body = workload.generate_body(opened, "m")
        assert (body["prompt"], body["system"]) == ("Why?", opened.messages[0]["content"])
        assert body["options"] == {"num_predict": 4}
        assert "system" not in workload.generate_body(workload.text_prompt("Why?"), "m")

    def test_generate_carries_images(self) -> None:
        prompt = Prompt(messages=({"role": "user", "content": "What is it?", "images": ["aGk="]},))
        assert workload.generate_body(prompt, "m")["images"] == ["aGk="]

    def test_generate_refuses_a_conversation(self) -> None:
        with pytest.raises(SettingsError, match="system, user, assistant, user; use /api/chat"):
            workload.generate_body(CONVERSATION, "m")

    def test_a_request_is_json_ready_to_send(self) -> None:
        body = workload.chat_body(workload.text_prompt("Warum ist der Himmel blau? 为什么？"), "m")
        request = workload.inference_request("/api/chat", body)
        assert (request.method, request.path) == ("POST", "/api/chat")
        assert request.headers == {"Content-Type": "application/json"}
        assert json.loads(request.body) == body


class TestPrompt:
    @pytest.mark.parametrize(
        ("fields", "told"),
        [
            ({"messages": ()}, "at least one message"),
            ({"num_predict": 0}, "got 0"),
            ({"options": {"num_predict": 5}}, "by itself"),
        ],
    )
    def test_what_would_measure_nothing_is_refused(self, fields: dict[str, Any], told: str) -> None:
        with pytest.raises(SettingsError, match=told):
            Prompt(**{"messages": ({"role": "user", "content": "Why?"},), **fields})


class TestPromptFiles:
    def test_both_forms_and_empty_lines(self) -> None:
        lines = [
            b'{"prompt": "Why?"}\n',
            "\n",
            '{"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}],'
            ' "num_predict": 9, "options": {"temperature": 0}}',
        ]
        first, second = workload.parse_prompts(lines, source="p.jsonl")
        assert first == workload.text_prompt("Why?")
        assert [message["role"] for message in second.messages] == ["system", "user"]
        assert (second.num_predict, second.options) == (9, {"temperature": 0})

    def test_an_empty_prompt_is_a_prompt(self) -> None:
        assert workload.parse_prompts(['{"prompt": ""}'], source="p")[0].messages[0]["content"] == ""

    @pytest.mark.parametrize(
        ("line", "told"),
        [
            ("Why is the sky blue?", "malformed"),
            ('"Why?"', "Expected `object`"),
            ('{"promt": "Why?"}', "unknown field `promt`"),
            ('{"prompt": 5}', r"Expected `str.*\$\.prompt"),
            ("{}", 'either "prompt" or "messages"'),
            ('{"prompt": "a", "messages": []}', 'either "prompt" or "messages"'),
            ('{"messages": []}', "at least one message"),
            ('{"messages": [{"role": "robot", "content": "a"}]}', "'robot'"),
            ('{"messages": [{"role": "user"}]}', "missing required field `content`"),
            ('{"prompt": "a", "num_predict": 0}', "num_predict must be 1 or more"),
            ('{"prompt": "a", "num_predict": "9"}', r"\$\.num_predict"),
            ('{"prompt": "a", "options": {"num_predict": 9}}', "by itself"),
        ],
    )
    def test_a_bad_line_is_named_with_its_number(self, line: str, told: str) -> None:
        with pytest.raises(SettingsError, match=told) as caught:
            workload.parse_prompts(['{"prompt": "a"}', "", line], source="p.jsonl")
        assert str(caught.value).startswith("p.jsonl line 3: ")
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("lines", [[], ["", "  \n"]])
    def test_a_file_without_prompts_is_refused(self, lines: list[str]) -> None:
        with pytest.raises(SettingsError, match=r"p\.jsonl holds no prompts"):
            workload.parse_prompts(lines, source="p.jsonl")

    def test_bytes_that_are_not_text_are_a_bad_line(self) -> None:
        with pytest.raises(SettingsError, match="line 1"):
            workload.parse_prompts([b'{"prompt": "\xff"}'], source="p.jsonl")
