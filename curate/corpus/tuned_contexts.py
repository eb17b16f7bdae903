"""Contexts that whoever writes rules may read; see the package's docstring for the split."""

from __future__ import annotations

import base64
import json
from random import Random

from curate.corpus.context import (
    ANY,
    DONE,
    ONE_LINE,
    ONE_WORD,
    PLAIN_LINES,
    Context,
    among,
    context,
    quoted,
    settings,
)
from curate.corpus.kind import Planted

NEEDS_QUOTES = set(" &;$!#*?'\"(){}<>|`\n")


def shell_word(text: str) -> str:
    """A value as a person types it into a shell."""
    return "'" + text + "'" if NEEDS_QUOTES & set(text) else text


@context("shell export", ONE_LINE)
def shell_export(planted: Planted, draw: Random) -> str:
    lines = [f"export {planted.variable}={shell_word(planted.text)}"]
    others = [f"export {name}={value}" for name, value in settings(draw, 2)]
    return "\n".join([*among(draw, lines, others), "npm run start"])


@context(".env file", ANY)
def dotenv(planted: Planted, draw: Random) -> str:
    quote = draw.random() < 0.5 or bool(NEEDS_QUOTES & set(planted.text))
    if planted.kind.form == "block":
        value = '"' + planted.text.replace('"', '\\"') + '"' if draw.random() < 0.5 else quoted(planted.text)
    else:
        value = f'"{planted.text}"' if quote else planted.text
    others = [f"{name}={value}" for name, value in settings(draw, 4)]
    return "\n".join(among(draw, [f"{planted.variable}={value}"], others))


@context("JSON tool result", ANY)
def json_result(planted: Planted, draw: Random) -> str:
    key = draw.choice([planted.variable, planted.camel, planted.snake])
    rows: list[tuple[str, object]] = [(name.lower(), value) for name, value in settings(draw, 3)]
    rows.insert(draw.randint(0, 3), (key, planted.text))
    document = {"status": "ok", "config": dict(rows)}
    return json.dumps(document, indent=draw.choice([None, 2]))


@context("cat -n", ANY)
def cat_n(planted: Planted, draw: Random) -> str:
    if planted.kind.form == "block":
        body = [f'{planted.variable} = """', *planted.lines, '"""']
    else:
        body = [f"{planted.variable} = {quoted(planted.text)}"]
    lines = among(draw, body, [draw.choice(PLAIN_LINES) for _ in range(6)])
    start = draw.choice([1, 1, 37])
    mark = draw.choice(["\t", "→"])
    return "\n".join(f"{number:6d}{mark}{line}" for number, line in enumerate(lines, start))


@context("curl header", ONE_WORD | {"phrase"})
def curl_header(planted: Planted, draw: Random) -> str:
    if planted.kind.form == "url":
        call = f"curl -sS -X POST '{planted.text}' -H 'Content-Type: application/json' -d '{{\"text\":\"hi\"}}'"
    elif planted.kind.form == "password":
        call = f"curl -u {shell_word('admin:' + planted.text)} https://api.example.com/v1/users"
    elif planted.kind.form == "phrase":
        call = (
            f'curl https://api.example.com/v1/users -H "{draw.choice(["Authorization", "X-Secret"])}: {planted.text}"'
        )
    else:
        header = draw.choice(["Authorization: Bearer ", "x-api-key: ", "Authorization: token ", "X-Auth-Token: "])
        call = f'curl -s https://api.example.com/v1/users -H "{header}{planted.text}" | jq .'
    return f'$ {call}\n{{"users": [], "page": 1}}'


@context("Kubernetes secret", ANY)
def kubernetes_secret(planted: Planted, draw: Random) -> str:
    encoded = base64.b64encode(planted.text.encode()).decode()
    others = [f"  {name.lower()}: {base64.b64encode(value.encode()).decode()}" for name, value in settings(draw, 2)]
    data = among(draw, [f"  {planted.kebab}: {encoded}"], others)
    return "\n".join(["apiVersion: v1", "kind: Secret", "metadata:", "  name: app", "type: Opaque", "data:", *data])


@context("git diff", ANY)
def git_diff(planted: Planted, draw: Random) -> str:
    if planted.kind.form == "block":
        body = [f'+{planted.variable} = """', *("+" + line for line in planted.lines), '+"""']
    else:
        body = [f"{draw.choice('+-')}{planted.variable} = {quoted(planted.text)}"]
    head = ["diff --git a/settings.py b/settings.py", "index 3c1f9aa..b77d0e1 100644", "--- a/settings.py"]
    around = among(draw, body, [" " + draw.choice(PLAIN_LINES) for _ in range(4)])
    return "\n".join([*head, "+++ b/settings.py", "@@ -10,6 +10,7 @@ import os", *around])


@context("log line", ONE_LINE)
def log_line(planted: Planted, draw: Random) -> str:
    said = draw.choice(
        [
            f"connecting with {planted.snake}={planted.text}",
            f'request failed config={{"{planted.camel}":{quoted(planted.text)}}} retry=2',
            f"loaded setting {planted.variable}: {planted.text}",
        ]
    )
    return "\n".join(
        [
            "2026-11-20T10:11:12.123Z INFO  worker started pid=4711",
            f"2026-11-20T10:11:12.456Z {draw.choice(['DEBUG', 'WARN '])} {said}",
            "2026-11-20T10:11:13.001Z INFO  " + draw.choice(DONE),
        ]
    )


@context("INI", ONE_LINE)
def ini(planted: Planted, draw: Random) -> str:
    others = [f"{name.lower()} = {value}" for name, value in settings(draw, 3)]
    return "\n".join(["[default]", *among(draw, [f"{planted.snake} = {planted.text}"], others), "", "[extra]", "a = 1"])


@context("TOML", ANY)
def toml(planted: Planted, draw: Random) -> str:
    if planted.kind.form == "block":
        body = [f"{planted.snake} = '''", *planted.lines, "'''"]
    else:
        body = [f"{draw.choice([planted.snake, planted.kebab])} = {quoted(planted.text)}"]
    others = [f'{name.lower()} = "{value}"' for name, value in settings(draw, 3)]
    return "\n".join(["[service]", *among(draw, body, others)])


@context("source literal", ANY)
def source_literal(planted: Planted, draw: Random) -> str:
    if planted.kind.form == "block":
        return "\n".join([f"const {planted.camel} = `" + planted.text + "`;", f"sign(payload, {planted.camel});"])
    text = quoted(planted.text)
    return draw.choice(
        [
            f"const {planted.camel} = {text};\nconst client = new Client({{ {planted.camel}, retries: 3 }});",
            f"client := api.New(api.Config{{\n\t{planted.pascal}: {text},\n\tRetries: 3,\n}})",
            f"{planted.variable} = os.environ.get({quoted(planted.variable)}, {text})\nclient = Client()",
            f"    client = Client({planted.snake}={text}, timeout=30)\n    return client.users()",
        ]
    )


@context("docker inspect", ONE_LINE)
def docker_inspect(planted: Planted, draw: Random) -> str:
    others = [f"{name}={value}" for name, value in settings(draw, 3)]
    env = among(draw, [f"{planted.variable}={planted.text}"], others)
    return json.dumps([{"Id": "web-1", "Config": {"Env": env, "Cmd": ["node", "server.js"]}}], indent=4)


@context("Terraform", ANY)
def terraform(planted: Planted, draw: Random) -> str:
    value = f"<<EOT\n{planted.text}\nEOT" if planted.kind.form == "block" else quoted(planted.text)
    return draw.choice(
        [
            f'variable "{planted.snake}" {{\n  type    = string\n  default = {value}\n}}',
            f'provider "thing" {{\n  region = "eu-west-1"\n  {planted.snake} = {value}\n}}',
        ]
    )


@context("YAML", ANY)
def yaml(planted: Planted, draw: Random) -> str:
    if planted.kind.form == "block":
        body = [f"  {planted.snake}: |", *("    " + line for line in planted.lines)]
    else:
        plain = not NEEDS_QUOTES & set(planted.text) and ": " not in planted.text and draw.random() < 0.5
        body = [
            f"  {draw.choice([planted.variable, planted.camel])}: {planted.text if plain else quoted(planted.text)}"
        ]
    others = [f"  {name.lower()}: {value}" for name, value in settings(draw, 3)]
    return "\n".join(["app:", *among(draw, body, others), "replicas: 2"])


@context("compose file", ONE_LINE)
def compose(planted: Planted, draw: Random) -> str:
    others = [f"      - {name}={value}" for name, value in settings(draw, 2)]
    lines = among(draw, [f"      - {planted.variable}={planted.text}"], others)
    return "\n".join(["services:", "  web:", "    image: shop:1.4", "    environment:", *lines])


@context("docker run", ONE_LINE)
def docker_run(planted: Planted, draw: Random) -> str:
    flags = among(
        draw, [f"-e {planted.variable}={shell_word(planted.text)}"], [f"-e {n}={v}" for n, v in settings(draw, 2)]
    )
    return "docker run --rm " + " ".join(flags) + " shop:1.4 node server.js\nUnable to find image 'shop:1.4' locally"


@context("grep", ONE_LINE)
def grep(planted: Planted, draw: Random) -> str:
    return "\n".join(
        [
            "src/config/index.ts:12:  port: Number(process.env.PORT),",
            f"src/{draw.choice(['local', 'prod'])}.ts:{draw.randint(3, 90)}:  {planted.camel}: {quoted(planted.text)},",
            "README.md:44:Set the variables before you start.",
        ]
    )


@context("header dump", ONE_WORD | {"phrase"})
def header_dump(planted: Planted, draw: Random) -> str:
    if planted.kind.form == "url":
        lines = [f"location: {planted.text}"]
    elif planted.kind.form == "password":
        lines = ["x-auth-user: admin", f"x-auth-password: {planted.text}"]
    else:
        lines = [draw.choice([f"authorization: Bearer {planted.text}", f"cookie: theme=dark; session={planted.text}"])]
        if planted.kind.form == "phrase":
            lines = [f"authorization: {planted.text}"]
    around = ["host: api.example.com", "accept: */*", "content-type: application/json"]
    return "\n".join(["> GET /v1/me HTTP/1.1", *("> " + line for line in among(draw, lines, around)), ">"])


@context("prose", ANY)
def prose(planted: Planted, draw: Random) -> str:
    service, text = planted.kind.service, planted.text
    if planted.kind.form == "block":
        return f"This is the {service} key we sign with, put it on the box please:\n\n{text}\n\nThen restart nginx."
    if planted.kind.form == "password":
        return draw.choice(
            [
                f"You can log in to {service} as admin, the password is {text} and it never expires.",
                f"ok so the {service} pw: {text} , try again please",
                f"I changed the password of the {service} account to {text}. Please update the tests.",
                f"Log in with admin / {text} and tell me what you see.",
            ]
        )
    if planted.kind.form == "phrase":
        return f"My {service} {planted.snake.replace('_', ' ')} is {text} - do not write it to a file."
    noun = draw.choice(["link", "URL"] if planted.kind.form == "url" else ["key", "token", "secret"])
    return draw.choice(
        [
            f"Use this {noun} for {service}: {text} and run the import again.",
            f"The {service} {noun} is {text}, please don't commit it.",
            f"ok I made a new {noun}, {text} - the old one still works until Friday",
            f"Is {text} still valid? The call to {service} says 401 since this morning.",
            f"the {noun} in CI should be {text}, no idea why it was rotated",
            f"Use {text} for {service} and run the import again.",
            f"I pasted it here so that you can test: {text}. The old one still works until Friday.",
            f"can you try with `{text}` instead",
        ]
    )


@context("wrapped terminal", frozenset({"token", "url", "connection"}))
def wrapped(planted: Planted, draw: Random) -> str:
    """A command line longer than the terminal is wide, copied with the line ends of the screen."""
    line = (
        f"$ {draw.choice(['run', 'deploy', 'start'])} --quiet --{planted.kebab}={planted.text} --region eu-west-1 --yes"
    )
    secret = planted.value.secrets[0]
    width = line.index(secret) + draw.randint(4, max(5, min(40, len(secret) - 4)))
    rows = [line[start : start + width] for start in range(0, len(line), width)]
    return "\n".join([draw.choice(PLAIN_LINES), *rows, draw.choice(DONE)])


@context("commit message", ONE_LINE)
def commit_message(planted: Planted, draw: Random) -> str:
    said = draw.choice(
        [
            f"Set {planted.variable} to {planted.text} on staging",
            f"Rotate the {planted.kind.service} key\n\n    The old one ({planted.text}) was in the image.",
            f"fix: hardcode {planted.snake} {planted.text} until the vault is back",
        ]
    )
    return f"commit 5d1e0b7\nAuthor: dev\nDate:   Fri Nov 20 10:11:12 2026\n\n    {said}\n"


@context("Java properties", ONE_LINE)
def properties(planted: Planted, draw: Random) -> str:
    text = planted.text.replace("\\", "\\\\")
    sign = draw.choice(["=", " = ", ":"])
    text = (
        text.replace(":", "\\:").replace("=", "\\=").replace("#", "\\#").replace("!", "\\!")
        if draw.random() < 0.5
        else text
    )
    return "\n".join(["server.port=8080", f"app.{planted.dotted}{sign}{text}", "spring.jpa.show-sql=false"])


@context("chat paste", ANY)
def chat_paste(planted: Planted, draw: Random) -> str:
    service, text = planted.kind.service, planted.text
    if planted.kind.form == "password":
        return draw.choice(
            [
                f"creds for {service}:\n\nuser: admin\npassword\n{text}\n\nthanks",
                f"{service} login\nops@example.com\npw {text}",
            ]
        )
    return draw.choice(
        [
            f"here you go\n\n{text}\n\nthat's for {service}, let me know when it works",
            f"{service}:\n```\n{text}\n```\nplease add it to the pipeline",
            f"{planted.variable}\n{text}\n\nwhy does the deploy still fail?",
        ]
    )


@context("wrapped table cell", frozenset({"token", "url", "connection"}))
def wrapped_cell(planted: Planted, draw: Random) -> str:
    """A table drawn as wide as the terminal: a long value goes on in the next line of its cell."""
    width = draw.choice([24, 30, 36])
    rows = [*settings(draw, 2), (planted.variable, planted.text)]
    left = max(len(name) for name, _ in rows)
    lines = [f"┏{'━' * (left + 2)}┳{'━' * (width + 2)}┓", f"┃ {'Name':<{left}} ┃ {'Value':<{width}} ┃"]
    lines.append(f"┡{'━' * (left + 2)}╇{'━' * (width + 2)}┩")
    for name, value in rows:
        for number, at in enumerate(range(0, len(value), width)):
            lines.append(f"│ {'' if number else name:<{left}} │ {value[at : at + width]:<{width}} │")
    return "\n".join([*lines, f"└{'─' * (left + 2)}┴{'─' * (width + 2)}┘"])


CONTEXTS: tuple[Context, ...] = (
    *(shell_export, dotenv, json_result, cat_n, curl_header, kubernetes_secret, git_diff, log_line, ini, toml),
    *(source_literal, docker_inspect, terraform, yaml, compose, docker_run, grep, header_dump),
    *(prose, wrapped, commit_message, properties, chat_paste),  # held out in version 1
    wrapped_cell,  # held out in version 2
)
