"""Templates in the manner of those of known models, with what of Jinja they use; and conversations."""

from __future__ import annotations

import json

TEMPLATES = {
    # system prompt inside of the first turn, alternation enforced, slices, a set of a condition
    "instructions": """{%- if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set rest = messages[1:] %}
{%- else %}{% set rest = messages %}{% endif %}
{{- bos_token }}
{%- for message in rest | rejectattr('role', 'equalto', 'tool') %}
    {%- if message.role not in ['user', 'assistant'] or (message.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate, and ' + message['role'] + ' comes out of turn') }}
    {%- endif %}
    {%- if message.role == 'user' %}
        {{- '[INST] ' + ('<<SYS>>' + system + '<</SYS>>' if loop.first and system is defined else '') }}
        {{- message.content | trim + ' [/INST]' }}
    {%- else %}
        {{- ' ' ~ (message.content or '') ~ eos_token }}
    {%- endif %}
{%- endfor %}""",
    # tools as lines of JSON, calls, answers of tools side by side, thoughts of the last turn only, a namespace, a reversed loop
    "tools and thoughts": """
{%- macro call(it) %}<call>{{ {'name': it.name, 'arguments': it.arguments} | tojson }}</call>
{%- endmacro %}
{%- if tools %}<|im_start|>system
{{ messages[0].content ~ '\n' if messages[0].role == 'system' }}# Tools{% for tool in tools %}
{{ tool | tojson }}{% endfor %}<|im_end|>
{% endif %}
{%- set ns = namespace(last=-1) %}
{%- for message in messages[::-1] if message.role == 'user' and ns.last < 0 %}
    {%- set ns.last = (messages | length) - 1 - loop.index0 %}
    {%- break %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'system' and tools %}{% continue %}{% endif %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == 'tool' %}
        {{- '<|im_start|>user' if loop.previtem is undefined or loop.previtem.role != 'tool' }}
<response>{{ content }}</response>
        {{- '<|im_end|>\n' if loop.last or loop.nextitem.role != 'tool' }}
    {%- else %}
        {%- if message.reasoning_content is defined %}{% set thought = message.reasoning_content %}
        {%- elif '</think>' in content %}{% set thought = content.split('</think>')[0].split('<think>')[-1] %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {{- '<|im_start|>' + message.role + '\n' }}
        {%- if thought is defined and loop.index0 > ns.last %}<think>{{ thought }}</think>{% endif %}
        {%- generation %}{{ content }}
            {%- for each in message.tool_calls or [] %}{{ call(each.function or each) }}{% endfor %}
        {%- endgeneration %}
        {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}{% endif %}""",
    # headers, a date, indented JSON, arguments by name, what is null told from what is missing
    "headers": """{{- bos_token }}{% set date = date_string if date_string is defined else strftime_now('%d %b %Y') %}
<|system|>Today: {{ date }}
{%- if tools is not none %}
    {%- for tool in tools %}{{ '\n\n' }}{{ tool | tojson(indent=4) }}
        {{- tool | tojson(true, separators=(',', ':'), sort_keys=true) }}{% endfor %}
{%- endif %}
{%- if documents is not none %}{{ documents | map(attribute='text') | join('; ') }}{% endif %}
{%- for message in messages %}
<|{{ message['role'] | upper }}|>
    {%- if 'tool_calls' in message %}
        {%- if message.tool_calls | length != 1 %}{{ raise_exception('one call at a time') }}{% endif %}
        {%- set function = message.tool_calls[0].function %}
        {%- for name, value in function.arguments.items() %}{{ name }}={{ value | tojson }};{% endfor %}
    {%- elif message.content is not string %}
        {%- for part in message.content %}{{ part.text if part.type == 'text' else '<' + part['type'] + '>' }}{% endfor %}
    {%- else %}{{ message.content }}
    {%- endif %}
{%- endfor %}
{% if add_generation_prompt %}<|ASSISTANT|>{% endif %}""",
    # channels; thoughts under their older name; keys and values of a schema
    "channels": """{% for tool in tools or [] %}{% for key, kind in tool.function.parameters.properties | dictsort %}
{{ key }}: {{ kind.type }}{{ ' // ' ~ kind.description if kind.description }}{% if not loop.last %},{% endif %}
{% endfor %}{% endfor %}
{% for message in messages %}
{% if message.thinking %}<|start|>{{ message.role }}<|channel|>analysis<|message|>{{ message.thinking }}<|end|>{% endif %}
<|start|>{{ message.role }}<|message|>{{ message.content }}{{ '<|end|>' }}
{% endfor %}
{% if add_generation_prompt -%}
    <|start|>assistant
{%- endif %}""",
}


def _user(content: object) -> dict[str, object]:
    return {"role": "user", "content": content}


def _assistant(content: str | None, **more: object) -> dict[str, object]:
    return {"role": "assistant", "content": content, **more}


SYSTEM = {"role": "system", "content": "Be 'brief'. "}
ANSWER = {"role": "tool", "content": '{"t": 20}', "tool_call_id": "a1"}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The <b>weather</b> of a 城市",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Größe"}, "n": {"type": "integer", "enum": [1, 2]}},
            "required": ["city"],
        },
    },
}  # fmt: skip
CALL = {
    "id": "a1",
    "type": "function",
    "function": {"name": "weather", "arguments": {"city": "Zürich <x>", "n": 1.5}},
}

CONVERSATIONS: dict[str, tuple[list[dict[str, object]], dict[str, object]]] = {
    "one": ([_user(" Grüße <b>世界</b> & 'all'! ")], {}),
    "a system prompt": ([SYSTEM, _user("hi")], {}),
    "several turns": ([SYSTEM, _user("hi"), _assistant("hello\n"), _user("and?")], {}),
    "whole": ([_user("hi"), _assistant("hello")], {"add_generation_prompt": False}),
    "tools": ([SYSTEM, _user("hi")], {"tools": [TOOL, TOOL]}),
    "no tools": ([_user("hi")], {"tools": []}),
    "a call": ([_user("?"), _assistant("", tool_calls=[CALL]), ANSWER, ANSWER], {"tools": [TOOL]}),
    "a call as OpenAI's API has it": (
        [_user("?"), _assistant(None, tool_calls=[CALL]), ANSWER, _assistant("20"), _user("ok")],
        {"tools": [TOOL]},
    ),
    "nulls": ([_user("?"), _assistant("x", tool_calls=None, reasoning_content=None), _user("ok")], {}),
    "thoughts": ([_user("?"), _assistant("20", reasoning_content="so")], {}),
    "thoughts by an older name": ([_user("?"), _assistant("20", thinking="so")], {}),
    "thoughts by another name": ([_user("?"), _assistant("20", reasoning="so")], {}),
    "thoughts in the text": ([_user("?"), _assistant("<think>so</think>\n20"), _user("ok")], {}),
    "a variable": ([_user("hi")], {"enable_thinking": False, "date_string": "1 Jan 1970"}),
    "documents": ([_user("hi")], {"documents": [{"title": "a", "text": "b"}, {"title": "c", "text": "ü"}]}),
    "parts": ([_user([{"type": "text", "text": "what is "}, {"type": "image"}])], {}),
    "another token": ([_user("hi")], {"bos_token": "<mine>"}),
    "what a template refuses": ([_user("a"), _user("b"), {"role": "nobody", "content": "c"}], {}),
    "an open end": ([_user("hi"), _assistant("The answer is ")], {"continue_final_message": True}),
    "an open thought": (
        [_user("hi"), _assistant("", reasoning="I think ")],
        {"continue_final_message": "reasoning"},
    ),
    "an open end of parts": (
        [_user([{"type": "text", "text": "Once "}, {"type": "image"}])],
        {"continue_final_message": True},
    ),
}
assert all(json.dumps(each) for each in CONVERSATIONS.values())
