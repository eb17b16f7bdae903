"""Contexts kept from whoever writes rules: do not read this file if you do. The package says why.

Written when version 2 of the corpus moved five contexts to the tuned ones; without looking at any rule.
"""

from __future__ import annotations

import json
from random import Random
from xml.sax.saxutils import escape

from curate.corpus.context import ANY, ONE_LINE, ONE_WORD, Context, among, context, quoted, settings
from curate.corpus.kind import Planted


def noun(planted: Planted, draw: Random) -> str:
    """What people call such a value."""
    match planted.kind.form:
        case "password":
            return draw.choice(["password", "pass", "passwd"])
        case "url":
            return draw.choice(["private link", "secret URL"])
        case "phrase" | "connection":
            return "secret"
        case _:
            return draw.choice(["key", "token", "secret", "credential"])


def header(planted: Planted, draw: Random) -> str:
    """A line of an HTTP request that carries the value."""
    match planted.kind.form:
        case "url":
            return f"Referer: {planted.text}"
        case "phrase":
            return f"Authorization: {planted.text}"
        case "password":
            return f"X-Admin-Password: {planted.text}"
        case _:
            name = draw.choice(["Authorization: Bearer ", "X-Api-Key: ", "Private-Token: ", "Api-Token: "])
            return name + planted.text


@context("git configuration", ONE_WORD | {"phrase"})
def git_configuration(planted: Planted, draw: Random) -> str:
    match planted.kind.form:
        case "url":
            line = f"remote.mirror.pushurl={planted.text}"
        case "password":
            line = f"sendemail.smtppass={planted.text}"
        case "phrase":
            line = f"http.https://git.example.com/.extraheader=Authorization: {planted.text}"
        case _:
            line = draw.choice(
                [
                    f"http.https://git.example.com/.extraheader=Authorization: Bearer {planted.text}",
                    f"{draw.choice(['deploy', 'ci', 'release'])}.{planted.camel.lower()}={planted.text}",
                ]
            )
    others = ["user.name=dev", "core.autocrlf=input", "pull.rebase=true", "branch.main.remote=origin"]
    return "\n".join(["$ git config --list", *among(draw, [line], others)])


@context("Terraform plan", ONE_LINE)
def terraform_plan(planted: Planted, draw: Random) -> str:
    name = draw.choice([planted.variable, planted.snake])
    text = quoted(planted.text)
    line = draw.choice(
        [
            f'          ~ "{name}" = {text} -> (sensitive value)',
            f'          ~ "{name}" = "changeme" -> {text}',
            f'          + "{name}" = {text}',
            f'          - "{name}" = {text} -> null',
        ]
    )
    others = [f'            "{key}" = "{value}"' for key, value in settings(draw, 2)]
    return "\n".join(
        [
            "  # aws_lambda_function.orders will be updated in-place",
            '  ~ resource "aws_lambda_function" "orders" {',
            "      ~ environment {",
            "          ~ variables = {",
            *among(draw, [line], others),
            "            }",
            "        }",
            "    }",
            "",
            "Plan: 0 to add, 1 to change, 0 to destroy.",
        ]
    )


@context("SQL insert", ONE_LINE)
def sql_insert(planted: Planted, draw: Random) -> str:
    text = "'" + planted.text.replace("'", "''") + "'"
    if draw.random() < 0.5:
        rows = [f"('{name.lower()}', '{value}')" for name, value in settings(draw, 3)]
        rows = among(draw, [f"('{planted.snake}', {text})"], rows)
        return "INSERT INTO app_settings (name, value) VALUES\n  " + ",\n  ".join(rows) + ";\nINSERT 0 4"
    number = draw.randint(2, 90)
    return draw.choice(
        [
            f"INSERT INTO integrations (id, provider, {planted.snake}, enabled)"  # noqa: S608
            f" VALUES ({number}, '{planted.kind.service}', {text}, true);",
            f"UPDATE integrations SET {planted.snake} = {text}, updated_at = now() WHERE id = {number};\nUPDATE 1",  # noqa: S608
        ]
    )


@context("CSV rows", ONE_LINE)
def csv_rows(planted: Planted, draw: Random) -> str:
    text = '"' + planted.text.replace('"', '""') + '"' if set(planted.text) & set(',"') else planted.text
    if draw.random() < 0.5:
        rows = [
            f"{name},{value.replace(',', ';')},2026-08-0{number}"
            for number, (name, value) in enumerate(settings(draw, 3), 1)
        ]
        return "\n".join(["name,value,updated", *among(draw, [f"{planted.variable},{text},2026-09-14"], rows)])
    head = f"account,{noun(planted, draw)},owner"
    return f"{head}\n{planted.kind.service},{text},ops@example.com\nsandbox,,qa@example.com"


@context("Rust debug print", ANY)
def rust_debug(planted: Planted, draw: Random) -> str:
    text = quoted(planted.text)
    value = draw.choice([text, f"Some({text})", f"Secret({text})"])
    others = [f"{name.lower()}: {quoted(value)}" for name, value in settings(draw, 2)]
    fields = among(draw, [f"{planted.snake}: {value}"], others)
    if draw.random() < 0.5:
        return f"[src/main.rs:{draw.randint(9, 99)}:5] &config = Config {{ {', '.join(fields)}, retries: 3 }}"
    body = ",\n".join("    " + field for field in fields)
    return f"[src/main.rs:{draw.randint(9, 99)}:5] &config = Config {{\n{body},\n    retries: 3,\n}}"


@context("PowerShell", ONE_LINE)
def powershell(planted: Planted, draw: Random) -> str:
    text = "'" + planted.text.replace("'", "''") + "'"
    line = draw.choice(
        [
            f"PS C:\\src\\shop> $env:{planted.variable} = {text}",
            f'PS C:\\src\\shop> [Environment]::SetEnvironmentVariable("{planted.variable}", {text}, "User")',
            f"PS C:\\src\\shop> ${planted.camel} = ConvertTo-SecureString {text} -AsPlainText -Force",
            f"PS C:\\src\\shop> .\\Deploy.ps1 -{planted.pascal} {text} -Region westeurope",
        ]
    )
    return f"PS C:\\src\\shop> Get-Location | Out-Null\n{line}\nPS C:\\src\\shop> npm run build"


@context("property list", ANY)
def property_list(planted: Planted, draw: Random) -> str:
    pair = f"\t<key>{draw.choice([planted.pascal, planted.variable])}</key>\n\t<string>{escape(planted.text)}</string>"
    others = [f"\t<key>{name}</key>\n\t<string>{escape(value)}</string>" for name, value in settings(draw, 2)]
    return "\n".join(['<plist version="1.0">', "<dict>", *among(draw, [pair], others), "</dict>", "</plist>"])


@context("multipart form", ANY)
def multipart(planted: Planted, draw: Random) -> str:
    mark = f"------WebKitFormBoundary{draw.randrange(16**8):08x}"
    parts = [(planted.snake, planted.text), ("redirect", "/settings"), ("notes", "from the wizard")]
    draw.shuffle(parts)
    body = "".join(f'{mark}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{text}\r\n' for name, text in parts)
    return f"POST /admin/integrations HTTP/1.1\r\nContent-Type: multipart/form-data\r\n\r\n{body}{mark}--\r\n"


@context("strace", ONE_WORD | {"phrase"})
def strace(planted: Planted, draw: Random) -> str:
    request = f"GET /v1/me HTTP/1.1\r\nHost: api.example.com\r\n{header(planted, draw)}\r\nAccept: */*\r\n\r\n"
    written = json.dumps(request)
    call = draw.choice(["write(5, ", "sendto(5, ", "SSL_write(0x5581, "])
    return "\n".join(
        [
            'openat(AT_FDCWD, "/etc/resolv.conf", O_RDONLY|O_CLOEXEC) = 4',
            f"[pid {draw.randint(300, 9999)}] {call}{written}, {len(request)}) = {len(request)}",
            r'read(5, "HTTP/1.1 200 OK\r\nContent-Type: ap"..., 16384) = 214',
        ]
    )


@context("Slack message", ONE_LINE)
def slack_message(planted: Planted, draw: Random) -> str:
    service, what = planted.kind.service, noun(planted, draw)
    text = planted.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    if planted.kind.form == "url":
        text = f"<{text}>"
    said = draw.choice(
        [
            f"hey <@U04ABCDEF>, new {what} for {service}: `{text}` :pray:",
            f"{service} {what}\n```{text}```\nvalid till Friday",
            f"anyone knows why {service} answers 401? I use the {what} {text} from the wiki",
            f"fyi the {service} {what} leaked in the channel again ({text}) please rotate",
        ]
    )
    message = {"type": "message", "user": "U04ABCDEG", "text": said, "ts": "1795168272.000200", "team": "T02AB"}
    return json.dumps({"ok": True, "messages": [message], "has_more": False}, indent=draw.choice([None, 2]))


@context("notebook cell", ANY)
def notebook_cell(planted: Planted, draw: Random) -> str:
    if draw.random() < 0.5:
        source = ["import os\n", f"os.environ[{quoted(planted.variable)}] = {planted.text!r}\n", "client = Client()"]
        outputs: list[object] = []
    else:
        source = [f"print(config.{planted.snake})" if draw.random() < 0.5 else f"config[{planted.snake!r}]"]
        outputs = [{"name": "stdout", "output_type": "stream", "text": (planted.text + "\n").splitlines(keepends=True)}]
    cell = {"cell_type": "code", "execution_count": 4, "metadata": {}, "outputs": outputs, "source": source}
    return json.dumps({"cells": [cell], "nbformat": 4, "nbformat_minor": 5}, indent=1)


@context("runbook", ANY)
def runbook(planted: Planted, draw: Random) -> str:
    service, what, text = planted.kind.service, noun(planted, draw), planted.text
    if planted.kind.form == "block":
        return f"## {service}\n\n1. Save the signing key:\n\n   ```\n{text}\n   ```\n\n2. Restart the worker."
    return draw.choice(
        [
            f"## {service}\n\n- **User:** `app`\n- **{what.capitalize()}:** `{text}`\n- Ask ops before you change it.",
            f"### When {service} is down\n\n1. Open the console.\n2. Enter {text} as the {what}.\n3. Press *Resume*.",
            f"| What | Where |\n| --- | --- |\n| {service} {what} | {text} |\n| Logs | Kibana |",
            f"> **Note** the {what} of {service} ({text}) is the same on staging and production.",
        ]
    )


@context("agent's report", ONE_LINE)
def report(planted: Planted, draw: Random) -> str:
    service, what, text = planted.kind.service, noun(planted, draw), planted.text
    place = f"`config/{draw.choice(['prod', 'local', 'ci'])}.py:{draw.randint(4, 90)}`"
    return draw.choice(
        [
            f"I found one problem: the {service} {what} is hard-coded in {place} (`{text}`). "
            "I read it from the environment now.",
            f"Done. I logged in to {service} with the {what} you gave me, {text}, and the import runs now.",
            f"☒ Remove the leaked {what} “{text}” from {place}\n☐ Rotate it at {service}\n☐ Run the tests",
            f"The request fails since {place} still sends the old {what} `{text}` to {service}; shall I replace it?",
        ]
    )


FORMATS: tuple[Context, ...] = (
    *(git_configuration, terraform_plan, sql_insert, csv_rows, rust_debug, powershell, property_list),
    *(multipart, strace, slack_message, notebook_cell, runbook, report),
)
