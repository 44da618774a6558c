"""Chat templates that know tools, written here, that behave like those of well-known models."""

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from tutelage.text.tokenizer import Tokenizer

QWEN = """{%- if tools %}{{- '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
{{- 'Functions:\\n<tools>' }}{%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{%- endfor %}
{{- '\\n</tools>\\nAnswer with <tool_call> {"name", "arguments"} </tool_call>.<|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for m in messages %}
{%- if m.role == 'user' or (m.role == 'system' and not loop.first) %}
{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- elif m.role == 'assistant' %}{{- '<|im_start|>assistant\\n' + m.content }}
{%- for call in m.tool_calls or [] %}{%- set f = call.function %}
{{- '\\n<tool_call>\\n{"name": "' + f.name + '", "arguments": ' + (f.arguments | tojson) + '}\\n</tool_call>' }}
{%- endfor %}{{- '<|im_end|>\\n' }}
{%- elif m.role == 'tool' %}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
{{- '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

LLAMA_3 = """{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{{- '<s>' }}{%- for m in messages %}
{%- if m.role == 'user' and loop.first and tools is not none %}
{{- '<|start_header_id|>user<|end_header_id|>\\n\\nReply with {"name": name, "parameters": values}.\\n\\n' }}
{%- for t in tools %}{{- t | tojson(indent=4) }}{{- '\\n\\n' }}{%- endfor %}{{- m.content + '<|eot_id|>' }}
{%- elif m.tool_calls is defined %}
{%- if m.tool_calls | length != 1 %}{{- raise_exception('one call at a time') }}{%- endif %}
{%- set f = m.tool_calls[0].function %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + f.name + '", "parameters": ' }}
{{- f.arguments | tojson }}{{- '}<|eot_id|>' }}
{%- elif m.role == 'tool' %}{{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' }}
{{- (m.content | tojson) if m.content is mapping else m.content }}{{- '<|eot_id|>' }}
{%- else %}{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content + '<|eot_id|>' }}
{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""

MISTRAL = """{{- '<s>' }}{%- for m in messages %}
{%- if m.role == 'user' %}
{%- if tools is not none and loop.last %}{{- '[AVAILABLE_TOOLS] [' }}
{%- for t in tools %}{{- {'type': 'function', 'function': t.function} | tojson }}
{{- ', ' if not loop.last }}{%- endfor %}{{- '][/AVAILABLE_TOOLS]' }}{%- endif %}
{{- '[INST] ' + m.content + '[/INST]' }}
{%- elif m.tool_calls is defined %}{{- '[TOOL_CALLS] [' }}
{%- for c in m.tool_calls %}
{%- if c.id | length != 9 %}{{- raise_exception('ids have nine characters') }}{%- endif %}
{{- '{"name": "' + c.function.name + '", "arguments": ' + (c.function.arguments | tojson) + ', "id": "' + c.id + '"}' }}
{{- ', ' if not loop.last }}{%- endfor %}{{- ']</s>' }}
{%- elif m.role == 'assistant' %}{{- ' ' + m.content + '</s>' }}
{%- elif m.role == 'tool' %}
{{- '[TOOL_RESULTS] {"content": ' + (m.content | tojson) + ', "call_id": "' + m.tool_call_id + '"}[/TOOL_RESULTS]' }}
{%- endif %}{%- endfor %}"""

# Of each: the template, eos_token, and the tokens that its model's tokenizer adds: special ones, and others.
KNOWING = {
    "Qwen": (QWEN, "<|im_end|>", [], ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]),
    "Llama 3": (LLAMA_3, "<|eot_id|>", ["<|python_tag|>"], []),
    "Mistral": (MISTRAL, "</s>", ["[TOOL_CALLS]", "[TOOL_RESULTS]", "[AVAILABLE_TOOLS]", "[INST]", "[/INST]"], []),
}


def knowing(tokenizer: Tokenizer, name: str, *more: str) -> Tokenizer:
    """The tests' tokenizer with one of these templates and its tokens. more: further special tokens."""
    template, eos, special, ordinary = KNOWING[name]
    backend = Backend.from_str(tokenizer.to_json())
    frames = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    backend.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in (*frames, *special, *more)]
    )
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in ordinary])
    settings = {"chat_template": template, "eos_token": eos, "pad_token": tokenizer.settings["pad_token"]}
    return Tokenizer(backend, tokenizer.settings | settings)
