"""Families of kinds kept from whoever writes rules: do not read this file if you do. The package says why.

Among them, on purpose: 40-character AWS secrets, signatures of signed URLs, webhooks, and bare hex as keys.
"""

from __future__ import annotations

import base64
from random import Random
from urllib.parse import quote

from curate.corpus.kind import Family, Value, drawn_kind, some, token
from curate.corpus.words import chosen_word


def basic_header(random: Random) -> Value:
    """The value of an Authorization header: user and password in base64."""
    password = some(random, "a", random.randint(12, 22))
    encoded = base64.b64encode(f"{chosen_word(random)}:{password}".encode()).decode()
    return Value(text=f"Basic {encoded}", secrets=(encoded, password))


def user_in_url(random: Random) -> Value:
    password = "".join(
        random.choices("bcdfghjkmnpqrstvwxyzBCDFGHJKMNPQRSTVWXYZ23456789-_.:/&+", k=random.randint(13, 21))
    )
    text = f"https://{chosen_word(random)}:{quote(password, safe='')}@nexus.example.org/repository/pypi/simple"
    return Value(text=text, secrets=(quote(password, safe=""), password))


def shared_access_signature(random: Random) -> Value:
    signature = base64.b64encode(random.randbytes(32)).decode()
    text = (
        f"https://{some(random, 'l', 10)}.blob.core.windows.net/exports/{chosen_word(random)}.csv?sv=2024-11-04&ss=b"
        f"&srt=sco&sp=rl&se=2027-03-01T00%3A00%3A00Z&st=2026-11-01T08%3A00%3A00Z&sig={quote(signature, safe='')}"
    )
    return Value(text=text, secrets=(quote(signature, safe=""), signature))


def s3_presigned(random: Random) -> Value:
    signature = some(random, "x", 64)
    text = (
        f"https://{chosen_word(random)}-data.s3.eu-west-1.amazonaws.com/dump/{some(random, 'd', 4)}.tar.gz"
        f"?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIA{some(random, '5', 16)}%2F20261120%2Feu-west-1%2Fs3%2F"
        f"aws4_request&X-Amz-Date=20261120T101112Z&X-Amz-Expires=3600&X-Amz-SignedHeaders=host&X-Amz-Signature={signature}"
    )
    return Value(text=text, secrets=(signature,))


def gcs_signed(random: Random) -> Value:
    signature = some(random, "x", 512)
    text = (
        f"https://storage.googleapis.com/{chosen_word(random)}-backups/db.sql.gz?X-Goog-Algorithm=GOOG4-RSA-SHA256"
        f"&X-Goog-Credential=ci%40acme.iam.gserviceaccount.com%2F20261120%2Fauto%2Fstorage%2Fgoog4_request"
        f"&X-Goog-Date=20261120T101112Z&X-Goog-Expires=900&X-Goog-SignedHeaders=host&X-Goog-Signature={signature}"
    )
    return Value(text=text, secrets=(signature,))


AWS = Family(
    name="AWS",
    kinds=(
        token("aws-secret", "AWS", "AWS_SECRET_ACCESS_KEY S3_SECRET_KEY", "{b:40}", rule=True),
        token("aws-key-id", "AWS", "AWS_ACCESS_KEY_ID", "AKIA{5:16}", rule=True),
        token("aws-temporary-id", "AWS", "AWS_ACCESS_KEY_ID", "ASIA{5:16}", rule=True),
        token("aws-session", "AWS", "AWS_SESSION_TOKEN", "IQoJb3JpZ2luX2Vj{b:360}", rule=False),
        token("bedrock-long", "Bedrock", "AWS_BEARER_TOKEN_BEDROCK", "ABSK{b:128}", rule=True),
        token("minio-secret", "MinIO", "MINIO_ROOT_PASSWORD MINIO_SECRET_KEY", "{a:40}", rule=False),
    ),
)

AZURE = Family(
    name="Azure",
    kinds=(
        token("storage-key", "Azure Storage", "AZURE_STORAGE_KEY", "{b:86}==", rule=True),
        token(
            "storage-connection",
            "Azure Storage",
            "AZURE_STORAGE_CONNECTION_STRING",
            "DefaultEndpointsProtocol=https;AccountName=[l:12];AccountKey={b:86}==;EndpointSuffix=core.windows.net",
            rule=True,
            form="connection",
        ),
        token(
            "service-bus",
            "Service Bus",
            "SERVICEBUS_CONNECTION_STRING",
            "Endpoint=sb://[l:10].servicebus.windows.net/;SharedAccessKeyName=RootManageSharedAccessKey;SharedAccessKey={b:43}=",
            rule=True,
            form="connection",
        ),
        token("client-secret", "Azure AD", "AZURE_CLIENT_SECRET", "{a:3}8Q~{w:34}", rule=True),
        token("devops-pat", "Azure DevOps", "AZURE_DEVOPS_EXT_PAT SYSTEM_ACCESSTOKEN", "{a:76}AZDO{a:4}", rule=False),
        token("functions-key", "Azure Functions", "FUNCTIONS_HOST_KEY", "{w:54}==", rule=False),
        token("openai-on-azure", "Azure OpenAI", "AZURE_OPENAI_API_KEY", "{x:32}", rule=False),
    ),
)

SIGNED_URLS = Family(
    name="signed URLs",
    kinds=(
        drawn_kind("azure-sas", "Azure Blob", "EXPORT_URL SAS_URL", shared_access_signature, rule=False, form="url"),
        drawn_kind("s3-presigned", "S3", "DOWNLOAD_URL UPLOAD_URL", s3_presigned, rule=False, form="url"),
        drawn_kind("gcs-signed", "GCS", "SIGNED_URL", gcs_signed, rule=False, form="url"),
        token(
            "cloudfront",
            "CloudFront",
            "CDN_URL",
            "https://d[l:13].cloudfront.net/private/report.pdf?Expires=1795000000&Signature={w:342}__&Key-Pair-Id=K[u:13]",
            rule=False,
            form="url",
        ),
        token(
            "magic-link",
            "login",
            "INVITE_URL RESET_URL",
            "https://app.example.org/auth/reset?token={w:48}&lang=en",
            rule=False,
            form="url",
        ),
    ),
)

WEBHOOKS = Family(
    name="webhooks",
    kinds=(
        token(
            "slack-hook",
            "Slack",
            "SLACK_WEBHOOK_URL",
            "https://hooks.slack.com/services/T[u:10]/B[u:10]/{a:24}",
            rule=True,
            form="url",
        ),
        token(
            "discord-hook",
            "Discord",
            "DISCORD_WEBHOOK DISCORD_WEBHOOK_URL",
            "https://discord.com/api/webhooks/[d:19]/{w:68}",
            rule=False,
            form="url",
        ),
        token(
            "teams-hook",
            "Teams",
            "TEAMS_WEBHOOK_URL",
            "https://acme.webhook.office.com/webhookb2/[uuid]@[uuid]/IncomingWebhook/{x:32}/[uuid]",
            rule=True,
            form="url",
        ),
        token(
            "power-automate",
            "Power Automate",
            "FLOW_URL",
            "https://prod-27.westeurope.logic.azure.com:443/workflows/[x:32]/triggers/manual/paths/invoke"
            "?api-version=2016-06-01&sp=%2Ftriggers%2Fmanual%2Frun&sv=1.0&sig={w:43}",
            rule=False,
            form="url",
        ),
        token(
            "google-chat",
            "Google Chat",
            "CHAT_WEBHOOK",
            "https://chat.googleapis.com/v1/spaces/AAAA[w:7]/messages?key=AIza{w:35}&token={w:43}",
            rule=False,
            form="url",
        ),
        token(
            "zapier",
            "Zapier",
            "ZAPIER_HOOK",
            "https://hooks.zapier.com/hooks/catch/[d:8]/{l:15}/",
            rule=False,
            form="url",
        ),
        token(
            "mattermost",
            "Mattermost",
            "MATTERMOST_HOOK",
            "https://chat.example.org/hooks/{l:26}",
            rule=False,
            form="url",
        ),
    ),
)

BOTS = Family(
    name="bots",
    kinds=(
        token("telegram", "Telegram", "TELEGRAM_BOT_TOKEN BOT_TOKEN", "[d:10]:AA{w:33}", rule=True),
        token("discord-bot", "Discord", "DISCORD_TOKEN BOT_TOKEN", "MT{a:24}.G{w:5}.{w:38}", rule=False),
        token("line-channel", "LINE", "LINE_CHANNEL_ACCESS_TOKEN", "{b:170}=", rule=False),
        token("twitch-chat", "Twitch", "TWITCH_OAUTH", "oauth:{l:30}", rule=False),
        token("matrix", "Matrix", "MATRIX_ACCESS_TOKEN", "syt_[s:6]_{a:20}_{a:6}", rule=False),
    ),
)

BASIC_AUTH = Family(
    name="basic authentication",
    kinds=(
        drawn_kind(
            "basic-header", "registry", "AUTHORIZATION REGISTRY_AUTH_HEADER", basic_header, rule=True, form="phrase"
        ),
        drawn_kind("user-in-url", "Nexus", "PIP_INDEX_URL NEXUS_URL", user_in_url, rule=True, form="url"),
    ),
)

MODELS = Family(
    name="model providers II",
    kinds=(
        token("mistral", "Mistral", "MISTRAL_API_KEY", "{a:32}", rule=True),
        token("cohere", "Cohere", "COHERE_API_KEY CO_API_KEY", "{a:40}", rule=True),
        token("together", "Together", "TOGETHER_API_KEY", "{x:64}", rule=False),
        token("fireworks", "Fireworks", "FIREWORKS_API_KEY", "fw_{a:24}", rule=False),
        token("perplexity", "Perplexity", "PERPLEXITY_API_KEY PPLX_API_KEY", "pplx-{a:48}", rule=True),
        token("xai", "xAI", "XAI_API_KEY GROK_API_KEY", "xai-{a:80}", rule=True),
        token("deepseek", "DeepSeek", "DEEPSEEK_API_KEY", "sk-{x:32}", rule=True),
        token("replicate", "Replicate", "REPLICATE_API_TOKEN", "r8_{a:37}", rule=True),
        token("nvidia", "NVIDIA", "NVIDIA_API_KEY NGC_API_KEY", "nvapi-{w:64}", rule=True),
        token("voyage", "Voyage", "VOYAGE_API_KEY", "pa-{w:43}", rule=True),
        token("cerebras", "Cerebras", "CEREBRAS_API_KEY", "csk-{l:48}", rule=True),
        token("elevenlabs", "ElevenLabs", "ELEVENLABS_API_KEY ELEVEN_API_KEY", "sk_{x:48}", rule=True),
        token("baseten", "Baseten", "BASETEN_API_KEY", "{a:8}.{a:32}", rule=False),
        token("wandb", "W&B", "WANDB_API_KEY", "{x:40}", rule=True),
    ),
)

OBSERVABILITY = Family(
    name="observability",
    kinds=(
        token("datadog", "Datadog", "DD_API_KEY DATADOG_API_KEY", "{x:32}", rule=True),
        token("datadog-app", "Datadog", "DD_APP_KEY", "{x:40}", rule=True),
        token("new-relic", "New Relic", "NEW_RELIC_LICENSE_KEY", "{x:36}NRAL", rule=False),
        token("new-relic-user", "New Relic", "NEW_RELIC_API_KEY", "NRAK-{u:27}", rule=True),
        token("grafana", "Grafana", "GRAFANA_TOKEN", "glsa_{a:32}_{x:8}", rule=True),
        token("sentry-token", "Sentry", "SENTRY_AUTH_TOKEN", "sntryu_{x:64}", rule=True),
        token("honeycomb", "Honeycomb", "HONEYCOMB_API_KEY", "{a:22}", rule=True),
        token("splunk-hec", "Splunk", "SPLUNK_HEC_TOKEN", "{uuid}", rule=False),
        token("rollbar", "Rollbar", "ROLLBAR_ACCESS_TOKEN", "{x:32}", rule=False),
    ),
)

REGISTRIES = Family(
    name="package registries",
    kinds=(
        token("npm", "npm", "NPM_TOKEN NODE_AUTH_TOKEN", "npm_{a:36}", rule=True),
        token("pypi", "PyPI", "PYPI_TOKEN TWINE_PASSWORD", "pypi-AgEIcHlwaS5vcmc{w:150}", rule=True),
        token("crates", "crates.io", "CARGO_REGISTRY_TOKEN", "cio{a:32}", rule=True),
        token("rubygems", "RubyGems", "GEM_HOST_API_KEY", "rubygems_{x:48}", rule=True),
        token("docker-hub", "Docker Hub", "DOCKERHUB_TOKEN DOCKER_PASSWORD", "dckr_pat_{w:27}", rule=True),
        token("nuget", "NuGet", "NUGET_API_KEY", "oy2{l:43}", rule=False),
        token("artifactory", "Artifactory", "ARTIFACTORY_API_KEY", "AKCp{a:69}", rule=True),
        token("expo", "Expo", "EXPO_TOKEN", "{w:40}", rule=False),
    ),
)

PLATFORMS = Family(
    name="platforms",
    kinds=(
        token("vault", "Vault", "VAULT_TOKEN", "hvs.{w:95}", rule=True),
        token("terraform-cloud", "Terraform Cloud", "TFE_TOKEN", "{a:14}.atlasv1.{w:67}", rule=True),
        token("cloudflare", "Cloudflare", "CLOUDFLARE_API_TOKEN CF_API_TOKEN", "{w:40}", rule=True),
        token("cloudflare-tunnel", "Cloudflare", "TUNNEL_TOKEN", "eyJhIjoi{a:170}", rule=False),
        token("digitalocean", "DigitalOcean", "DIGITALOCEAN_TOKEN DO_TOKEN", "dop_v1_{x:64}", rule=True),
        token("hetzner", "Hetzner", "HCLOUD_TOKEN", "{a:64}", rule=False),
        token("linode", "Linode", "LINODE_TOKEN", "{x:64}", rule=False),
        token("fly", "Fly", "FLY_API_TOKEN", "fo1_{w:43}", rule=True),
        token("vercel", "Vercel", "VERCEL_TOKEN", "{a:24}", rule=True),
        token("netlify", "Netlify", "NETLIFY_AUTH_TOKEN", "nfp_{a:36}", rule=True),
        token("doppler", "Doppler", "DOPPLER_TOKEN", "dp.st.prd.{a:43}", rule=True),
        token("supabase", "Supabase", "SUPABASE_SERVICE_KEY", "sb_secret_{w:31}", rule=True),
        token("backblaze", "Backblaze", "B2_APPLICATION_KEY", "K001{b:27}", rule=False),
    ),
)

WORK_TOOLS = Family(
    name="work tools",
    kinds=(
        token("linear", "Linear", "LINEAR_API_KEY", "lin_api_{a:40}", rule=True),
        token("asana", "Asana", "ASANA_TOKEN", "2/[d:16]/[d:16]:{x:32}", rule=False),
        token("airtable", "Airtable", "AIRTABLE_TOKEN", "pat{a:14}.{x:64}", rule=True),
        token("algolia", "Algolia", "ALGOLIA_ADMIN_KEY", "{x:32}", rule=True),
        token("okta", "Okta", "OKTA_API_TOKEN SSWS_TOKEN", "00{w:40}", rule=True),
        token("auth0", "Auth0", "AUTH0_CLIENT_SECRET", "{w:64}", rule=True),
        token("travis", "Travis", "TRAVIS_TOKEN", "{w:22}", rule=True),
        token("jenkins", "Jenkins", "JENKINS_API_TOKEN", "11{x:32}", rule=False),
        token("trello", "Trello", "TRELLO_TOKEN", "ATTA{x:72}", rule=True),
        token("zendesk", "Zendesk", "ZENDESK_API_TOKEN", "{a:40}", rule=True),
        token(
            "calendar",
            "calendar",
            "CALENDAR_URL ICS_URL",
            "https://calendar.example.com/private-{x:32}/basic.ics",
            rule=False,
            form="url",
        ),
        token("zoom", "Zoom", "MEETING_URL", "https://us02web.zoom.us/j/[d:11]?pwd={w:32}.1", rule=False, form="url"),
    ),
)

FAMILIES = (
    *(AWS, AZURE, SIGNED_URLS, WEBHOOKS, BOTS, BASIC_AUTH, MODELS, OBSERVABILITY, REGISTRIES, PLATFORMS),
    WORK_TOOLS,  # new in version 2
)
