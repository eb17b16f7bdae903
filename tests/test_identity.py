"""Identities: found where they are told, replaced wherever they stand, and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capture.call import Message, ToolUse
from curate.recipe import RedactionPolicy
from curate.redact import IDENTITY_KINDS, Redactor
from tests.sample_sessions import pooled, text_session

KEY = b"k" * 32


def redact(text: str) -> str:
    return Redactor(key=KEY).text(text)[0]


TOLD: dict[str, tuple[str, str]] = {
    "home": ("/home/mkowalski/src/a.py", "mkowalski"),
    "mac": ("open /Users/mkowalski/notes.txt", "mkowalski"),
    "windows": (r"C:\Users\mkowalski\code", "mkowalski"),
    "windows with a space": (r"C:\Users\Maria Kowalska\code", "Maria Kowalska"),
    "windows in JSON": (json.dumps({"path": "C:\\Users\\mkowalski\\code"}), "mkowalski"),
    "URL-encoded": ("file=%2Fhome%2Fmkowalski%2Fa.py", "mkowalski"),
    "Claude Code's folder": ("~/.claude/projects/-home-mkowalski-src/x.jsonl", "mkowalski"),
    "prompt": ("mkowalski@box7:~/src$ ls", "mkowalski"),
    "prompt's host": ("mkowalski@buildbox7:~/src$ ls", "buildbox7"),
    "zsh prompt": ("mkowalski@buildbox7 ~ % ls", "buildbox7"),
    "ssh": ("ssh -p 22 mkowalski@db.staging7 uptime", "mkowalski"),
    "ssh host": ("scp x.tgz mkowalski@db.staging7:/tmp", "db.staging7"),
    "author": ("Author: Maria Kowalska <maria@kowalska.io>", "Maria Kowalska"),
    "author's mail": ("Author: Maria Kowalska <maria@kowalska.io>", "maria@kowalska.io"),
    "git config": ("user.name=Maria Kowalska\nuser.email=mk@kowalska.io", "Maria Kowalska"),
    "whoami": ("$ whoami\nmkowalski\n", "mkowalski"),
    "id": ("uid=1000(mkowalski) gid=1000(mkowalski)", "mkowalski"),
    "USER": ("SHELL=/bin/sh\nUSER=mkowalski\nPWD=/", "mkowalski"),
    "ls": ("total 4\n-rw-r--r-- 1 mkowalski devs 120 Jan  2 10:00 a.py", "mkowalski"),
    "passwd": ("mkowalski:x:1000:1000:,,,:/srv:/bin/bash", "mkowalski"),
    "hostname": ("HOSTNAME=buildbox7", "buildbox7"),
    "uname": ("Linux buildbox7 6.1.0-13-amd64 #1 SMP", "buildbox7"),
    "internal host": ("curl http://grafana.corp.acme-inc.internal:3000/d", "grafana.corp.acme-inc.internal"),
    "mdns": ("Host nas-2.local is up", "nas-2.local"),
    "remote": ("origin\tgit@github.com:acme-inc/rocket.git (fetch)", "acme-inc/rocket"),
    "remote URL": ("origin\thttps://github.com/acme-inc/rocket.git (push)", "acme-inc/rocket"),
    "clone": ("git clone https://gitlab.com/acme-inc/rocket", "acme-inc/rocket"),
    "address": ("ping 192.168.17.23", "192.168.17.23"),
    "mail": ("write to m.kowalska+x@kowalska.co.uk.", "m.kowalska+x@kowalska.co.uk"),
}


@pytest.mark.parametrize("place", TOLD)
def test_places_that_tell(place: str) -> None:
    text, name = TOLD[place]
    redacted, counts = Redactor(key=KEY).text(text)
    assert name not in redacted, redacted
    assert set(counts) <= IDENTITY_KINDS
    assert redact(redacted) == redacted


@pytest.mark.parametrize(
    "text",
    [
        "/home/user/x /home/ubuntu/y /Users/runner/z /root/a",
        "import threading\nlocal = threading.local()\nself.private = foo.internal",
        "@decorator\ndef f(): ...  # see github.com/python/cpython and https://github.com/nodejs/node-gyp/issues",
        "npm i react@18.2.0 icon@2x.png git@github.com: pkg@latest user@example.com noreply@anthropic.com",
        "Co-Authored-By: Claude <noreply@anthropic.com>",
        "version 10.0.1.2.3 and 127.0.0.1 and 0.0.0.0 and 10.0.0.1",
        "http://localhost:8000 host.docker.internal kubernetes.default.svc.cluster.local",
        "drwxr-xr-x 2 root root 4096 Jan  2 10:00 bin",
        "user-3f2a1b@mail-77aa01.invalid /home/user-3f2a1b/x host-3f2a1b.invalid",
        "git@github.com:org-3f2a1b/repo-77aa01.git",
    ],
)
def test_what_is_nobodys_stays(text: str) -> None:
    assert Redactor(key=KEY).text(text) == (text, {})


def test_a_path_stays_the_same_path() -> None:
    one, other = redact("see /home/mkowalski/src/a.py"), redact('{"file": "/home/mkowalski/src/a.py"}')
    pseudonym = re.search(r"/home/(user-[0-9a-f]{6})/src/a\.py", one)
    assert pseudonym is not None
    assert pseudonym[0] in other
    assert Redactor(key=b"x" * 32).text("/home/mkowalski/src/a.py")[0] not in one


def test_a_name_told_once_goes_everywhere_in_the_session() -> None:
    messages = [
        Message(role="user", content="ask mkowalski about rocket, not mkowalskis"),
        Message(
            role="assistant",
            content="",
            tool_calls=(ToolUse(id="call_1", name="Bash", arguments=json.dumps({"command": "ls /home/mkowalski"})),),
        ),
        Message(role="tool", tool_call_id="call_1", content="a\nmkowalski\tx buildbox7"),
        Message(role="user", content="HOSTNAME=buildbox7"),
    ]
    session = replace(text_session(), pool=tuple(pooled(message, 0) for message in messages))
    done = Redactor(key=KEY).trajectory(session)
    first, call, output, _ = [each.message for each in done.trajectory.pool]
    pseudonym = re.search(r"user-[0-9a-f]{6}", first.content)
    assert pseudonym is not None
    assert first.content == f"ask {pseudonym[0]} about rocket, not mkowalskis"
    assert json.loads(call.tool_calls[0].arguments) == {"command": f"ls /home/{pseudonym[0]}"}
    assert re.fullmatch(rf"a\n{pseudonym[0]}\tx host-[0-9a-f]{{6}}\.invalid", output.content)
    assert output.tool_call_id == call.tool_calls[0].id
    assert done.by_message[0] == 1


def test_names_that_are_words_go_only_from_their_places() -> None:
    assert re.fullmatch(r"/home/user-\w{6}/x; max\(a, b\)", redact("/home/max/x; max(a, b)"))


def test_off_by_policy() -> None:
    text = "/home/mkowalski ann@kowalska.io"
    assert Redactor(key=KEY, policy=RedactionPolicy(identity=False)).text(text) == (text, {})
    assert Redactor(key=KEY, policy=RedactionPolicy(allow=("ann@kowalska.io",))).text(text)[0].endswith("@kowalska.io")


ENCODINGS: dict[str, Callable[[str], str]] = {
    "plain": lambda text: text,
    "JSON": lambda text: json.dumps({"a": text}),
    "JSON in JSON": lambda text: json.dumps({"a": json.dumps({"b": text})}),
    "URL": lambda text: quote(text, safe=""),
}
PLACES = st.sampled_from([text for text, _ in TOLD.values()])


@settings(max_examples=100, deadline=None)
@given(st.lists(PLACES, min_size=1, max_size=4).map("\n".join), st.sampled_from(sorted(ENCODINGS)))
def test_pseudonymous_text_is_clean_and_json_stays_json(text: str, encoding: str) -> None:
    encoded = ENCODINGS[encoding](text)
    once, counts = Redactor(key=KEY).text(encoded)
    assert counts
    assert Redactor(key=KEY).text(once) == (once, {})
    if "JSON" in encoding:
        json.loads(once)
