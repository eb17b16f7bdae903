"""Families of kinds that whoever writes rules may read; see the package's docstring for the split."""

from __future__ import annotations

import base64
import json
import textwrap
from collections.abc import Callable
from random import Random

from curate.corpus.kind import Family, Value, drawn_kind, some, token, whole
from curate.corpus.tuned_passwords import PATTERNS, RECOVERY
from curate.corpus.words import chosen_word

OPENSSH_HEAD = b"".join(
    (
        b"openssh-key-v1\x00",
        *(b"\x00\x00\x00\x04none" * 2, bytes(4), b"\x00\x00\x00\x01"),
        b"\x00\x00\x003\x00\x00\x00\x0bssh-ed25519\x00\x00\x00 ",
    )
)


def private_key(label: str, head: bytes, size: int) -> Callable[[Random], Value]:
    """A PEM block of about the right size; its first bytes are those of every key of the kind."""

    def draw(random: Random) -> Value:
        body = base64.b64encode(head + random.randbytes(size - len(head))).decode()
        known = len(base64.b64encode(head)) // 4 * 4
        lines = textwrap.wrap(body, 64 if label != "OPENSSH PRIVATE KEY" else 70)
        text = "\n".join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----"])
        return Value(text=text, secrets=tuple(line for line in (lines[0][known:], *lines[1:]) if len(line) >= 12))

    return draw


def pgp_key(random: Random) -> Value:
    body = base64.b64encode(bytes.fromhex("9501d804") + random.randbytes(480)).decode()
    lines = textwrap.wrap(body, 64)
    checksum = "=" + some(random, "b", 4)
    begin, end = "-----BEGIN PGP PRIVATE KEY BLOCK-----", "-----END PGP PRIVATE KEY BLOCK-----"
    text = "\n".join([begin, "", *lines, checksum, end])
    return Value(text=text, secrets=tuple(line for line in (lines[0][8:], *lines[1:]) if len(line) >= 12))


def json_web_token(random: Random) -> Value:
    def part(data: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(data, separators=(",", ":")).encode()).decode().rstrip("=")

    head = part({"alg": random.choice(["HS256", "RS256", "ES256"]), "typ": "JWT"})
    claims = part(
        {"sub": some(random, "d", 10), "name": some(random, "s", 7), "exp": 1790000000 + random.randrange(9**8)}
    )
    signature = some(random, "w", random.choice([43, 86]))
    return Value(text=f"{head}.{claims}.{signature}", secrets=(signature,))


def django_session(random: Random) -> Value:
    signed = f"{some(random, 'w', 60)}:1{some(random, 'a', 5)}:{some(random, 'w', 43)}"
    return Value(text=signed, secrets=(signed,))


def service_account(random: Random) -> Value:
    """A Google service account's key file on one line, with a private key inside."""
    key = private_key("PRIVATE KEY", bytes.fromhex("308204bd020100300d06092a864886f70d0101010500"), 1216)(random)
    document = {
        "type": "service_account",
        "project_id": f"{some(random, 's', 6)}-{some(random, 'd', 6)}",
        "private_key_id": some(random, "x", 40),
        "private_key": key.text + "\n",
        "client_email": f"deploy@{some(random, 's', 8)}.iam.gserviceaccount.com",
    }
    return Value(text=json.dumps(document, indent=2), secrets=key.secrets)


SEED_WORD_LIST = (
    "abandon ability absorb access acid adapt afford agent alarm album alert amateur anchor ancient angle apology "
    "arctic argue armor artist atom auction avocado badge bamboo banana barely bean beauty benefit bicycle blossom "
    "bounce brave bulb cabin cactus canvas carpet casual cereal chronic clarify climb coconut concert cradle cruise "
    "curtain decade deliver dignity dinosaur dolphin dragon eagle ecology elegant embrace enlist episode essay evolve "
    "exile fabric faculty fatigue fetch flavor fossil fragile gadget garlic gesture giraffe glimpse goddess gravity "
    "harvest hazard hobby humble hybrid icon illegal impact inhale jaguar jewel kangaroo kidney ladder lecture liberty "
    "lunar magnet marble mimic mobile mushroom narrow neglect nuclear oblige obscure olympic orphan oyster parade "
    "pelican pioneer polar pudding quantum radar rebel ribbon saddle scissors sibling slender stadium tattoo toddler "
    "trophy umbrella utility vacant velvet vintage walnut wisdom zebra"
)
SEED_WORDS = SEED_WORD_LIST.split()
LEET = str.maketrans("aeios", "@310$")


def season_password(random: Random) -> Value:
    """A capitalised word, a year or number, a mark."""
    text = chosen_word(random).capitalize() + random.choice(["2024", "2025", "2026", str(random.randint(10, 9999))])
    return whole(text + random.choice(["!", "!!", "#", "$", "?", "@1", "*"]))


def leet_password(random: Random) -> Value:
    text = (chosen_word(random).capitalize() + chosen_word(random)).translate(LEET)
    return whole(text + random.choice(["", "!", "99", "_7", "&3"]))


def joined_password(random: Random) -> Value:
    mark = random.choice("-._")
    return whole(mark.join(chosen_word(random) for _ in range(4)))


def mixed_password(random: Random) -> Value:
    """What a password manager makes when it may use marks; none that a URL or a shell would need quoted."""
    return whole(
        "".join(
            random.choices(
                "abcdefghjkmnpqrstuvwxyzABCDEFGHJKMNPQRSTUVWXYZ23456789!#%*+=?@^_~", k=random.randint(12, 20)
            )
        )
    )


def plain_password(random: Random) -> Value:
    """A word with digits and nothing else."""
    return whole(chosen_word(random) + str(random.randint(100, 99999)))


def seed_phrase(random: Random) -> Value:
    return whole(" ".join(random.choices(SEED_WORDS, k=random.choice([12, 24]))))


def licence_key(random: Random) -> Value:
    return whole("-".join(some(random, "u", 5) for _ in range(5)))


def wireguard_key(random: Random) -> Value:
    return whole(base64.b64encode(random.randbytes(32)).decode())


def web_key(random: Random) -> Value:
    """A private JSON Web Key on one line; `d` is the secret."""
    secret = some(random, "w", 43)
    key = {"kty": "EC", "crv": "P-256", "x": some(random, "w", 43), "y": some(random, "w", 43), "d": secret}
    return Value(text=json.dumps(key, separators=(",", ":")), secrets=(secret,))


def putty_key(random: Random) -> Value:
    body = textwrap.wrap(base64.b64encode(random.randbytes(300)).decode(), 64)
    public = textwrap.wrap(base64.b64encode(b"\x00\x00\x00\x07ssh-rsa" + random.randbytes(130)).decode(), 64)
    lines = ["PuTTY-User-Key-File-3: ssh-rsa", "Encryption: none", "Comment: deploy", f"Public-Lines: {len(public)}"]
    lines += [*public, f"Private-Lines: {len(body)}", *body, f"Private-MAC: {some(random, 'x', 64)}"]
    return Value(text="\n".join(lines), secrets=tuple(line for line in body if len(line) >= 12))


def fernet_key(random: Random) -> Value:
    return whole(base64.urlsafe_b64encode(random.randbytes(32)).decode())


def byte_pairs(random: Random) -> Value:
    """A key as a device shows it: bytes in hex with colons."""
    return whole(":".join(some(random, "X", 2) for _ in range(32)))


LLM = Family(
    name="model providers I",
    kinds=(
        token("openai-project", "OpenAI", "OPENAI_API_KEY", "sk-proj-{w:74}T3BlbkFJ{w:74}", rule=True),
        token("openai-legacy", "OpenAI", "OPENAI_API_KEY OPENAI_KEY", "sk-{a:20}T3BlbkFJ{a:20}", rule=True),
        token("openai-service-account", "OpenAI", "OPENAI_API_KEY", "sk-svcacct-{w:74}T3BlbkFJ{w:74}", rule=True),
        token("anthropic", "Anthropic", "ANTHROPIC_API_KEY CLAUDE_API_KEY", "sk-ant-api03-{w:93}AA", rule=True),
        token("anthropic-admin", "Anthropic", "ANTHROPIC_ADMIN_KEY", "sk-ant-admin01-{w:93}AA", rule=True),
        token("anthropic-oauth", "Claude", "CLAUDE_CODE_OAUTH_TOKEN", "sk-ant-oat01-{w:93}AA", rule=False),
        token("openrouter", "OpenRouter", "OPENROUTER_API_KEY", "sk-or-v1-{x:64}", rule=True),
        token("groq", "Groq", "GROQ_API_KEY", "gsk_{a:52}", rule=True),
        token("huggingface", "Hugging Face", "HF_TOKEN HUGGING_FACE_HUB_TOKEN", "hf_{a:34}", rule=True),
    ),
)

VCS = Family(
    name="version control",
    kinds=(
        token("github-classic", "GitHub", "GITHUB_TOKEN GH_TOKEN", "ghp_{a:36}", rule=True),
        token("github-fine-grained", "GitHub", "GITHUB_TOKEN GH_PAT", "github_pat_{a:22}_{a:59}", rule=True),
        token("github-user-to-server", "GitHub", "GITHUB_APP_TOKEN", "ghu_{a:36}", rule=True),
        token("github-server-to-server", "GitHub", "GITHUB_TOKEN", "ghs_{a:36}", rule=True),
        token("gitlab-personal", "GitLab", "GITLAB_TOKEN CI_PUSH_TOKEN", "glpat-{w:20}", rule=True),
        token("gitlab-deploy", "GitLab", "GITLAB_DEPLOY_TOKEN", "gldt-{w:20}", rule=True),
        token("bitbucket-app", "Bitbucket", "BITBUCKET_APP_PASSWORD", "ATBB{a:32}", rule=False),
        token(
            "clone-url",
            "GitHub",
            "GIT_REMOTE REPO_URL",
            "https://x-access-token:ghs_{a:36}@github.com/acme/shop.git",
            rule=True,
            form="url",
        ),
    ),
)

GOOGLE = Family(
    name="Google Cloud",
    kinds=(
        token(
            "google-api", "Google Maps", "GOOGLE_API_KEY GOOGLE_MAPS_API_KEY GEMINI_API_KEY", "AIza{w:35}", rule=True
        ),
        token("google-oauth-secret", "Google OAuth", "GOOGLE_CLIENT_SECRET", "GOCSPX-{w:28}", rule=False),
        token("google-access", "Google", "GOOGLE_OAUTH_ACCESS_TOKEN", "ya29.a0{w:160}", rule=False),
        token("google-refresh", "Google", "GOOGLE_REFRESH_TOKEN", "1//0{a:1}{w:100}", rule=True),
        drawn_kind(
            "service-account", "GCP", "GOOGLE_APPLICATION_CREDENTIALS_JSON", service_account, rule=True, form="block"
        ),
    ),
)

PAYMENT = Family(
    name="payment",
    kinds=(
        token("stripe-live", "Stripe", "STRIPE_SECRET_KEY STRIPE_API_KEY", "sk_live_{a:24-99}", rule=True),
        token("stripe-restricted", "Stripe", "STRIPE_RESTRICTED_KEY", "rk_live_{a:24-99}", rule=True),
        token("stripe-webhook", "Stripe", "STRIPE_WEBHOOK_SECRET", "whsec_{a:32}", rule=False),
        token("square", "Square", "SQUARE_ACCESS_TOKEN", "EAAA{w:60}", rule=True),
        token("paypal-secret", "PayPal", "PAYPAL_CLIENT_SECRET", "E{w:79}", rule=True),
        token("razorpay", "Razorpay", "RAZORPAY_KEY_SECRET", "{a:24}", rule=True),
        token("adyen", "Adyen", "ADYEN_API_KEY", "AQE{a:80}-{b:40}=-{a:16}", rule=False),
        token("braintree", "Braintree", "BRAINTREE_ACCESS_TOKEN", "access_token$production$[l:16]${x:32}", rule=False),
        token("braintree-private", "Braintree", "BRAINTREE_PRIVATE_KEY", "{x:32}", rule=False),
    ),
)

DATABASES = Family(
    name="connection strings",
    kinds=(
        token(
            "postgres",
            "Postgres",
            "DATABASE_URL POSTGRES_URL",
            "postgres://app:{a:16-24}@db.internal:5432/shop",
            rule=True,
            form="url",
        ),
        token(
            "postgresql-driver",
            "Postgres",
            "SQLALCHEMY_DATABASE_URI",
            "postgresql+psycopg://svc_orders:{a:20}@10.2.0.7/orders",
            rule=True,
            form="url",
        ),
        token("mysql", "MySQL", "MYSQL_URL", "mysql://root:{a:14-20}@mysql:3306/wiki", rule=True, form="url"),
        token(
            "mongodb",
            "MongoDB",
            "MONGODB_URI MONGO_URL",
            "mongodb+srv://backend:{a:16}@cluster0.{l:5}x.mongodb.net/prod?retryWrites=true",
            rule=True,
            form="url",
        ),
        token(
            "redis", "Redis", "REDIS_URL", "rediss://default:{a:32}@cache-7.example.net:6380/0", rule=True, form="url"
        ),
        token(
            "amqp",
            "RabbitMQ",
            "AMQP_URL BROKER_URL",
            "amqps://worker:{a:32}@rabbit.example.net/vhost",
            rule=True,
            form="url",
        ),
        token(
            "sql-server",
            "SQL Server",
            "SQLSERVER_CONNECTION_STRING",
            "Server=tcp:sql1.example.net,1433;Database=crm;User ID=crm_app;Password={a:18};Encrypt=true",
            rule=False,
            form="connection",
        ),
        token(
            "jdbc",
            "Postgres",
            "JDBC_URL",
            "jdbc:postgresql://db:5432/erp?user=erp&password={a:18}",
            rule=False,
            form="connection",
        ),
        token(
            "libpq",
            "Postgres",
            "PG_DSN",
            "host=db.internal port=5432 dbname=app user=app password={a:18} sslmode=require",
            rule=False,
            form="connection",
        ),
    ),
)

PRIVATE_KEYS = Family(
    name="private keys",
    kinds=(
        drawn_kind(
            "rsa",
            "TLS",
            "TLS_PRIVATE_KEY",
            private_key("RSA PRIVATE KEY", bytes.fromhex("308204a40201000282010100"), 1192),
            rule=True,
            form="block",
        ),
        drawn_kind(
            "pkcs8",
            "signing",
            "JWT_PRIVATE_KEY",
            private_key("PRIVATE KEY", bytes.fromhex("308204bd020100300d06092a864886f70d0101010500"), 1216),
            rule=True,
            form="block",
        ),
        drawn_kind(
            "ec",
            "signing",
            "EC_PRIVATE_KEY",
            private_key("EC PRIVATE KEY", bytes.fromhex("30770201010420"), 121),
            rule=True,
            form="block",
        ),
        drawn_kind(
            "openssh",
            "deploy",
            "SSH_PRIVATE_KEY DEPLOY_KEY",
            private_key(
                "OPENSSH PRIVATE KEY",
                OPENSSH_HEAD,
                260,
            ),
            rule=True,
            form="block",
        ),
        drawn_kind("pgp", "signing", "GPG_PRIVATE_KEY", pgp_key, rule=True, form="block"),
    ),
)

SESSIONS = Family(
    name="web tokens and cookies",
    kinds=(
        drawn_kind("jwt", "session", "ACCESS_TOKEN AUTH_TOKEN JWT", json_web_token, rule=True, form="token"),
        drawn_kind("django", "session", "SESSION_COOKIE", django_session, rule=False, form="token"),
        token("express", "session", "CONNECT_SID SESSION_COOKIE", "s%3A{w:32}.{a:43}", rule=False),
        token("php", "session", "PHPSESSID", "{l:26}", rule=False),
        token("laravel-app", "Laravel", "APP_KEY", "base64:{b:43}=", rule=False),
        token("opaque-bearer", "API", "BEARER_TOKEN ACCESS_TOKEN", "{w:43}", rule=False),
        token("oauth-refresh", "OAuth", "REFRESH_TOKEN", "{a:64}", rule=False),
    ),
)

HEX_KEYS = Family(
    name="hex keys",
    kinds=(
        token("hex-32", "API", "API_KEY SERVICE_API_KEY", "{x:32}", rule=False),
        token("hex-40", "API", "API_TOKEN ACCESS_TOKEN", "{x:40}", rule=False),
        token("hex-64-signing", "Rails", "SECRET_KEY_BASE SIGNING_SECRET", "{x:64}", rule=False),
        token("hex-128", "Rails", "SECRET_KEY_BASE", "{x:128}", rule=False),
        token("encryption", "app", "ENCRYPTION_KEY MASTER_KEY", "{X:64}", rule=False),
    ),
)

MAIL = Family(
    name="mail and messages",
    kinds=(
        token("sendgrid", "SendGrid", "SENDGRID_API_KEY", "SG.{w:22}.{w:43}", rule=True),
        token("mailgun", "Mailgun", "MAILGUN_API_KEY", "key-{x:32}", rule=True),
        token("mailchimp", "Mailchimp", "MAILCHIMP_API_KEY", "{x:32}-us21", rule=True),
        token("brevo", "Brevo", "BREVO_API_KEY SENDINBLUE_API_KEY", "xkeysib-{x:64}-{a:16}", rule=True),
        token("postmark", "Postmark", "POSTMARK_SERVER_TOKEN", "{uuid}", rule=True),
        token("resend", "Resend", "RESEND_API_KEY", "re_{8:8}_{8:24}", rule=True),
        token("twilio-auth", "Twilio", "TWILIO_AUTH_TOKEN", "{x:32}", rule=False),
        token("twilio-key", "Twilio", "TWILIO_API_KEY", "SK{x:32}", rule=True),
        token("slack-bot", "Slack", "SLACK_BOT_TOKEN", "xoxb-{d:12}-{d:13}-{a:24}", rule=True),
        token("slack-app", "Slack", "SLACK_APP_TOKEN", "xapp-1-A{u:10}-{d:13}-{x:64}", rule=True),
    ),
)

PASSWORDS = Family(
    name="passwords of people",
    kinds=(
        drawn_kind("word-year", "admin", "DB_PASSWORD ADMIN_PASSWORD", season_password, rule=False, form="password"),
        drawn_kind("leet", "root", "ROOT_PASSWORD PASSWORD", leet_password, rule=False, form="password"),
        drawn_kind("four-words", "wifi", "WIFI_PASSWORD PASSPHRASE", joined_password, rule=False, form="password"),
        drawn_kind(
            "manager-made", "LDAP", "LDAP_BIND_PASSWORD SMTP_PASSWORD", mixed_password, rule=False, form="password"
        ),
        drawn_kind("word-digits", "staging", "DB_PASS MYSQL_PWD", plain_password, rule=False, form="password"),
    ),
)

UUID_KEYS = Family(
    name="UUIDs as keys",
    kinds=(
        token("heroku", "Heroku", "HEROKU_API_KEY", "{uuid}", rule=True),
        token("railway", "Railway", "RAILWAY_TOKEN", "{uuid}", rule=False),
        token("consul", "Consul", "CONSUL_HTTP_TOKEN", "{uuid}", rule=False),
        token("scaleway", "Scaleway", "SCW_SECRET_KEY", "{uuid}", rule=True),
        token("generic", "partner API", "PARTNER_API_KEY X_API_KEY", "{uuid}", rule=False),
    ),
)

OFFLINE = Family(
    name="wallets, licences, second factors",
    kinds=(
        drawn_kind("seed-phrase", "wallet", "MNEMONIC WALLET_SEED_PHRASE", seed_phrase, rule=False, form="phrase"),
        token("ethereum", "wallet", "PRIVATE_KEY DEPLOYER_PRIVATE_KEY", "0x{x:64}", rule=False),
        drawn_kind("licence", "JetBrains", "LICENSE_KEY PRODUCT_KEY", licence_key, rule=False, form="token"),
        token("totp", "2FA", "TOTP_SECRET MFA_SEED", "{5:32}", rule=False),
        token("otp-uri", "2FA", "OTP_URI", "otpauth://totp/Acme:ops?secret={5:32}&issuer=Acme", rule=False, form="url"),
        drawn_kind("wireguard", "WireGuard", "WG_PRIVATE_KEY", wireguard_key, rule=False, form="token"),
        token("age", "age", "SOPS_AGE_KEY", "AGE-SECRET-KEY-1{u:58}", rule=True),
    ),
)

AT_REST = Family(
    name="keys at rest",
    kinds=(
        drawn_kind("fernet", "Airflow", "FERNET_KEY", fernet_key, rule=False, form="token"),
        drawn_kind("web-key", "OIDC", "SIGNING_JWK", web_key, rule=False, form="connection"),
        drawn_kind("putty", "deploy", "PPK_KEY", putty_key, rule=True, form="block"),
        drawn_kind("byte-pairs", "LoRaWAN", "APP_SESSION_KEY NETWORK_KEY", byte_pairs, rule=False, form="token"),
        token("signal-hmac", "webhook", "HMAC_SECRET COOKIE_SECRET", "{b:44}", rule=False),
        token("ansible", "Ansible", "ANSIBLE_VAULT_PASSWORD", "{l:32}", rule=False),
    ),
)

FAMILIES = (
    *(LLM, VCS, GOOGLE, PAYMENT, DATABASES, PRIVATE_KEYS, SESSIONS, HEX_KEYS, MAIL),
    *(PASSWORDS, UUID_KEYS, OFFLINE),  # held out in version 1
    *(PATTERNS, RECOVERY, AT_REST),  # held out in version 2
)
