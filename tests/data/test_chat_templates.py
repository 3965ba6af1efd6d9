"""The pieces of each family against the family's public Jinja template."""

import re

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from template.data.chat_templates import model2template, template_for
from template.errors import ConfigError

# The public templates of the models' tokenizer_config.json, without the branches for tools and images.
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN1_5 = SMOLLM2.replace(
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face", "You are a helpful assistant"
)
QWEN2_5 = """\
{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant") %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
# Of the 2507 release, which does not think: a text of the assistant is written as it is.
QWEN3 = """\
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
GEMMA3 = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first_user_prefix = messages[0]['content'] + '\\n\\n' -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '\\n' + (first_user_prefix if loop.first else "") }}
    {{- message['content'] | trim }}
    {{- '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model\\n'}}
{%- endif -%}
"""
GEMMA2 = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}"
    "{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] "
    "| trim + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA3_1 = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
TINYLLAMA = """\
{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}
"""

# Hub id -> (public template, bos, eos, whether its default system text is also ours)
PUBLIC = {
    "Qwen/Qwen1.5-0.5B-Chat": (QWEN1_5, "", "<|im_end|>", False),
    "Qwen/Qwen2.5-1.5B-Instruct": (QWEN2_5, "", "<|im_end|>", False),
    "Qwen/Qwen3-4B-Instruct-2507": (QWEN3, "", "<|im_end|>", True),
    "HuggingFaceTB/SmolLM2-135M-Instruct": (SMOLLM2, "<|im_start|>", "<|im_end|>", True),
    "google/gemma-1.1-2b-it": (GEMMA2, "<bos>", "<eos>", True),
    "google/gemma-2-2b-it": (GEMMA2, "<bos>", "<eos>", True),
    "google/gemma-3-1b-it": (GEMMA3, "<bos>", "<eos>", True),
    "meta-llama/Meta-Llama-3-8B-Instruct": (LLAMA3, "<|begin_of_text|>", "<|eot_id|>", True),
    "meta-llama/Llama-3.1-8B-Instruct": (LLAMA3_1, "<|begin_of_text|>", "<|eot_id|>", True),
    "meta-llama/Llama-3.2-1B-Instruct": (LLAMA3_1, "<|begin_of_text|>", "<|eot_id|>", True),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": (TINYLLAMA, "<s>", "</s>", True),
}
CONVERSATIONS = [
    ["Hello, {name}! 100% {0} {{}}", "Hi %s"],
    ["q1\n\nwith lines", "a1", "q2", "a2 <|im_end|>", "q3", "a3"],
    ["", ""],
]


def render(model_id: str, system: str | None, turns: list[str], *, ask: bool = False) -> str:
    public, bos, eos, _ = PUBLIC[model_id]
    vocabulary = {"<unk>": 0, bos or "<pad>": 1, eos: 2}
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call,unused-ignore]
        tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token="<unk>")), bos_token=bos or None, eos_token=eos
    )
    roles = ["user", "assistant"] * len(turns)
    messages = [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=False)]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    text = tokenizer.apply_chat_template(messages, chat_template=public, tokenize=False, add_generation_prompt=ask)
    assert isinstance(text, str)
    return text


def joined(model_id: str, system: str | None, turns: list[str]) -> str:
    return "".join(text for piece in template_for(model_id).pieces(system, turns) for text in piece[:3])


@pytest.mark.parametrize("turns", CONVERSATIONS, ids=["braces", "three turns", "empty"])
@pytest.mark.parametrize("system", ["Be {brief}.", "", None], ids=["system", "empty system", "no system"])
@pytest.mark.parametrize("model_id", PUBLIC)
def test_joined_pieces_equal_the_public_template(model_id: str, system: str | None, turns: list[str]) -> None:
    is_default_public = PUBLIC[model_id][3]
    given = template_for(model_id).default_system if system is None and not is_default_public else system
    # The public template of Gemma 1.1 and 2 rejects a system text, so use Gemma 3's.
    public_id = "google/gemma-3-1b-it" if system is not None and PUBLIC[model_id][0] == GEMMA2 else model_id
    assert joined(model_id, system, turns) == render(public_id, given, turns)


@pytest.mark.parametrize("model_id", PUBLIC)
def test_user_piece_ends_with_the_generation_prompt(model_id: str) -> None:
    default = template_for(model_id).default_system
    assert joined(model_id, None, ["q"]) == render(model_id, default or None, ["q"], ask=True)


def test_qwen_pieces_are_those_of_the_protocol() -> None:
    for model_id in ("Qwen/Qwen1.5-7B-Chat", "Qwen/Qwen2.5-1.5B-Instruct"):
        assert template_for(model_id).pieces(None, ["q", "a"]) == [
            ("<|im_start|>system\n", "You are a helpful assistant.", "<|im_end|>\n", False),
            ("<|im_start|>user\n", "q", "<|im_end|>\n<|im_start|>assistant\n", False),
            ("", "a", "<|im_end|>\n", True),
        ]


@pytest.mark.parametrize("model_id", model2template)
def test_every_template_targets_answers_only(model_id: str) -> None:
    pieces = template_for(model_id).pieces("SYSTEM", ["ASK", "ANSWER", "ASK", "ANSWER"])
    assert ["ANSWER" in piece.content for piece in pieces] == [piece.is_target for piece in pieces]
    assert sum(piece.is_target for piece in pieces) == 2
    assert all(any(piece[:3]) for piece in pieces)


@pytest.mark.parametrize("model_id", model2template)
def test_content_is_stripped(model_id: str) -> None:
    template = template_for(model_id)
    assert template.pieces(" s\n", ["\tq ", "\n\na "]) == template.pieces("s", ["q", "a"])


@pytest.mark.parametrize("model_id", [model_id for model_id, t in model2template.items() if t.bos])
def test_bos_is_a_piece_of_its_own(model_id: str) -> None:
    template = template_for(model_id)
    assert template.pieces(None, ["q", "a"])[0] == (template.bos, "", "", False)
    assert joined(model_id, "s", ["q", "a"]).count(template.bos) == 1


def test_unknown_model_is_a_config_error_naming_families() -> None:
    with pytest.raises(ConfigError, match=re.escape("'Qwen/Qwen2.5-1.5B'")) as caught:
        template_for("Qwen/Qwen2.5-1.5B")
    for family in ("Qwen1.5", "Qwen2.5", "Qwen3 Instruct", "Gemma", "Llama 3", "Llama 3.1/3.2", "TinyLlama", "SmolLM2"):
        assert family in str(caught.value)
