"""Look-alikes that whoever writes rules may read; see the package's docstring for the split."""

from __future__ import annotations

import base64
from random import Random

from curate.corpus.kind import some, uuid
from curate.corpus.look_alike import LookAlike, look_alike


@look_alike("commit ids")
def commits(draw: Random) -> tuple[str, str]:
    commit = some(draw, "x", 40)
    text = draw.choice(
        [
            f"commit {commit}\nAuthor: dev\n\n    Fix the import",
            f"git checkout {commit}\nHEAD is now at {commit[:9]} Fix the import",
            f"    uses: actions/checkout@{commit} # v5",
            f"Submodule 'vendor/lib' registered, checked out '{commit}'",
        ]
    )
    return text, commit


@look_alike("UUIDs")
def uuids(draw: Random) -> tuple[str, str]:
    number = uuid(draw)
    text = draw.choice(
        [
            f'{{"order_id": "{number}", "state": "paid"}}',
            f"GET /v1/orders/{number} 200 12ms",
            f"request_id={number} user not found",
            f'<Project Guid="{{{number}}}" Name="Shop" />',
        ]
    )
    return text, number


@look_alike("sums in lock files")
def lock_sums(draw: Random) -> tuple[str, str]:
    digest = some(draw, "x", 64)
    text = draw.choice(
        [
            f'wheels = [{{ url = "https://files.example.org/a-1.0.whl", hash = "sha256:{digest}", size = 812 }}]',
            f"requests==2.32.0 \\\n    --hash=sha256:{digest}",
            f'[[package]]\nname = "serde"\nversion = "1.0.2"\nchecksum = "{digest}"',
            f"{digest}  dist/shop-1.4.tar.gz",
        ]
    )
    return text, digest


@look_alike("integrity hashes")
def integrity(draw: Random) -> tuple[str, str]:
    digest = base64.b64encode(draw.randbytes(64)).decode()
    text = draw.choice(
        [
            f'"resolved": "https://registry.npmjs.org/a/-/a-1.0.0.tgz",\n"integrity": "sha512-{digest}",',
            f'<script src="/app.js" integrity="sha512-{digest}" crossorigin="anonymous"></script>',
            f"a@1.0.0:\n  resolution: {{integrity: sha512-{digest}}}",
        ]
    )
    return text, digest


@look_alike("placeholders")
def placeholders(draw: Random) -> tuple[str, str]:
    value = draw.choice(
        [
            "<your-api-key>",
            "sk-...",
            "YOUR_API_KEY_HERE",
            "xxxxxxxxxxxxxxxxxxxxxxxx",
            "********",
            "${API_KEY}",
            "$API_KEY",
            "changeme",
            "{{ api_key }}",
            "REPLACE_ME",
            "sk-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
            "<redacted>",
            "your-token",
        ]
    )
    text = draw.choice([f"export API_KEY={value}", f'api_key: "{value}"', f"Authorization: Bearer {value}"])
    return text, value


@look_alike("names of variables")
def variables(draw: Random) -> tuple[str, str]:
    name = draw.choice(["STRIPE_SECRET_KEY", "DATABASE_PASSWORD", "AWS_SECRET_ACCESS_KEY", "INTERNAL_API_TOKEN"])
    keep = draw.choice(
        [
            f'os.environ["{name}"]',
            f"process.env.{name}",
            f"${{{{ secrets.{name} }}}}",
            f'System.getenv("{name}")',
            f"${{{name}:?must be set}}",
        ]
    )
    return f"password = {keep}\napi_key: {keep}", keep


@look_alike("code that speaks of secrets")
def code(draw: Random) -> tuple[str, str]:
    line = draw.choice(
        [
            "password = getpass.getpass('Password: ')",
            "token = response.json()['access_token']",
            "def check_password(self, password: str, *, salt: bytes) -> bool:",
            "const token = await getToken({ audience, scope: 'read:orders' });",
            "if not secrets.compare_digest(token, expected_token):",
            "api_key = settings.payment_provider.api_key.get_secret_value()",
            "passwordField.setPlaceholderText('Enter the new password')",
            "token = tokenizer.convert_ids_to_tokens(token_ids[start:end])",
        ]
    )
    return f"{draw.choice(['', '    '])}{line}\nreturn None", line


@look_alike("public keys and certificates")
def public_keys(draw: Random) -> tuple[str, str]:
    if draw.random() < 0.5:
        key = "AAAAC3NzaC1lZDI1NTE5AAAAI" + some(draw, "b", 43)
        return f"ssh-ed25519 {key} deploy", key
    label = draw.choice(["PUBLIC KEY", "CERTIFICATE", "CERTIFICATE REQUEST"])
    body = "\n".join(some(draw, "b", 64) for _ in range(8))
    return f"-----BEGIN {label}-----\n{body}\n-----END {label}-----", body


LOOK_ALIKES: tuple[LookAlike, ...] = (
    *(commits, uuids, lock_sums, integrity, placeholders, variables, code, public_keys),
)
