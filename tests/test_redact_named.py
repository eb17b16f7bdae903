"""Values under names that say secret outright, however short or plain, and what stands there and is no value."""

from __future__ import annotations

import pytest

from curate.redact import Redactor

KEY = b"k" * 32
VALUE = "Initech/Q1_24"


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        *(
            (text.format(VALUE), VALUE)
            for text in (
                "svc_password='{}'\n",
                "dbPassword: '{}',\n",
                "  jenkinsPass: {}\n",
                "DB_PASS={}\n",
                "password:\n  {}\n",
                '{{"type": "password", "value": "{}"}}',
                "- name: DB_PASSWORD\n  value: {}\n",
                "ALTER USER bob IDENTIFIED BY '{}';",
                "tool -storepass {} --yes",
                "<Password>{}</Password>",
                "<td>Password</td><td>{}</td>",
                "- **Password:** `{}`\n",
                "Password for bob: {}\n",
                "Kennwort: {}\n",
                'PASSWORD = os.environ.get("PASSWORD", "{}")',
                "    Rotate the admin key\n\n    The old one ({}) was in the image.\n",
            )
        ),
        ("DB_PASS=letmein\n", "letmein"),
        ("PIN: 4821\n", "4821"),
        ('{"pin": "4821"}', "4821"),
        ("My SIM pin is 4821.", "4821"),
        ("app password: abcd efgh ijkl mnop\n", "abcd efgh ijkl mnop"),
        ("tool --passphrase 'my dog ate 3 shoes'", "my dog ate 3 shoes"),
        ("BACKUP_ENCRYPTION_KEY='9i3j womq y33q lqiw 3foj ew3v asy2 0huh'\n", "lqiw 3foj"),
        ("Recovery codes:\n\n1. 12345-67890\n2. 09876-54321\n", "09876-54321"),
        ("## Backup codes\nKeep these safe.\n\n- a1b2c3d4\n- e5f6a7b8\n", "e5f6a7b8"),
        ("Your backup codes:\n  1234 5678    2345 6789\n  3456 7890    4567 8901\n", "4567 8901"),
        ('{"recovery_codes": ["ab12c-9d8e7", "77aa2-1bc3d"]}', "77aa2-1bc3d"),
        ("use 665073-151588-219320-667767-598058-671436-670047-074035 now", "671436"),
        ("id,user,password,email\n1,bob,hunter2,b@x.org\n2,al,Q1-2024x,a@x.org\n", "Q1-2024x"),
        ("| user | password | role |\n|---|---|---|\n| bob | hunter2 | admin |\n", "hunter2"),
        (" id | user  | passwd\n----+-------+--------\n  1 | bob   | hunter2\n", "hunter2"),
        ("NAME    PASSWORD     AGE\nbob     hunter2      3\n", "hunter2"),
        ("INSERT INTO users (id, name, password) VALUES (1, 'bob', 'hunter2');", "hunter2"),
    ],
)  # fmt: skip
def test_told_values_go(text: str, secret: str) -> None:
    redacted = Redactor(key=KEY).text(text)[0]
    assert secret not in redacted
    assert "<SECRET:" in redacted


@pytest.mark.parametrize(
    "text",
    [
        "    pass\n    foo2 = 3\n",
        "def f(user, password, host):\n    a, b2, c = 1\n",
        "password = get_pw2()\n",
        "    password = pw2\n",
        "  password: pw2,\n",
        "kwargs = dict(\n    user=u1, password=p1,\n)",
        "GPIO pin: 13\n",
        "const pin = board.pins[12]",
        '"password": "Password must have 8 characters"',
        "password: { type: 'string', minLength: 8 }",
        "| password | string | The password, at least 8 characters |\n| port | number | 8080 |",
        "password VARCHAR(255) NOT NULL",
        "the password is 12 characters long",
        "Recovery codes:\n\nIf you lose your phone, use codes2 here.\n",
        "Backup codes\n\n| name | type |\n|--|--|\n| code1 | int32 |",
        "password: $DB_PASS1\n",
        "password: !secret db1\n",
        "host key is AA:BB:CC:DD:EE:FF:00:11:22:33:44:55:66:77:88:99",
        "key four five six, primary key 1234 5678 1234 5678 9012",
        "The new one (v1.2.3-rc1) is for the key.",
        "--password <pw1>",
    ],
)
def test_what_is_no_value_stays(text: str) -> None:
    assert Redactor(key=KEY).text(text)[0] == text


def test_a_cell_that_goes_on_below_is_one_value() -> None:
    """Only together the lines of the cell are a key; what is drawn around them stays."""
    parts = ("sk-ant-api03-g7QvFgrOD", "HXYjPphcjcuKVvooqqHbO2", "ocYfqbvBNKNvwPhyHpRaAA")
    rows = [f"│ {name:<6} │ {part} │" for name, part in zip(("secret", "", ""), parts, strict=True)]
    redacted, counts = Redactor(key=KEY).text("\n".join(["┌────────┐", *rows, "└────────┘"]))
    assert not any(part in redacted for part in parts)
    assert "anthropic_api_key" in counts
    assert redacted.count("│") == 9


@pytest.mark.parametrize("mark", ["", "+", "    12\t"])
def test_the_private_lines_of_a_putty_key_go(mark: str) -> None:
    line = "q7Rz2LmX9vBt4KpW8sYd" * 3
    lines = ["PuTTY-User-Key-File-3: ssh-rsa", "Private-Lines: 3", line, line, "8sYd=="]
    redacted, counts = Redactor(key=KEY).text("\n".join(mark + one for one in (*lines, f"Private-MAC: {'0a' * 32}")))
    assert line not in redacted
    assert "8sYd" not in redacted
    assert counts == {"private_key": 1}
