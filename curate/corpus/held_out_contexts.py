"""Contexts kept from whoever writes rules: do not read this file if you do. The package says why."""

from __future__ import annotations

import base64
import html
import json
from random import Random
from urllib.parse import quote
from xml.sax.saxutils import escape

from curate.corpus.context import (
    ANY,
    DONE,
    ONE_LINE,
    ONE_WORD,
    Context,
    among,
    context,
    quoted,
    settings,
)
from curate.corpus.held_out_formats import FORMATS
from curate.corpus.kind import Planted

RED, PURPLE, GREEN, CYAN, BOLD, END = (
    "\x1b[01;31m\x1b[K",
    "\x1b[35m\x1b[K",
    "\x1b[32m\x1b[K",
    "\x1b[36m\x1b[K",
    "\x1b[1m",
    "\x1b[m\x1b[K",
)


def config_file(planted: Planted, draw: Random) -> str:
    """A small settings file with the value in it."""
    if planted.kind.form == "block":
        body = [f"{planted.variable}={quoted(planted.text)}"]
    else:
        body = [f"{planted.variable}={planted.text}"]
    return "\n".join(among(draw, body, [f"{name}={value}" for name, value in settings(draw, 3)])) + "\n"


@context("JSON inside JSON", ANY)
def json_in_json(planted: Planted, draw: Random) -> str:
    inner = json.dumps({draw.choice([planted.camel, planted.snake]): planted.text, "retries": 3})
    for level in range(draw.choice([1, 1, 2])):
        inner = json.dumps({"type": "tool_result", "content": inner} if level else {"stdout": inner, "code": 0})
    return json.dumps({"role": "tool", "tool_call_id": "call_1", "content": inner})


@context("coloured grep", ONE_LINE)
def coloured_grep(planted: Planted, draw: Random) -> str:
    shown = planted.text
    variable = planted.snake
    if draw.random() < 0.5:  # grep -i of a part of the name
        part = variable.split("_")[-1]
        head = variable[: -len(part)]
        line = f"  {head}{RED}{part}{END}: {quoted(shown)},"
    else:  # of the head of the value itself
        cut = draw.randint(3, min(9, len(shown) - 3))
        line = f'  {variable}: "{RED}{shown[:cut]}{END}{shown[cut:]}",'
    colon = f"{CYAN}:{END}"
    return "\n".join(
        [
            f"{PURPLE}app/settings.yml{END}{colon}{GREEN}{draw.randint(2, 200)}{END}{colon}{line}",
            f"{PURPLE}app/routes.rb{END}{colon}{GREEN}7{END}{colon}  get {BOLD}'/health'{END}",
        ]
    )


@context("base64 of a config", ANY)
def base64_config(planted: Planted, draw: Random) -> str:
    encoded = base64.b64encode(config_file(planted, draw).encode()).decode()
    if draw.random() < 0.5:
        encoded = "\n".join(encoded[at : at + 76] for at in range(0, len(encoded), 76))
        return f"$ base64 config/app.env\n{encoded}\n$ echo done"
    return f'{{"name": "app.env", "encoding": "base64", "content": "{encoded}", "size": {len(encoded)}}}'


@context("YAML, value on the next line", ONE_LINE)
def yaml_next_line(planted: Planted, draw: Random) -> str:
    style = draw.choice(["env", "env", "folded"])
    if style == "env":
        body = [f"        - name: {planted.variable}", f"          value: {quoted(planted.text)}"]
        other = [f"        - name: {name}\n          value: '{value}'" for name, value in settings(draw, 2)]
        return "\n".join(
            ["    spec:", "      containers:", "      - image: shop:1.4", "        env:", *among(draw, body, other)]
        )
    body = [f"{planted.snake}: >-", f"  {planted.text}"]
    return "\n".join(among(draw, body, [f"{name.lower()}: '{value}'" for name, value in settings(draw, 3)]))


@context("URL query", ONE_WORD)
def url_query(planted: Planted, draw: Random) -> str:
    if planted.kind.form == "url":
        name = draw.choice(["target", "callback_url", "u"])
    else:
        name = draw.choice(["key", "api_key", "access_token", "token", "auth", planted.snake])
    if planted.kind.form == "password":
        name = draw.choice(["password", "pass", "pwd"])
    pairs = among(draw, [f"{name}={quote(planted.text, safe='')}"], ["page=2", "format=json"])
    return f"GET https://api.example.com/v2/items?{'&'.join(pairs)} 200 OK (134 ms)\n{draw.choice(DONE)}"


@context("Python repr", ANY)
def python_repr(planted: Planted, draw: Random) -> str:
    rows = [(name.lower(), value) for name, value in settings(draw, 2)]
    rows.insert(draw.randint(0, 2), (planted.snake, planted.text))
    if draw.random() < 0.5:
        return f">>> vars(config)\n{dict(rows)!r}"
    inner = ", ".join(f"{name}={value!r}" for name, value in rows)
    return f">>> config\nSettings({inner})\n>>> exit()"


@context("table cell", ONE_LINE)
def table_cell(planted: Planted, draw: Random) -> str:
    rows = [("name", "value"), *((n, v) for n, v in settings(draw, 2)), (planted.variable, planted.text)]
    width = max(len(value) for _, value in rows)
    if draw.random() < 0.5:
        lines = [f"| {name} | {value} |" for name, value in rows]
        return "\n".join([lines[0], "| --- | --- |", *lines[1:]])
    bar = f"+{'-' * 32}+{'-' * (width + 2)}+"
    lines = [f"| {name:<30} | {value:<{width}} |" for name, value in rows]
    return "\n".join([bar, lines[0], bar, *lines[1:], bar])


@context("traceback", ONE_LINE)
def traceback(planted: Planted, draw: Random) -> str:
    message = draw.choice(
        [
            f"AuthenticationError: Incorrect API key provided: {planted.text}.",
            f"ValueError: cannot parse {planted.text!r}",
            f"RuntimeError: login to {planted.kind.service} failed ({planted.snake}={planted.text!r})",
        ]
    )
    if planted.kind.form == "password":
        message = f"OperationalError: access denied for user 'app' (using password: '{planted.text}')"
    return "\n".join(
        [
            "Traceback (most recent call last):",
            '  File "app/main.py", line 41, in <module>',
            "    run()",
            '  File "app/client.py", line 88, in run',
            "    raise error",
            message,
        ]
    )


@context("cut off", frozenset({"token", "url", "connection", "block"}))
def cut_off(planted: Planted, draw: Random) -> str:
    """The output ends inside the secret; what is seen of it is 60 to 90 %, and no less than 16 characters."""
    text = planted.text
    secret = planted.value.secrets[0] if planted.kind.form != "block" else text
    start = text.index(secret)
    keep = min(len(secret), max(16, int(len(secret) * draw.uniform(0.6, 0.9))))
    seen = text[: start + keep]
    config = "\n".join(f"{name}={value}" for name, value in settings(draw, 3))
    end = draw.choice(["… [truncated 18,231 characters]", "\n\n[output truncated]", "...<truncated>", ""])
    return f"{config}\n{planted.variable}={seen}{end}"


@context("HTML", ANY)
def html_page(planted: Planted, draw: Random) -> str:
    text = html.escape(planted.text)
    if planted.kind.form == "block":
        return f"<h2>{planted.kind.service} key</h2>\n<pre><code>{text}</code></pre>\n<p>Keep it.</p>"
    return draw.choice(
        [
            f'<label>{planted.kind.service}</label><input id="{planted.kebab}" value="{text}" readonly>',
            f"<tr><td>{planted.variable}</td><td><code>{text}</code></td></tr>",
            f'<meta name="{planted.kebab}" content="{text}">\n<title>Shop</title>',
        ]
    )


@context("CI log with masked neighbours", ONE_LINE)
def ci_log(planted: Planted, draw: Random) -> str:
    stamp = "2026-11-20T10:11:12.0000000Z "
    lines = [f"  {planted.variable}: {planted.text}"]
    others = [
        "  NPM_CONFIG_TOKEN: ***",
        "  CI: true",
        f"  DEPLOY_HOST: {draw.choice(['web-1', 'web-2'])}",
        "  SIGNING_PASSWORD: ***",
    ]
    return "\n".join(
        [
            stamp + "##[group]Run make deploy",
            stamp + "env:",
            *(stamp + line for line in among(draw, lines, others)),
            stamp + "##[endgroup]",
        ]
    )


@context("XML", ANY)
def xml(planted: Planted, draw: Random) -> str:
    text = escape(planted.text, {'"': "&quot;"})
    if planted.kind.form == "block":
        return f"<settings>\n  <{planted.camel}>\n{text}\n  </{planted.camel}>\n</settings>"
    return draw.choice(
        [
            f'<settings>\n  <add key="A" value="b" />\n  <add key="{planted.camel}" value="{text}" />\n</settings>',
            f"<server>\n  <id>central</id>\n  <{planted.camel}>{text}</{planted.camel}>\n</server>",
            f'<string name="{planted.snake}">{text}</string>',
        ]
    )


@context("shell history", ONE_WORD)
def history(planted: Planted, draw: Random) -> str:
    if planted.kind.form == "url":
        line = f"http POST {planted.text!r} text=hello"
    elif planted.kind.form == "password":
        line = draw.choice(
            [
                f"mysql -h db -u root -p'{planted.text}' shop",
                f"sshpass -p '{planted.text}' ssh ops@web-1",
                f"PGPASSWORD='{planted.text}' psql -h db -U app",
            ]
        )
    else:
        line = draw.choice(
            [
                f"tool login --token {planted.text}",
                f"echo {planted.text} | docker login --password-stdin -u ci registry.example.com",
                f"{planted.variable}={planted.text} ./deploy.sh",
                f"tool config set {planted.kebab} {planted.text}",
            ]
        )
    number = draw.randint(200, 1900)
    return "\n".join([f" {number}  git pull", f" {number + 1}  {line}", f" {number + 2}  ls -la"])


@context("process list", ONE_WORD)
def process_list(planted: Planted, draw: Random) -> str:
    flag = draw.choice(
        [f"--{planted.kebab} {planted.text}", f"--{planted.kebab}={planted.text}", f"-D{planted.dotted}={planted.text}"]
    )
    return "\n".join(
        [
            "USER       PID %CPU %MEM    VSZ   RSS TTY      STAT START   TIME COMMAND",
            "root         1  0.0  0.1 168140 11480 ?        Ss   10:02   0:01 /sbin/init",
            f"app {draw.randint(100, 9999):>10}  1.2  2.4 918372 99120 ?        Sl   10:04   0:09 worker {flag} -q",
        ]
    )


@context("streamed deltas", ANY)
def streamed(planted: Planted, draw: Random) -> str:
    """A file written by a tool call, its JSON argument streamed in pieces, one event per line."""
    content = f"LOG_LEVEL=info\n{planted.variable}={planted.text}\nPORT=8080\n"
    argument = json.dumps({"path": "app.env", "content": content})
    openai = draw.random() < 0.5
    events: list[str] = []
    at = 0
    while at < len(argument):
        size = draw.randint(3, 14)
        piece = argument[at : at + size]
        at += size
        if openai:
            event: object = {
                "choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}}]
            }
        else:
            event = {
                "type": "content_block_delta",
                "index": 1,
                "delta": {"type": "input_json_delta", "partial_json": piece},
            }
        events.append("data: " + json.dumps(event, separators=(",", ":")))
    return "\n\n".join(events) + "\n"


CONTEXTS: tuple[Context, ...] = (
    *(json_in_json, coloured_grep, base64_config, yaml_next_line, url_query, python_repr, table_cell, traceback),
    *(cut_off, html_page, ci_log, xml, history, process_list, streamed),
    *FORMATS,
)
