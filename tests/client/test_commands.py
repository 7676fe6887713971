"""The commands that ask a server for text, against one that speaks the protocol."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import select
import subprocess
import sys
import termios
import time

import pytest

from gptport.cli import main
from toy_checks import PATIENCE, eventually
from toy_model import EOS, render
from toy_wire import read_inputs

PROMPT = "The quick brown 世界"


@pytest.fixture
def command(toy, capsys, monkeypatch):
    """Run a command against the toy; its exit code, standard output and standard error."""

    def run(name, *arguments, stdin=""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        code = main([name, *map(str, arguments), "--model", "toy", "--url", toy.url])
        return code, *capsys.readouterr()

    return run


def test_generate(client, command):
    expected = client.generate(PROMPT, max_tokens=9)
    code, out, err = command("generate", PROMPT, "--max-tokens", 9)
    assert (code, out) == (0, expected.text + "\n")
    assert "9 tokens" in err
    code, out, _ = command("generate", "-", "--max-tokens", 9, "--json", "--loop", "client", stdin=PROMPT)
    assert json.loads(out)["text"] == expected.text
    several = client.samples(PROMPT, n=2, max_tokens=9, temperature=0.9, seed=1)
    _, out, _ = command(
        "generate", PROMPT, "--max-tokens", 9, "--n", 2, "--temperature", 0.9, "--seed", 1, "--json"
    )
    assert [json.loads(line)["text"] for line in out.splitlines()] == [each.text for each in several]


def test_generate_by_beam_search(client, command):
    beams = client.beam_search(PROMPT, beams=3, max_tokens=6, length_penalty=0.5)
    asked = ("generate", PROMPT, "--max-tokens", 6, "--beams", 3, "--length-penalty", 0.5, "--loop", "client")
    code, out, err = command(*asked)
    assert (code, out) == (0, beams[0].text + "\n")
    assert f"log-probability {beams[0].logprob:.3f}" in err
    _, out, _ = command(*asked, "--n", 2, "--json")
    assert [json.loads(line)["text"] for line in out.splitlines()] == [beam.text for beam in beams[:2]]


def test_beam_search_is_the_servers_unless_told_otherwise(command, toy):
    command("generate", PROMPT, "--max-tokens", 6, "--beams", 3, "--length-penalty", 0.5)
    (sent,) = [read_inputs(request) for request in toy.requests if "file" not in request.parameters]
    assert [sent[name][0] for name in ("beam_width", "length_penalty", "max_tokens")] == [3, 0.5, 6]
    assert not toy.steps


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--beams", 3, "--temperature", 0.5], "takes --max-tokens only"),
        (["--beams", 3, "--n", 4], "--n is 4; --beams 3 finds 1 to 3"),
        (["--beams", 65], "beams is 65"),
        (["--beams", 1], "beams is 1"),
        (["--length-penalty", 2], "give --beams too"),
    ],
)
def test_wrong_beams(command, arguments, message):
    code, out, err = command("generate", PROMPT, *arguments)
    assert (code, out) == (2, "")
    assert message in err


@pytest.mark.parametrize("name", ["tay", "toy_step"])
def test_a_wrong_model_is_answered_with_those_that_there_are(toy, capsys, name):
    if name == "toy_step":
        toy.error_after = (0, "unexpected inference input 'stream' for model 'toy_step'")  # as Triton has it
    assert main(["generate", PROMPT, "--model", name, "--url", toy.url]) == 1
    assert capsys.readouterr().err == f"gptport: {toy.url} has no text model {name!r}; it has toy\n"


def test_a_server_that_is_not_there(capsys):
    assert main(["generate", PROMPT, "--model", "toy", "--url", "127.0.0.1:1"]) == 1
    assert capsys.readouterr().err.endswith("; gptport serve starts one here\n")


def test_an_address_of_the_other_protocol(toy, capsys):
    assert main(["generate", PROMPT, "--model", "toy", "--url", f"http://{toy.url}"]) == 1
    assert "does not speak HTTP" in capsys.readouterr().err


def test_a_file_that_is_not_there(command):
    assert command("summarize", "none.txt")[2] == "gptport: none.txt: No such file or directory\n"


def test_score(client, command):
    score = client.score(PROMPT)
    code, out, _ = command("score", "-", stdin=PROMPT)
    assert (code, out) == (
        0,
        f"{len(score.token_ids)} tokens, log-probability {score.logprob:.3f}, perplexity {score.perplexity:.3f}\n",
    )
    for loop in ("server", "client"):
        _, out, _ = command("score", PROMPT, "--json", "--top", 2, "--loop", loop)
        assert json.loads(out)["logprobs"] == pytest.approx(score.logprobs, abs=1e-5)
        assert [len(each) for each in json.loads(out)["top"]] == [2] * len(score.logprobs)


def test_headers_and_wrong_ones(command, toy):
    command("generate", "a", "--max-tokens", 1, "--header", "authorization=Bearer a=b")
    assert toy.metadata["authorization"] == "Bearer a=b"
    with pytest.raises(SystemExit):
        command("generate", "a", "--header", "authorization")


def test_summarize(client, command, toy, tmp_path):
    toy.eos_token_ids = ""
    file = tmp_path / "text.txt"
    file.write_text("The fox.")
    toy.max_length = 4096
    code, out, _ = command("summarize", file, "--max-tokens", 8)
    (asked,) = prompts(toy)
    assert code == 0
    assert asked.endswith("\n\nThe fox.\nassistant:")
    assert out == client.generate(asked, max_tokens=8).text + "\n"


def test_a_long_text_is_summarized_in_parts(command, toy, tmp_path):
    toy.eos_token_ids, toy.max_length = "", 256
    file = tmp_path / "text.txt"
    file.write_text("The quick brown fox.\n" * 60)
    code, _, err = command("summarize", file, "--max-tokens", 4)
    parts = [prompt.partition("\n\n")[2].removesuffix("\nassistant:") for prompt in prompts(toy)]
    assert code == 0
    assert "parts]" in err
    assert "".join(parts[:-1]).count("fox.") >= 60
    assert len(parts) > 3


def test_a_model_without_a_template_goes_on_instead(command, toy, tmp_path):
    toy.max_length = 4096
    del toy.files["chat_template.jinja"]
    file = tmp_path / "text.txt"
    file.write_text("The fox.")
    assert command("summarize", file, "--max-tokens", 4)[0] == 0
    assert prompts(toy) == ["The fox.\n\nTL;DR:"]


def test_nothing_to_summarize(command, tmp_path):
    (tmp_path / "empty").write_text(" \n")
    code, _, err = command("summarize", tmp_path / "empty")
    assert code == 2
    assert "is empty" in err
    assert command("summarize", tmp_path / "none")[0] == 1


def prompts(toy):
    """The texts that the toy was asked to go on with."""
    inputs = [read_inputs(request) for request in toy.requests if "file" not in request.parameters]
    return [
        toy.tokenizer.decode(tensors["input_ids"].tolist())
        if "input_ids" in tensors
        else tensors["text_input"][0].decode()
        for tensors in inputs
    ]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def files(tmp_path):
    """A file of 40 requests, and where their answers go."""
    requests = [{"prompt": f"{number} {PROMPT}", "id": number} for number in range(40)]
    requests[3] = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2, "id": 3}
    requests[5] = {"prompt": "x" * 500, "id": 5}
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(request) + "\n" for request in requests))
    return tmp_path / "in.jsonl", tmp_path / "out.jsonl"


def test_batch(client, command, files):
    source, target = files
    code, _, err = command("batch", source, target, "--max-tokens", 4)
    answers = lines(target)
    assert (code, [answer["id"] for answer in answers]) == (0, list(range(40)))
    assert answers[0]["text"] == client.generate(f"0 {PROMPT}", max_tokens=4).text
    assert (
        answers[3]["text"] == client.generate(render([{"role": "user", "content": "Hi"}]), max_tokens=2).text
    )
    assert "tokens" in answers[5]["error"]
    assert "40 lines" in err


def test_batch_goes_on_where_it_was_killed(toy, command, files, tmp_path):
    source, target = files
    command("batch", source, tmp_path / "at_once.jsonl", "--max-tokens", 4)
    toy.delay = 0.02
    arguments = ["batch", source, target, "--model", "toy", "--url", toy.url, "--max-tokens", "4"]
    while not target.exists() or len(target.read_text().splitlines()) < 40:
        with subprocess.Popen(
            [sys.executable, "-m", "gptport", *map(str, arguments), "--concurrency", "3"],
            stderr=subprocess.DEVNULL,
        ) as process:
            before = target.stat().st_size if target.exists() else 0
            while process.poll() is None and (not target.exists() or target.stat().st_size < before + 1200):
                time.sleep(0.01)
            process.kill()
        with target.open("ab") as file:
            file.write(b'{"half a li')  # as a kill in the middle of writing leaves it
    assert command("batch", source, target, "--max-tokens", 4)[0] == 0
    at_once, found = lines(tmp_path / "at_once.jsonl"), lines(target)
    assert at_once[5].pop("error").split(" [request")[0] == found[5].pop("error").split(" [request")[0]
    assert found == at_once


def test_batch_stops_where_the_server_fails(toy, command, files):
    source, target = files
    toy.error_after = (0, "CUDA out of memory")
    code, _, err = command("batch", source, target)
    assert (code, target.read_text()) == (1, "")
    assert "CUDA out of memory" in err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a", "max_tokens": 0}', "line 1 of the input cannot be used: max_tokens is 0"),
        ('{"prompt": "a", "top": 1}', "unknown key 'top'"),
        ('{"id": 1}', "neither of prompt and messages"),
        ("[1]", "no JSON object"),
        ("{", "line 1"),
    ],
)
def test_batch_names_the_line_that_is_wrong(command, tmp_path, line, message):
    (tmp_path / "in.jsonl").write_text(line + "\n")
    code, _, err = command("batch", tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert code == 2
    assert message in err


def test_chat_remembers_and_resets(client, command, toy):
    code, out, err = command(
        "chat", "--temperature", 0, "--max-tokens", 3, stdin="Hi\nAnd?\n/reset\nHi\n/what\n"
    )
    first, second, third = prompts(toy)
    answer = client.generate(first, max_tokens=3).text
    assert code == 0
    assert first == third == render([{"role": "user", "content": "Hi"}])
    assert second == f"{first} {answer}\nuser: And?\nassistant:"
    assert out.startswith(answer + "\n")
    assert "/what is no command" in err


def test_what_is_piped_into_a_chat_ends_it_where_it_fails(command, toy):
    del toy.files["chat_template.jinja"]
    code, out, err = command("chat", stdin="Hi\nAnd?\n")
    assert (code, out) == (2, "")
    assert err.count("no chat template; use generate(), or gptport generate") == 1


def test_ctrl_c_stops_the_answer_and_not_the_chat(toy, tmp_path):
    toy.delay, toy.eos_token_ids, toy.max_length = 0.2, "", 4096
    chat = Terminal("chat", "--model", "toy", "--url", toy.url, home=tmp_path)
    chat.until("> ")
    chat.type("Tell me\n")
    assert eventually(lambda: prompts(toy))
    (request,) = (each for each in toy.requests if "file" not in each.parameters)
    pieces = toy.pieces(toy.tokenizer.encode(prompts(toy)[0]).ids, read_inputs(request))
    chat.until(next(text for _, text, _ in pieces if text.strip()))
    chat.type("\x03")
    chat.until("> ")
    assert toy.cancelled.wait(PATIENCE)
    toy.eos_token_ids = ",".join(map(str, range(EOS, 300)))
    chat.type("And?\n")
    chat.until("> ")
    assert prompts(toy)[1].startswith("user: Tell me\nassistant:")
    assert prompts(toy)[1].endswith("\nuser: And?\nassistant:")
    chat.type("\x04")
    assert chat.process.wait(PATIENCE) == 0
    assert "Tell me" in (tmp_path / "gptport" / "chat_history").read_text()


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, *arguments, home):
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gptport", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**os.environ, "XDG_STATE_HOME": str(home), "TERM": "dumb"},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)

    def type(self, text):
        os.write(self.master, text.encode())

    def until(self, text, seconds=PATIENCE):
        """Read until the terminal shows `text`."""
        shown, end = "", time.monotonic() + seconds
        while text not in shown:
            assert time.monotonic() < end, f"{text!r} did not come: {shown!r}"
            if select.select([self.master], [], [], 0.1)[0]:
                shown += os.read(self.master, 4096).decode(errors="replace")
        return shown
