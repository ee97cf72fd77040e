"""Chat templates in the manner of well-known models."""

# The tokens of one message and a default system message (SmolLM2).
CHATML = """
{%- for message in messages -%}
{%- if loop.first and message.role != 'system' -%}
{{ '<|im_start|>system\nBe nice.<|im_end|>\n' }}
{%- endif -%}
{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}
"""

# The same, written another way round, with branches for tools (Qwen2.5).
QWEN = """
{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
{%- else %}
    {{- '<|im_start|>system\nYou are Qwen.<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first)
        or (message.role == 'assistant' and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\n<tool_response>' + message.content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}
"""

# An empty thought before the last answer only (Qwen3).
REASONING = """
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' }}
    {%- if message.role == 'assistant' and loop.last %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
    {{- message.content.split('</think>')[-1].lstrip('\n') if message.role == 'assistant'
        else message.content }}
    {{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}
"""

# Begins with BOS and strips white space (Llama 3).
LLAMA3 = """
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start|>' + message.role + '<|end|>\n\n' + message.content | trim + '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant<|end|>\n\n' }}{%- endif %}
"""

# Always has a system message, which says the date (Llama 3.1).
LLAMA31 = """
{{- bos_token }}
{%- set first = messages[0] %}
{%- set rest = messages[1:] if first.role == 'system' else messages %}
{{- '<|start|>system<|end|>\n\nToday: 1 May\n\n' }}
{{- first.content | trim if first.role == 'system' else '' }}
{{- '<|eot|>' }}
{%- for message in rest %}
    {{- '<|start|>' + message.role + '<|end|>\n\n' + message.content | trim + '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant<|end|>\n\n' }}{%- endif %}
"""

# No system role, EOS behind an answer (Mistral).
MISTRAL = """
{{- bos_token }}
{%- for message in messages %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Roles must alternate') }}
    {%- endif %}
    {%- if message.role == 'user' %}{{- '[INST] ' + message.content + ' [/INST]' }}
    {%- else %}{{- ' ' + message.content + eos_token }}{%- endif %}
{%- endfor %}
"""

# BOS before every question; a system message becomes part of the first one (Llama 2).
LLAMA2 = """
{%- set first = messages[0] %}
{%- set rest = messages[1:] if first.role == 'system' else messages %}
{%- for message in rest %}
    {%- if message.role == 'user' %}
        {{- bos_token + '[INST] ' }}
        {%- if loop.first and first.role == 'system' %}
            {{- '<sys>\n' + first.content + '\n</sys>\n\n' }}
        {%- endif %}
        {{- message.content + ' [/INST]' }}
    {%- else %}
        {{- ' ' + message.content + ' ' + eos_token }}
    {%- endif %}
{%- endfor %}
"""

# No system role, another name for the assistant, stripped contents (Gemma).
GEMMA = """
{{- bos_token }}
{%- if messages[0].role == 'system' %}{{- raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}
    {%- set role = 'model' if message.role == 'assistant' else message.role %}
    {{- '<turn>' + role + '\n' + message.content | trim + '</turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<turn>model\n' }}{%- endif %}
"""

# EOS where no generation prompt follows (Phi-3).
PHI3 = """
{%- for message in messages %}
    {{- '<|' + message.role + '|>\n' + message.content + '<|end|>\n' }}
{%- endfor %}
{{- '<|assistant|>\n' if add_generation_prompt else eos_token }}
"""

# Names instead of special tokens (Vicuna).
VICUNA = """
{%- for message in messages %}
    {%- if message.role == 'user' %}{{- 'USER: ' + message.content + ' ' }}
    {%- elif message.role == 'assistant' %}{{- 'ASSISTANT: ' + message.content + eos_token }}
    {%- else %}{{- message.content + ' ' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- 'ASSISTANT:' }}{%- endif %}
"""

# Contents do not come out as they went in.
SHOUTING = CHATML.replace("message.content +", "message.content | upper +")
ESCAPING = CHATML.replace("message.content +", "message.content | e +")
ONE_SIDED = CHATML.replace("message.content +", "message.content.lstrip() +")
# Messages that depend on their neighbours.
NUMBERED = CHATML.replace("message.role +", "message.role + ' ' ~ loop.index +")
LAST_ONLY = "{%- set m = messages[-1] %}{{- '<|' + m.role + '|>' + m.content }}"
# The generation prompt counts the messages.
COUNTING = CHATML.replace("'<|im_start|>assistant\n' }}", "'<|im_start|>' ~ messages | length }}")

# Tools stand in the system message, behind its text or that of the default one (Qwen2.5, Hermes).
TOOLS = """
{%- set first = messages[0] %}
{%- set rest = messages[1:] if first.role == 'system' else messages %}
{{- '<|im_start|>system\n' }}
{{- first.content if first.role == 'system' else 'You are Qwen.' }}
{%- if tools %}{{- '\n\n# Tools\n' }}
    {%- for tool in tools %}{{- '\n' ~ tool | tojson }}{%- endfor %}
{%- endif %}
{{- '<|im_end|>\n' }}
{%- for message in rest %}
    {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}
"""

# The date of the day, or the minute, in a system message (Llama 3.1); contents are stripped.
DATED = LLAMA31.replace("Today: 1 May\n\n' }}", "Today: ' + strftime_now('%d %b') + '\n\n' }}")
TIMED = LLAMA31.replace("Today: 1 May\n\n' }}", "Now: ' + strftime_now('%H:%M') + '\n\n' }}")

# Tools before the first user message's text, in that message (Llama 3.1).
TOOLS_IN_USER = """
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start|>' + message.role + '<|end|>\n\n' }}
    {%- if tools and message.role == 'user' and (loop.first or
        (loop.index0 == 1 and messages[0].role == 'system')) %}
        {{- 'Given the functions:\n' ~ tools | tojson ~ '\n\n' }}
    {%- endif %}
    {{- message.content | trim + '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant<|end|>\n\n' }}{%- endif %}
"""

# Thinking is switched off by an empty thought in the generation prompt (Qwen3).
THINKING = """
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}
"""

# The effort stands in a system message of the template's, ours is the developer's (gpt-oss).
EFFORT = """
{{- '<|start|>system<|message|>Reasoning: ' + (reasoning_effort or 'medium') + '<|end|>' }}
{%- for message in messages %}
    {%- set role = 'developer' if message.role in ('system', 'developer') else message.role %}
    {{- '<|start|>' + role + '<|message|>' + message.content + '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}
"""

# Another text at each rendering.
RANDOM = CHATML.replace("Be nice.", "' ~ range(90000) | random ~ '")
