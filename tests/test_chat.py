"""A chat template taken apart and put together again, for programs that do not read Jinja."""

import json
import re
import shutil
import subprocess

import pytest
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from toolkit.errors import UserError
from toolkit.export.chat import ChatForm, chat_form, go_template, read_chat
from toolkit.models.resolve import embedded_gguf

# Written here after what each family's own template gives for chats without tools.
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "smollm2": "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}" + CHATML,
    "qwen3": CHATML.replace(
        "assistant\n{% endif %}",
        "assistant\n{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}",
    ),
    "granite": (
        "{% if messages[0]['role'] != 'system' %}<|start_of_role|>system<|end_of_role|>Today's Date: {{ strftime_now('%B %d, %Y') }}."
        "\nYou are Granite.<|end_of_text|>\n{% endif %}{% for m in messages %}<|start_of_role|>{{ m['role'] }}<|end_of_role|>"
        "{{ m['content'] }}<|end_of_text|>\n{% endfor %}<|start_of_role|>assistant<|end_of_role|>"
    ),
    "llama3": (
        "{{ bos_token }}{% set s = messages[0]['content'] if messages[0]['role'] == 'system' else '' %}"
        "<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n\n{{ s }}<|eot_id|>"
        "{% for m in messages if m['role'] != 'system' %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
        "{{ m['content'] | trim }}<|eot_id|>{% endfor %}<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "gemma3": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set f = messages[0]['content'] + '\n\n' %}{% set ms = messages[1:] %}"
        "{% else %}{% set f = '' %}{% set ms = messages %}{% endif %}{% for m in ms %}<start_of_turn>"
        "{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ f if loop.first else '' }}{{ m['content'] | trim }}<end_of_turn>\n"
        "{% endfor %}<start_of_turn>model\n"
    ),
    "gemma2": (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}<start_of_turn>"
        "{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}<start_of_turn>model\n"
    ),
    "mistral-nemo": (
        "{% if messages[0]['role'] == 'system' %}{% set s = messages[0]['content'] %}{% set ms = messages[1:] %}{% else %}"
        "{% set ms = messages %}{% endif %}{{ bos_token }}{% for m in ms %}{% if m['role'] == 'user' %}[INST]"
        "{% if loop.last and s is defined %}{{ s + '\n\n' }}{% endif %}{{ m['content'] }}[/INST]"
        "{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
    ),
    "mistral-small": (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}[SYSTEM_PROMPT]{{ m['content'] }}[/SYSTEM_PROMPT]"
        "{% elif m['role'] == 'user' %}[INST]{{ m['content'] }}[/INST]{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
    ),
}  # fmt: skip
TURNS = [
    [{"role": "user", "content": "A lamp."}],
    [
        {"role": "user", "content": "A {{ lamp }}."},
        {"role": "assistant", "content": "It burns."},
        {"role": "user", "content": "And\nthen? “数字” 🦊"},
    ],
]
CHATS = [*TURNS, *([{"role": "system", "content": "You write plots."}, *t] for t in TURNS)]


def render(template: str):
    formatter = Jinja2ChatFormatter(template=template, eos_token="</s>", bos_token="<s>")
    # llama.cpp puts the first token in front by itself: it must not come twice
    return lambda messages: formatter(messages=messages, enable_thinking=False).prompt.removeprefix("<s>")


def chats(form: ChatForm) -> list:
    return [c for c in CHATS if form.system or c[0]["role"] != "system"]


@pytest.mark.parametrize("family", TEMPLATES)
def test_the_pieces_give_back_what_the_template_gives(family):
    asked = render(TEMPLATES[family])
    form = chat_form(asked)
    assert form is not None
    for chat in chats(form):
        assert form.text(chat) == asked(chat)


def test_what_the_families_are_known_for_is_found():
    forms = {family: chat_form(render(t)) for family, t in TEMPLATES.items()}
    assert "You are helpful." in forms["smollm2"].start
    assert forms["qwen3"].ask.endswith("<think>\n\n</think>\n\n")
    assert "think" not in forms["qwen3"].answer
    assert forms["mistral-nemo"].system_last
    assert forms["mistral-nemo"].user == "[INST]"
    assert forms["gemma2"].system is None
    assert forms["chatml"].user == "<|im_start|>user\n"


@pytest.mark.parametrize(
    "odd",
    [
        "{{ messages[0]['content'] }}{{ messages[0]['content'] }}",  # says a text twice
        "{% for m in messages %}{{ loop.index }}{{ m['content'] }}{% endfor %}",  # counts turns
        "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}",  # changes texts
        "{{ raise_exception('never') }}",
    ],
)
def test_a_template_that_pieces_cannot_say_has_no_form(odd):
    assert chat_form(render(odd)) is None


def test_the_embedded_models_file_is_read():
    chat = read_chat(embedded_gguf())
    assert chat.stop == ("<|im_start|>", "<|im_end|>")
    assert chat.context == 8192
    assert chat.form.start.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert not chat.dated


def test_a_file_without_a_chat_template_is_refused(tmp_path):
    (tmp_path / "x.gguf").write_text("no")
    with pytest.raises(UserError, match="not a GGUF"):
        read_chat(tmp_path / "x.gguf")


# ---- Go


def ollama_data(chat: list) -> dict:
    """As Ollama's collate fills a template in: system texts joined, and still among the messages."""
    system = "\n\n".join(m["content"] for m in chat if m["role"] == "system")
    return {"System": system, "Messages": [{"Role": m["role"], "Content": m["content"]} for m in chat], "Response": ""}


def go(template: str, data: dict) -> str:
    """text/template, as much of it as our templates use."""
    tokens = re.split(r"(\{\{.*?\}\})", template, flags=re.DOTALL)
    at = 0

    def value(word: str, scope: dict):
        if word.startswith('"'):
            return json.loads(word)
        if word.startswith("$.") or (word.startswith(".") and scope["."] is data):
            return data[word.lstrip("$.")]
        return scope[word] if word.startswith("$") else scope["."][word[1:]]

    def condition(words: list[str], scope: dict) -> bool:
        if words[0] in ("not", "and", "eq"):
            found = [value(w, scope) for w in words[1:]]
            return {"not": lambda: not found[0], "and": lambda: all(found), "eq": lambda: found[0] == found[1]}[
                words[0]
            ]()
        return bool(value(words[0], scope))

    def block(scope: dict, on: bool) -> tuple[str, list[str]]:
        """Text up to the end or else that closes this block, and that action's words."""
        nonlocal at
        out = ""
        while at < len(tokens):
            token = tokens[at]
            at += 1
            if not token.startswith("{{"):
                out += token if on else ""
                continue
            words = re.findall(r'"(?:[^"\\]|\\.)*"|[^\s]+', token[2:-2])
            if words[0] in ("end", "else"):
                return out, words
            if words[0] == "if":
                chosen, wanted = False, words[1:]
                while wanted is not None:
                    holds = on and not chosen and (wanted == [] or condition(wanted, scope))
                    chosen = chosen or holds
                    text, closing = block(scope, holds)
                    out += text
                    wanted = None if closing == ["end"] else closing[2:]
            elif words[0] == "range":
                start = at
                for i, message in enumerate(data["Messages"] if on else [None]):
                    at = start
                    out += block({"$i": i, ".": message}, on)[0]
            elif words[0] == "$last":
                if on:
                    scope["$last"] = scope["$i"] == len(data["Messages"]) - 1
            elif on:
                out += value(words[0], scope)
        return out, ["end"]

    return block({".": data}, True)[0]


@pytest.mark.parametrize("family", TEMPLATES)
def test_ollamas_template_writes_what_the_model_was_trained_on(family):
    asked = render(TEMPLATES[family])
    form = chat_form(asked)
    for chat in chats(form):
        assert go(go_template(form), ollama_data(chat)) == asked(chat)


def test_a_chat_that_ends_with_an_answer_is_gone_on_with():
    form = chat_form(render(TEMPLATES["smollm2"]))
    chat = [{"role": "user", "content": "A."}, {"role": "assistant", "content": "Once"}]
    assert go(go_template(form), ollama_data(chat)).endswith("A.<|im_end|>\n<|im_start|>assistant\nOnce")


PROGRAM = """package main
import ("encoding/json"; "os"; "text/template")
func main() {
	var asked []struct { Template string; Data map[string]any }
	json.NewDecoder(os.Stdin).Decode(&asked)
	out := []string{}
	for _, a := range asked {
		type message struct { Role, Content string }
		messages := []*message{}
		for _, m := range a.Data["Messages"].([]any) { f := m.(map[string]any); messages = append(messages, &message{f["Role"].(string), f["Content"].(string)}) }
		a.Data["Messages"] = messages
		b := &writer{}
		if err := template.Must(template.New("").Option("missingkey=zero").Parse(a.Template)).Execute(b, a.Data); err != nil { panic(err) }
		out = append(out, b.s)
	}
	json.NewEncoder(os.Stdout).Encode(out)
}
type writer struct { s string }
func (w *writer) Write(p []byte) (int, error) { w.s += string(p); return len(p), nil }
"""


@pytest.mark.skipif(not shutil.which("go"), reason="no Go here: the test above stands in for it")
def test_go_itself_reads_the_templates_as_the_test_above_does(tmp_path):
    asked, expected = [], []
    for template in TEMPLATES.values():
        form = chat_form(render(template))
        for chat in chats(form):
            asked.append({"Template": go_template(form), "Data": ollama_data(chat)})
            expected.append(render(template)(chat))
    (tmp_path / "main.go").write_text(PROGRAM)
    done = subprocess.run(
        ["go", "run", "main.go"], cwd=tmp_path, input=json.dumps(asked), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected
