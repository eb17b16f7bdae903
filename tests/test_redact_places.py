"""Places that tell a secret, and places that look like them: one line of each, as sessions of coding agents have it."""

from __future__ import annotations

import json

import pytest

from curate.redact import Redactor

KEY = b"k" * 32
TOKEN = "q7Rz2LmX9vBt4KpW8sYd"
SHA = "8cd3f8f420066dd615d54e90b660946c6c913100"
UUID = "4a8f8f08-dd0f-4de8-bb24-a031db64e0c1"


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (f'variable "api_token" {{\n  type    = string\n  default = "{UUID}"\n}}\n', UUID),
        ('variable "db_password" {\n  default = "Nature2026!!"\n}\n', "Nature2026!!"),
        ("PHPSESSID=22i2qa050mfojsxd7zi2nxecrm\n", "22i2qa050mfojsxd7zi2nxecrm"),
        (f"CONNECT_SID=s%3A{TOKEN}{TOKEN}.{TOKEN}{TOKEN}9\n", TOKEN),
        ("export DB_PASS=pocket21002\n", "pocket21002"),
        ('const dbPass = "bridge72147";\n', "bridge72147"),
        ("[default]\nworkers = 4\ndb_password = Wizard2026!\n", "Wizard2026!"),
        ("> host: api.example.com\n> x-auth-password: Island2026$\n", "Island2026$"),
        ("10:11:12 DEBUG loaded setting MYSQL_PWD: cotton47699\n", "cotton47699"),
        ("I changed the password of the admin account to Ladder2024$. Please update it.", "Ladder2024$"),
        ("I changed the password of the wifi to puzzle_honey_walnut_maple. Thanks.", "puzzle_honey_walnut_maple"),
        ("wifi login\nops@example.com\npw ginger3936\n", "ginger3936"),
        ("user: admin\npassword\nGalaxy3348$\n\nthanks", "Galaxy3348$"),
        ("Log in with admin / F@lc0ngl@c13r&3 and tell me what you see.", "F@lc0ngl@c13r&3"),
        (f"commit 5d1e0b7\n\n    Rotate the session key\n\n    The old one ({UUID}) was in the image.\n", UUID),
        ("app.mysql.url=mysql\\://root\\:rhUXEYR12C5TYMX@mysql\\:3306/wiki\n", "rhUXEYR12C5TYMX"),
        ("Server=tcp:sql1.example.net,1433;User ID=crm;Password=ARSNKsSDaQeiyhiTUA;Encrypt=true", "ARSNKsSDaQeiyhiTUA"),
        ("here you go: 61E95-L35CY-GA685-XRJ13-I64VA", "61E95-L35CY-GA685-XRJ13-I64VA"),
        ("$ run --quiet --mysql-url=mysql://root:38FsnCMJTb\n9IDBQ@mysql:3306/wiki --yes\n", "38FsnCMJTb"),
    ],
)  # fmt: skip
def test_told_secrets_go(text: str, secret: str) -> None:
    assert secret not in Redactor(key=KEY).text(text)[0]


@pytest.mark.parametrize("mark", ["", "+", "-", "> ", "    12\t", "    12→"])
def test_a_private_key_goes_whole_from_a_listing(mark: str) -> None:
    lines = ["-----BEGIN PGP PRIVATE KEY BLOCK-----", "", *[TOKEN * 3] * 4, "qSKnIw==", "=5g9I"]
    lines.append("-----END PGP PRIVATE KEY BLOCK-----")
    redacted, counts = Redactor(key=KEY).text("\n".join(f"{mark}{line}" for line in lines) + "\nnext\n")
    assert TOKEN not in redacted
    assert "5g9I" not in redacted
    assert counts["private_key"] == 1


@pytest.mark.parametrize(
    "text",
    [
        f"git checkout {SHA}\nHEAD is now at 8cd3f8f42 Fix the token import",
        f"Submodule 'vendor/lib' registered, checked out '{SHA}'",
        f"$ git rev-parse origin/main\n{SHA}\n",
        f"{SHA} Refresh the login token\n$ git log --oneline\n{SHA} Fix the token import\n",
        "gpg --recv-keys 5BE8A3F6C8A5C01D106C0AD820B1A390B168D356 # a name",
        '"EndpointArn": "arn:aws:dms:us-east-1:123456789012:endpoint:ZW5UAN6P4E77EC7YWHK4RZZ3BE",',
        '"nextToken": "aB3dE5gH7jK9mN1pQ4sT6vW8"',
        "hf_repository: nvidia/Gemma-4-26B-A4B-NVFP4",
        f'"AlarmName": "TargetTracking-my-asg-AlarmLow-{UUID}"',
        "input_cost_per_token: 0.00000015",
        "token {" + "type = a\\n" * 200,  # a pattern with nested repeats would never end
        "from urllib.request import pathname2url\n\n",
        "arr = sorted('aBcDeEfgHhiIiijKkLlMm', key=keyfunc)",
        "Pass stdout=PIPE and/or stderr=PIPE in order to capture them.",
        "The password is hashed with pbkdf2 and stored as base64 text.",
        "The password must be hashed to sha256 first.",
        'check("", "d41d8cd98f00b204e9800998ecf8427e")  # md5 of nothing',
    ],
)
def test_look_alikes_stay(text: str) -> None:
    assert Redactor(key=KEY).text(text)[0] == text


def test_words_of_another_text_speak_for_no_innocence() -> None:
    """Texts are looked at together; what is found must not depend on which ones."""
    redactor = Redactor(key=KEY)
    texts = [
        f"value {SHA}",
        "git log and sha256 digests of commits",
        f'"{TOKEN}xY7"',
        "the image's checksum",
        f"({SHA})",
    ]
    texts += [f"Rotate the token\n\n({UUID})", "see HEAD"]
    together = [text for text, _ in redactor.texts(texts)]
    assert together == [Redactor(key=KEY).text(text)[0] for text in texts]


def test_json_around_a_private_key_stays_json() -> None:
    """Stretches that are decoded together have nothing to do with each other: no finding goes from one to the next."""
    lines = "\n".join([TOKEN * 3] * 7 + [f"{TOKEN * 2}=="])
    key = f"-----BEGIN RSA PRIVATE KEY-----\n{lines}\n-----END RSA PRIVATE KEY-----"
    value = {"\u00e9": 1, f"sk-ant-api03-{TOKEN * 4}": {key: f"sk-ant-api03-{TOKEN * 4}"}, "\u000b": [key, "\u000b"]}
    redacted = json.loads(Redactor(key=KEY).text(json.dumps(value))[0])
    assert len(redacted) == 3
    assert TOKEN not in str(redacted)
