"""The embedded model itself: its conversion lost nothing that chat needs."""

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(smollm2)


@pytest.mark.parametrize("token", ["<|im_start|>", "<|im_end|>", "<|endoftext|>"])
def test_chat_markers_are_single_special_tokens(
    token: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    (token_id,) = tokenizer.encode(token)

    assert token_id in tokenizer.all_special_ids


@pytest.mark.parametrize("text", ["Naïve café: 12345 €!\n\n\treturn x", " a  b ", "你好 👋"])
def test_text_survives_the_tokenizer(text: str, tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_answers_a_question_and_stops(smollm2: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    model = AutoModelForCausalLM.from_pretrained(smollm2)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )

    output = model.generate(**inputs, max_new_tokens=30, do_sample=False)

    answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :])
    assert answer == "The capital of France is Paris.<|im_end|>"
