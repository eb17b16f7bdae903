"""Look-alikes kept from whoever writes rules: do not read this file if you do. The package says why."""

from __future__ import annotations

import base64
from random import Random

from curate.corpus.kind import some, uuid
from curate.corpus.look_alike import LookAlike, look_alike


@look_alike("ids of calls and messages")
def call_ids(draw: Random) -> tuple[str, str]:
    value = draw.choice(
        [
            f"toolu_01{some(draw, 'a', 22)}",
            f"call_{some(draw, 'a', 24)}",
            f"msg_01{some(draw, 'a', 22)}",
            f"chatcmpl-{some(draw, 'a', 29)}",
            f"resp_{some(draw, 'x', 48)}",
            f"req_011C{some(draw, 'a', 20)}",
        ]
    )
    return draw.choice(
        [f'{{"id": "{value}", "type": "function"}}', f"request id: {value}", f'"tool_use_id":"{value}"']
    ), value


@look_alike("image digests")
def image_digests(draw: Random) -> tuple[str, str]:
    digest = f"sha256:{some(draw, 'x', 64)}"
    return draw.choice(
        [
            f"FROM python:3.13@{digest}",
            f"Digest: {digest}\nStatus: Image is up to date",
            f" => exporting manifest {digest} 0.0s",
        ]
    ), digest


@look_alike("go.sum")
def go_sum(draw: Random) -> tuple[str, str]:
    digest = base64.b64encode(draw.randbytes(32)).decode()
    return f"github.com/acme/lib v1.4.2 h1:{digest}\ngithub.com/acme/lib v1.4.2/go.mod h1:{digest}", digest


@look_alike("trace ids and etags")
def trace_ids(draw: Random) -> tuple[str, str]:
    trace, span = some(draw, "x", 32), some(draw, "x", 16)
    return draw.choice(
        [
            (f"traceparent: 00-{trace}-{span}-01", trace),
            (f'etag: "{trace}"', trace),
            (f'{{"trace_id":"{trace}","span_id":"{span}","name":"GET /"}}', trace),
            (f"x-amz-cf-id: {(cf := some(draw, 'w', 54))}==", cf),
        ]
    )


@look_alike("names in clusters and clouds")
def cloud_names(draw: Random) -> tuple[str, str]:
    value = draw.choice(
        [
            f"shop-api-{some(draw, 'x', 9)}-{some(draw, 'l', 5)}",
            f"arn:aws:iam::{some(draw, 'd', 12)}:role/deploy-{some(draw, 's', 6)}",
            f"i-0{some(draw, 'x', 16)}",
            f"projects/acme-{some(draw, 'd', 6)}/locations/europe-west1/services/shop",
            f"/subscriptions/{uuid(draw)}/resourceGroups/shop-prod",
        ]
    )
    return draw.choice([f"{value}  1/1  Running  0  4d", f'"resource": "{value}"', f"created {value}"]), value


@look_alike("pictures in data URIs")
def data_uris(draw: Random) -> tuple[str, str]:
    data = "iVBORw0KGgoAAAANSUhEUgAA" + base64.b64encode(draw.randbytes(240)).decode()
    return draw.choice(
        [f'<img src="data:image/png;base64,{data}">', f"background: url(data:image/png;base64,{data})"]
    ), data


@look_alike("vendored and minified code")
def minified(draw: Random) -> tuple[str, str]:
    names = "".join(f"var {some(draw, 's', 1)}{draw.randint(1, 99)}=t({draw.randint(100, 9999)});" for _ in range(8))
    code = f"!function(e,t){{{names}}}(this,function(e){{return e.token||(e.token=n(42).default)}})"
    return f"/* dist/app.min.js */\n{code}", code


@look_alike("passwords spoken of")
def spoken_of(draw: Random) -> tuple[str, str]:
    line = draw.choice(
        [
            "The password must be at least twelve characters long and hold a digit.",
            "I forgot my password: what should I do now?",
            "The token: it is read from the keychain, never from a file.",
            "Error: invalid password for user app",
            "Please pass the API key through the environment, not as an argument.",
            "secret management is described in docs/secrets.md",
            "passwords: hashed with argon2id, never logged",
        ]
    )
    return line, line


@look_alike("type and schema lines")
def schemas(draw: Random) -> tuple[str, str]:
    line = draw.choice(
        [
            "password VARCHAR(255) NOT NULL DEFAULT ''",
            "  apiKey: z.string().min(32).optional(),",
            "access_token: Optional[SecretStr] = Field(default=None, alias='accessToken')",
            '"password": {"type": "string", "format": "password", "minLength": 12}',
            "private_key: Ed25519PrivateKey = load_private_key(path)",
            'type Credentials struct { Username string; Password string `json:"-"` }',
        ]
    )
    return line, line


@look_alike("long file names and identifiers")
def identifiers(draw: Random) -> tuple[str, str]:
    value = draw.choice(
        [
            f"assets/index-{some(draw, 'a', 8)}.js",
            "AbstractAuthenticationTokenProcessingFilterConfigurer",
            f"test_refresh_token_is_rotated_after_{draw.randint(2, 99)}_days",
            f"__pycache__/module_{some(draw, 'x', 12)}.cpython-313.pyc",
            f"node_modules/.pnpm/@babel+core@7.26.{draw.randint(0, 9)}/node_modules/@babel/core/lib/index.js",
            f"/nix/store/{some(draw, 'l', 32)}-openssl-3.4.0/bin/openssl",
        ]
    )
    return draw.choice([f"  {value}", f"see {value}", f"opened {value}"]), value


LOOK_ALIKES: tuple[LookAlike, ...] = (
    *(call_ids, image_digests, go_sum, trace_ids, cloud_names, data_uris, minified, spoken_of, schemas, identifiers),
)
