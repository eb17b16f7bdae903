"""Power lines: written and read back, cut anywhere, and every wrong line a sentence with its number."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.power.lines import LONGEST_LINE, PowerLines, encode_header, encode_sample
from replay.power.source import DeviceState, PowerDevice, PowerFault, PowerSample, SampleKind, SourceInfo

NODE = PowerDevice(uid="node n1", name="PDU 4", domain="node", limit_w=10_200.0, wrap_j=3.6e9, host="n1", latch_s=0.5)
GPU = PowerDevice(uid="GPU-a", name="H200", domain="accelerator", limit_w=700.0, wrap_j=None, u_gain=0.01)
INFO = SourceInfo(
    kind="nvml",
    measured=True,
    version="580.1",
    devices=(NODE, GPU),
    notes=("a note",),
    name="nvml",
    states=(DeviceState(device="GPU-a", ecc=True, throttled_by=("SW_POWER_CAP",), temperature_c=41.0),),
)
SHORT = {"agentdyno_power": 1, "devices": [{"uid": "a", "domain": "node"}]}
EPOCH_NS = 1_790_000_000_000_000_000


def read(data: bytes, *, now_unix_ns: int | None = None) -> tuple[PowerLines, list[PowerSample]]:
    lines = PowerLines("meter.jsonl", kind="command")
    samples = list(lines.feed(data, now_unix_ns=now_unix_ns))
    return lines, samples + list(lines.finish())


def line(**fields: Any) -> bytes:
    return json.dumps(fields).encode() + b"\n"


def refused(data: bytes, *, now_unix_ns: int | None = None) -> str:
    with pytest.raises(PowerFault) as found:
        read(data, now_unix_ns=now_unix_ns)
    sentence = str(found.value)
    assert sentence.isprintable()
    assert len(sentence) < 500
    return sentence


numbers = st.floats(min_value=0, max_value=1e18)
kinds: st.SearchStrategy[SampleKind] = st.sampled_from(["energy_j", "power_w", "power_instant_w"])
good = st.builds(
    PowerSample,
    t_ns=st.integers(0, 2**62),
    device=st.sampled_from([NODE.uid, GPU.uid]),
    kind=kinds,
    value=numbers,
    read_us=st.integers(0, 10**9),
    flag=st.just("ok"),
)
bad = st.builds(
    PowerSample,
    t_ns=st.integers(0, 2**62),
    device=st.sampled_from([NODE.uid, GPU.uid]),
    kind=kinds,
    value=st.none(),
    read_us=st.integers(0, 10**9),
    flag=st.sampled_from(["unsupported", "lost", "error", "blank"]),
)


@given(st.lists(good | bad, max_size=20), st.integers(0, EPOCH_NS), st.data())
def test_what_is_written_is_read_back_however_it_is_cut(
    samples: list[PowerSample], offset_ns: int, data: st.DataObject
) -> None:
    written = encode_header([INFO]) + b"".join(encode_sample(sample, offset_ns) for sample in samples)
    lines = PowerLines("meter.jsonl", kind="file")
    found: list[PowerSample] = []
    rest = written
    while rest:
        cut = data.draw(st.integers(1, max(1, len(rest))))
        found += lines.feed(rest[:cut])
        rest = rest[cut:]
    found += lines.finish()
    assert lines.infos == (INFO,)
    assert found == [replace(sample, t_ns=sample.t_ns + offset_ns) for sample in samples]


@given(st.binary(max_size=300), st.booleans())
def test_whatever_comes_is_a_reading_or_a_sentence(data: bytes, begun: bool) -> None:
    lines = PowerLines("meter.jsonl", kind="command")
    if begun:
        list(lines.feed(line(**SHORT)))
    try:
        samples = [*lines.feed(data, now_unix_ns=EPOCH_NS), *lines.finish()]
    except PowerFault as fault:
        assert str(fault).isprintable()  # noqa: PT017 - there may be none
        assert list(lines.feed(line(device="a", power_w=1, t_unix_ns=1))) == []  # and nothing after it
    else:
        assert begun
        assert all(sample.device == "a" and (sample.value is None) != (sample.flag == "ok") for sample in samples)


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(["sources", "devices"]), st.data())
def test_a_header_with_anything_anywhere_is_read_or_a_sentence(form: str, data: st.DataObject) -> None:
    header: Any = json.loads(encode_header([INFO])) if form == "sources" else json.loads(json.dumps(SHORT))
    place: Any = header
    while isinstance(place, dict | list) and place:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not isinstance(place[key], dict | list) or data.draw(st.booleans()):
            place[key] = data.draw(json_values)
            break
        place = place[key]
    try:
        lines, _ = read(line(**header))
    except PowerFault as fault:
        assert str(fault).isprintable()  # noqa: PT017
        return
    assert lines.infos is not None
    for device in (device for info in lines.infos for device in info.devices):
        assert device.uid
        assert device.limit_w is None or 0 < device.limit_w <= 1e18


def test_a_short_header_names_the_least() -> None:
    header = {
        "agentdyno_power": 1,
        "period_s": 2,
        "devices": [
            {"uid": "n1", "domain": "node", "name": "PDU 4", "limit_w": 10_200, "wrap_j": 3.6e6},
            {"uid": "g1", "domain": "accelerator"},
        ],
    }
    lines, samples = read(line(**header) + b"\r\n" + line(device="g1", power_instant_w=412.5), now_unix_ns=7)
    assert lines.infos is not None
    (info,) = lines.infos
    assert (info.kind, info.measured, info.period_s) == ("command", True, 2.0)
    assert [(item.uid, item.name, item.domain, item.limit_w, item.wrap_j, item.place) for item in info.devices] == [
        ("n1", "PDU 4", "node", 10_200.0, 3.6e6, ("node n1",)),
        ("g1", "g1", "accelerator", None, None, ("accelerator g1",)),
    ]
    assert samples == [PowerSample(t_ns=7, device="g1", kind="power_instant_w", value=412.5, read_us=0, flag="ok")]


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (b"", "is empty: its first line reads"),
        (b"GET / HTTP/1.1\n", r"line 1 is not \{"),
        (b"[1]\n", r"line 1 is not \{"),
        (b"\n\n{}\n", r"line 3 is not \{"),
        (line(agentdyno_power=2, devices=[]), "has a version that is not 1, the one of this agentdyno: 2"),
        (line(agentdyno_power=True, devices=[]), "has a version"),
        (line(agentdyno_power=1), "missing required field `devices`"),
        (line(agentdyno_power=1, devices=[]), "names 0 devices"),
        (line(agentdyno_power=1, devices=[{"uid": "a", "domain": "node"}] * 2), "a is named twice"),
        (line(agentdyno_power=1, devices=[{"uid": "a", "domain": "moon"}]), "moon"),
        (line(agentdyno_power=1, devices=[{"uid": "a", "domain": "declared"}]), "nameplate.*--power declared"),
        (line(agentdyno_power=1, devices=[{"uid": "", "domain": "node"}]), "length >= 1"),
        (line(agentdyno_power=1, devices=[{"uid": "\x1b[2J", "domain": "node"}]), "not printable"),
        (line(agentdyno_power=1, devices=[{"uid": "a", "domain": "node", "limit_w": 0}]), "> 0"),
        (line(agentdyno_power=1, devices=[{"uid": "a", "domain": "node", "watts": 1}]), "unknown field `watts`"),
        (line(agentdyno_power=1, period_s=0, devices=[{"uid": "a", "domain": "node"}]), "> 0"),
        (line(agentdyno_power=1, period_s=1e9, devices=[{"uid": "a", "domain": "node"}]), "<= 3600"),
        (line(agentdyno_power=1, sources=[], devices=[]), "agentdyno_power and sources only"),
        (line(agentdyno_power=1, sources=[]), "0 sources"),
        (line(agentdyno_power=1, sources=3), "array"),
        (b"{" * 100_000 + b"\n", "line 1"),
        (b"x" * 8_000_001, "line 1 is too long"),
    ],
)
def test_a_wrong_header_is_one_sentence(header: bytes, says: str) -> None:
    with pytest.raises(PowerFault, match=says):
        read(header)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"period_s": 0}, "a period of 0 s"),
        ({"devices": []}, "0 devices"),
        ({"surprise": 1}, "unknown key 'surprise'"),
        ({"clock_u_s": -1}, "not within 0"),
        ({"settle_s": 1e9}, "settle_s of 1e\\+09 s is more than 3600 s"),
        ({"refresh_s": 1e9}, "refresh_s of 1e\\+09 s is more than 3600 s"),
        ({"notes": 10**400}, "a whole number is not within 0"),
        ({"notes": json.loads("[" * 100 + "]" * 100)}, "more than 16 deep"),
        ({"name": "x" * 301}, "longer than 300"),
        ({"notes": ["\x1b]0;owned\x07"]}, "not printable"),
        ({"notes": ["x"] * 5000}, "more than 4096 entries"),
        ({"devices": [{"uid": "a", "name": "a", "domain": "node", "limit_w": None, "wrap_j": 0}]}, "wrap_j of a"),
        ({"devices": [{"uid": "", "name": "a", "domain": "node", "limit_w": None, "wrap_j": None}]}, "has no uid"),
    ],
)
def test_a_wrong_description_is_one_sentence(changed: dict[str, Any], says: str) -> None:
    header = json.loads(encode_header([INFO]))
    header["sources"][0].update(changed)
    with pytest.raises(PowerFault, match=f"line 1: .*{says}"):
        read(line(**header))


@pytest.mark.parametrize(
    ("second", "says"),
    [
        (line(device="a", power_w=1), "line 2 has no t_unix_ns"),
        (line(t_unix_ns=1, device="b", power_w=1), "names a device that the first line does not: b"),
        (line(t_unix_ns=1, device="a"), "must have one of"),
        (line(t_unix_ns=1, device="a", power_w=1, energy_j=2), "must have one of"),
        (line(t_unix_ns=1, device="a", power_w=None), "a flag that says why"),
        (line(t_unix_ns=1, device="a", power_w=1, flag="lost"), "a flag that says why"),
        (line(t_unix_ns=1, device="a", power_w=1, flag="weird"), "is not a reading.*weird"),
        (line(t_unix_ns=1, device="a", power_w=-1), ">= 0"),
        (line(t_unix_ns=1, device="a", power_w="5 W"), "Expected `float"),
        (b'{"t_unix_ns": 1, "device": "a", "power_w": NaN}\n', "is not a reading"),
        (b'{"t_unix_ns": 1, "device": "a", "power_w": 1e999}\n', "is not a reading"),
        (line(t_unix_ns=-1, device="a", power_w=1), "is not a reading"),
        (line(t_unix_ns=2**70, device="a", power_w=1), "is not a reading"),
        (line(t_unix_ns=1, device="a", power_w=1, watt=2), "unknown field `watt`"),
        (b'{"t_unix_ns": 1, "device": "a", "pow', "line 2 is not a reading"),
        (b"\xff\xfe\n", "is not a reading"),
        (b"x" * (LONGEST_LINE + 1), "line 2 is too long"),
    ],
)
def test_a_wrong_reading_is_one_sentence_with_its_line(second: bytes, says: str) -> None:
    with pytest.raises(PowerFault, match=says):
        read(line(**SHORT) + second)


def test_a_reading_of_the_future_is_refused_where_it_is_read_as_it_is_made() -> None:
    ahead = line(**SHORT) + line(t_unix_ns=EPOCH_NS + 90_000_000_000, device="a", power_w=1)
    assert "line 2 is 90 s in the future" in refused(ahead, now_unix_ns=EPOCH_NS)
    assert len(read(ahead)[1]) == 1  # of a finished file there is no now


def test_what_stands_before_a_wrong_line_is_kept() -> None:
    lines = PowerLines("meter.jsonl", kind="command")
    found = lines.feed(line(**SHORT) + line(t_unix_ns=1, device="a", power_w=1) + b"oops\n")
    assert next(found).value == 1
    with pytest.raises(PowerFault, match="line 3"):
        next(found)
