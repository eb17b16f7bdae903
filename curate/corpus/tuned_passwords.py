"""Families of passwords and codes that whoever writes rules may read; see the package's docstring for the split.

Held out in version 2 of the corpus.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from curate.corpus.kind import Family, Value, drawn_kind, some, whole


def keyboard_walk(random: Random) -> Value:
    """Neighbouring keys, as people type where a mark, a digit and a capital are asked for."""
    column = random.choice(["1qaz", "2wsx", "3edc", "4rfv", "zaq1", "xsw2"])
    row = random.choice(["qwert", "asdfg", "yxcvb", "poiuz", "lkjhg", "qweasd"])
    return whole(random.choice([column + column.upper(), row.capitalize() + column]) + random.choice("!§$%#") + row[:3])


def firm_password(random: Random) -> Value:
    """The firm, the quarter, a mark."""
    firm = random.choice(["Acme", "Northwind", "Contoso", "Initech", "Globex", "Umbrella", "Hooli", "Stark"])
    when = random.choice([f"Q{random.randint(1, 4)}", random.choice(["Jan", "Mar", "Jul", "Sept", "Nov"]) + "."])
    return whole(f"{firm}{random.choice('-_@/')}{when}{random.choice('-_')}{random.randint(2023, 2027)}")


def foreign_password(random: Random) -> Value:
    """A word of another language and a number."""
    words = "Schmetterling Kaffeetasse Feuerwehr mariposa girasol cuchara papillon parapluie ordinateur farfalla"
    word = random.choice([*words.split(), "Müllabfuhr", "Grüßgott", "señorita", "garçonnet"])
    return whole(word + random.choice(["", ".", "-", "*"]) + str(random.randint(10, 99999)))


def first_letters(random: Random) -> Value:
    """The first letters of a sentence, with its numbers and marks."""
    letters = "".join(random.choices("abdefghilmnoprstw", k=random.randint(6, 9)))
    return whole(letters[:1].upper() + letters[1:4] + random.choice("24&@") + letters[4:] + random.choice("!?.,") + "1")


def name_and_date(random: Random) -> Value:
    name = random.choice(["lena", "mohamed", "sofia", "jonas", "priya", "chen", "anna", "carlos", "fatima", "erik"])
    return whole(f"{name}{random.randint(1, 28):02d}{random.randint(1, 12):02d}{random.randint(1960, 2019)}")


def pronounceable(random: Random) -> Value:
    """What a tool makes that wants to be read over the telephone."""

    def syllables(count: int) -> str:
        return "".join(random.choice("bdfgklmnprstvz") + random.choice("aeiou") for _ in range(count))

    return whole(f"{syllables(3)}-{syllables(3)}-{random.randint(10, 99)}")


def groups(alphabet: str, size: int, count: int, mark: str = "-") -> Callable[[Random], Value]:
    """Groups of characters with a mark between them, as people copy them from a screen or paper."""
    return lambda random: whole(mark.join(some(random, alphabet, size) for _ in range(count)))


def emergency_key(random: Random) -> Value:
    """A password manager's: two groups of six and five of five, of letters that are told apart easily."""
    letters = "ABCDEFGHJKLMNPQRSTVWXYZ23456789"
    sizes = (6, 6, 5, 5, 5, 5)
    return whole("-".join(["A3", *("".join(random.choices(letters, k=size)) for size in sizes)]))


PATTERNS = Family(
    name="passwords by pattern",
    kinds=(
        drawn_kind("keyboard-walk", "VPN", "VPN_PASSWORD RADIUS_PASSWORD", keyboard_walk, rule=False, form="password"),
        drawn_kind("firm-quarter", "Jenkins", "JENKINS_PASS SVC_PASSWORD", firm_password, rule=False, form="password"),
        drawn_kind(
            "foreign-word", "router", "ROUTER_PASSWD FTP_PASSWORD", foreign_password, rule=False, form="password"
        ),
        drawn_kind("first-letters", "Oracle", "ORACLE_PWD SYS_PASSWORD", first_letters, rule=False, form="password"),
        drawn_kind("name-date", "Samba", "SMB_PASSWORD NAS_PASS", name_and_date, rule=False, form="password"),
        drawn_kind("pronounceable", "IPMI", "IPMI_PASSWORD BMC_PASSWORD", pronounceable, rule=False, form="password"),
    ),
)

RECOVERY = Family(
    name="recovery codes",
    kinds=(
        drawn_kind("disk", "BitLocker", "BITLOCKER_RECOVERY_KEY", groups("d", 6, 8), rule=False, form="token"),
        drawn_kind("file-vault", "FileVault", "FILEVAULT_RECOVERY_KEY", groups("u", 4, 6), rule=False, form="token"),
        drawn_kind("emergency", "1Password", "OP_SECRET_KEY", emergency_key, rule=True, form="token"),
        drawn_kind("app-password", "Apple", "APPLE_APP_SPECIFIC_PASSWORD", groups("s", 4, 4), rule=False, form="token"),
        drawn_kind("mail-app", "Gmail", "GMAIL_APP_PASSWORD", groups("s", 4, 4, " "), rule=False, form="phrase"),
        drawn_kind("backup", "GitHub", "BACKUP_CODE RECOVERY_CODE", groups("x", 5, 2), rule=False, form="token"),
        drawn_kind(
            "chat-backup", "WhatsApp", "BACKUP_ENCRYPTION_KEY", groups("l", 4, 16, " "), rule=False, form="phrase"
        ),
    ),
)
