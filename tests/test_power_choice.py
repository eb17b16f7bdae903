"""The one grammar of `--power`: what it takes, what it refuses in a sentence, and that it keeps no secret."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.power.choice import PowerChoice, parse_power, parse_powers

CHOICES = {
    "nvml": PowerChoice(kind="nvml"),
    "nvml,scope=module": PowerChoice(kind="nvml", scope="module"),
    "rapl": PowerChoice(kind="rapl"),
    "declared:700W*1": PowerChoice(kind="declared", watts=700.0),
    "declared:1200W*8": PowerChoice(kind="declared", watts=1200.0, count=8),
    "exporter:http://n1:9400/metrics": PowerChoice(kind="exporter", url="http://n1:9400/metrics"),
    'exporter:https://n1/m,match={gpu=~"0|1",job="a,b"},map=my.toml,header-env=X-Key=KEY': PowerChoice(
        kind="exporter",
        url="https://n1/m",
        match='{gpu=~"0|1",job="a,b"}',
        table=Path("my.toml"),
        header_env=("X-Key", "KEY"),
    ),
    'prometheus:http://p:9090,match={instance="n1:9400"}': PowerChoice(
        kind="prometheus", url="http://p:9090", match='{instance="n1:9400"}'
    ),
    "https://n2:8642,token-env=TOKEN,ca-file=ca.pem": PowerChoice(
        kind="remote", url="https://n2:8642", token_env="TOKEN", ca_file=Path("ca.pem")
    ),
    "http://127.0.0.1:8642": PowerChoice(kind="remote", url="http://127.0.0.1:8642"),
    "file:meter, west.csv": PowerChoice(kind="file", path=Path("meter, west.csv")),
    "command:meter": PowerChoice(kind="command", words=("meter",)),
}


@pytest.mark.parametrize("text", CHOICES)
def test_every_kind_is_read_and_written_the_same(text: str) -> None:
    assert parse_power(text) == CHOICES[text]
    assert parse_power(text).text.replace(",map=my.toml,header-env=X-Key=KEY", "") == text.replace(
        ",map=my.toml,header-env=X-Key=KEY", ""
    )
    assert parse_power(parse_power(text).text) == CHOICES[text]


def test_nameplates_have_units_and_counts() -> None:
    assert parse_power("declared:700W") == PowerChoice(kind="declared", watts=700.0)
    assert parse_power("declared:1.2kW*8") == PowerChoice(kind="declared", watts=1200.0, count=8)
    assert parse_power("declared:0.12MW").watts == 120_000


def test_a_command_is_all_that_follows() -> None:
    choice = parse_power("command:/opt/bin/meter --url 'http://h/x?key=k-1, two' match={a}")
    assert choice.words == ("/opt/bin/meter", "--url", "http://h/x?key=k-1, two", "match={a}")


def test_what_is_kept_of_a_choice_holds_no_secret() -> None:
    assert parse_power("command:/home/me/meter --token s-1").text == "command:meter"
    assert parse_power("exporter:http://h/metrics?token=s-1#s-1").text == "exporter:http://h/metrics"
    assert parse_power("file:/home/me/meter.csv").text == "file:meter.csv"
    assert parse_power("exporter:http://h/m,map=/home/me/my.toml").text == "exporter:http://h/m,map=my.toml"
    assert parse_power("https://h:1,token-env=T,ca-file=~/ca.pem").text == "https://h:1,token-env=T,ca-file=ca.pem"
    for text in (
        "exporter:http://me:s-1@h/metrics",
        "https://s-1@h:1,token-env=T",
        "https://h:1,token-env=s-1",
        "prometheus:ftp://h/s-1?k=s-1,match={}",
        "exporter:http://h/?token=s-1 ,map=x",
        "exporter:http://[h/?token=s-1",
        "prometheus:http://h,match={},header-env=Authorization: Bearer s-1",
        "command:'s-1",
        "https://h/?t=s-1",
        "exporter:me:s-1@h:9400/metrics",
        "exporter:http:me:s-1@h/metrics",
        "https:me:s-1@h,token-env=T",
        "exporter:http://me:12,s-1@h/metrics,map=x",
        "exporter:http://h/?token=a,s-1=b",
        "command:TOKEN=s-1 ./meter",
    ):
        with pytest.raises(ValueError, match="power") as caught:
            parse_power(text)
        # The path of a URL may be said, and its name: nothing behind them.
        assert "s-1" not in str(caught.value).replace("ftp://h/s-1", "")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "power '' is not known: use nvml"),
        ("watts", "power 'watts' is not known: use nvml, nvml,scope=module, rapl, declared:700W"),
        ("nvmls", "is not known"),
        ("nvml:0", "takes no argument after a colon"),
        ("nvml,scope=rack", "scope is accelerator or module"),
        ("nvml,scope", "scope has no value"),
        ("nvml,scopes=module", "option 'scopes' is not known: it takes scope"),
        ("nvml,scope=module,scope=module", "scope is given twice"),
        ("rapl,x=1", "option 'x' is not known: it takes no options"),
        ("rapl2", "is not known"),
        ("declared", "declared:700W"),
        ("declared:", "declared:700W"),
        ("declared:700", "declared:700W"),
        ("declared:-5W", "declared:700W"),
        ("declared:1e999W", "declared:700W"),
        ("declared:0W", "above 0"),
        ("declared:5W*0", "above 0"),
        ("exporter", "its URL is missing"),
        ("exporter:n1:9400/metrics", "not a URL that begins with http"),
        ("exporter:http://n1:99999/m", "its URL cannot be read"),
        ("exporter:http:///m", "not a URL"),
        ("exporter:http://n1/m,match=gpu", "match stands in braces"),
        ("exporter:http://n1/m,map=", "map has no value"),
        ("prometheus:http://p", "match is missing"),
        ("prometheus:http://p,match={a},header-env=X", "Header-Name=VARIABLE"),
        ("http://n2:1,token-env=T", "over https:// only"),
        ("https://n2:1", "token-env is missing"),
        ("https://n2:1,token-env=a b", "not its value"),
        ("command:", "name a program"),
        ("command:''", "name a program"),
        ("command:'a", "cannot be read"),
        ("file:", "name a file"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(text: str, says: str) -> None:
    with pytest.raises(ValueError, match="power") as caught:
        parse_power(text)
    assert says in str(caught.value)


@given(st.text(max_size=60), st.sampled_from(["", "nvml", "declared:", "exporter:http://h,", "https://", "command:"]))
def test_nothing_breaks_the_grammar(text: str, start: str) -> None:
    try:
        choice = parse_power(start + text)
    except ValueError:
        return
    assert choice.text


def test_a_source_counts_once_and_a_kind_as_often_as_it_is_named() -> None:
    texts = ["declared:700W", "declared:500W", "exporter:http://a/m", "exporter:http://b/m", "rapl"]
    assert [choice.kind for choice in parse_powers(texts)] == [
        "declared", "declared", "exporter", "exporter", "rapl"
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"declared:700W\*1 is named 2 times: .*write a count"):
        parse_powers(["declared:700W", "rapl", "declared:0.7kW"])
    with pytest.raises(ValueError, match="rapl is named 2 times: each source counts once"):
        parse_powers(["rapl", "rapl"])
