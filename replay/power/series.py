"""What the series of exporters mean: metric name → domain, kind of reading and unit; labels → device and host.

Names, labels and units were read in the exporters' own documentation and source: NVIDIA dcgm-exporter (counter lists
up to 4.8 and DCGM's table of renamed fields), AMD device-metrics-exporter (list of metrics), Intel Gaudi's exporter,
nvidia_gpu_exporter, all-smi, Kepler, ipmi_exporter, idrac_exporter and APC's PowerNet MIB as snmp_exporter shows it.
A table of the user's (`map=FILE`) comes before ours; docs/REPLAY.md shows one.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from curate.words import printable
from replay.exposition import SeriesName, Sign, parse_labels
from replay.power.source import PowerDomain, PowerFault

type Meaning = Literal["energy_j", "power_w", "power_instant_w", "limit_w"]
"""A kind of sample, or a power limit, which is a property of the device."""

type Labels = Mapping[str, str]

UNITS: dict[str, tuple[Literal["energy", "power"], float]] = {
    "W": ("power", 1.0),
    "mW": ("power", 1e-3),
    "uW": ("power", 1e-6),
    "µW": ("power", 1e-6),
    "kW": ("power", 1e3),
    "MW": ("power", 1e6),
    "J": ("energy", 1.0),
    "mJ": ("energy", 1e-3),
    "uJ": ("energy", 1e-6),
    "µJ": ("energy", 1e-6),
    "kJ": ("energy", 1e3),
    "MJ": ("energy", 1e6),
    "Wh": ("energy", 3.6e3),
    "kWh": ("energy", 3.6e6),
    "MWh": ("energy", 3.6e9),
}

ATTRIBUTION = frozenset(
    {"pod", "namespace", "container", "pod_name", "pod_namespace", "container_name", "pod_uid", "vgpu"}
    | {"exported_pod", "exported_namespace", "exported_container", "job_id", "job_user", "job_partition", "hpc_job"}
    | {"GPU_I_ID", "GPU_I_PROFILE"}
)
"""Labels that say who uses a device, not which one it is: they change while it runs, and a shared one has several."""

HOSTS = ("Hostname", "hostname", "host", "node_name", "node", "instance")
"""Labels that name the machine, the surest first; a port in `instance` is left out."""

MOST_TABLE_BYTES = 1_000_000
MOST_ROWS = 1_000
MOST_UID_CHARACTERS = 200
_PLACE = re.compile(r"\{([a-zA-Z_][a-zA-Z0-9_]*)\}")
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What one series is. `uid` has templates over labels and `{host}`: the first counts whose labels are all there."""

    name: str
    domain: PowerDomain
    meaning: Meaning
    unit: str
    uid: tuple[str, ...]
    count: float = 1.0  # units of one count: APC's 10 W are unit "W", count 10
    where: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # label → its values that fit; "" is absent
    title: tuple[str, ...] = ()  # labels that name the model
    host: str | None = None  # template; None: the first of HOSTS
    derived: bool = False  # computed by the exporter from other readings
    refresh_s: float | None = None  # as the user states it
    wrap: float | None = None  # counts at which a counter starts again

    @property
    def scale(self) -> float:
        """Watts or joules of one count."""
        return UNITS[self.unit][1] * self.count


@dataclass(frozen=True, slots=True, kw_only=True)
class Meant:
    """One series, understood."""

    rule: Rule
    rank: int  # place of its rule in the table: a lower one is preferred
    uid: str
    host: str
    title: str
    series: SeriesName


@dataclass(frozen=True, slots=True, kw_only=True)
class Matcher:
    """One condition on a label, as PromQL has it: an absent label is the empty string."""

    label: str
    sign: Sign
    value: str

    def fits(self, labels: Labels) -> bool:
        """Whether labels meet it."""
        told = labels.get(self.label, "")
        if self.sign in ("=", "!="):
            return (told == self.value) == (self.sign == "=")
        return (re.fullmatch(self.value, told) is not None) == (self.sign == "=~")

    @property
    def text(self) -> str:
        """As PromQL writes it."""
        escaped = self.value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'{self.label}{self.sign}"{escaped}"'


class Table:
    """Rules by metric name, in order of preference."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules: dict[str, list[tuple[int, Rule]]] = {}
        for rank, rule in enumerate(rules):
            self._rules.setdefault(rule.name, []).append((rank, rule))
        self.names = frozenset(self._rules)

    def meaning(self, series: SeriesName, default_host: str) -> Meant | None:
        """What a series is; None where no rule fits. `default_host` counts where no label names the machine."""
        labels = {label: value for label, value in series.labels if value}
        for rank, rule in self._rules.get(series.name, ()):
            if any(labels.get(label, "") not in values for label, values in rule.where.items()):
                continue
            host = _host(rule, labels, default_host)
            uid = _first({**labels, "host": host} if host else labels, rule.uid)
            if uid is None or len(uid) > MOST_UID_CHARACTERS or not uid.isprintable():
                continue
            title = next((labels[label] for label in rule.title if label in labels), uid)
            return Meant(rule=rule, rank=rank, uid=uid, host=host, title=printable(title)[:200], series=series)
        return None


def _host(rule: Rule, labels: Labels, default: str) -> str:
    if rule.host is not None:
        return _first(labels, (rule.host,)) or default
    label = next((label for label in HOSTS if label in labels), None)
    if label is None:
        return default
    named = printable(labels[label])[:MOST_UID_CHARACTERS]
    return re.sub(r":\d+$", "", named) if label == "instance" else named


def _first(labels: Labels, templates: Sequence[str]) -> str | None:
    for template in templates:
        if all(label in labels for label in _PLACE.findall(template)):
            return _PLACE.sub(lambda place: labels[place[1]], template)
    return None


# -- ours

_GPU = ("modelName", "card_model", "gpu_name", "card_series")
_DCGM = ("{UUID}", "{uuid}")
_AMD = ("{gpu_uuid}", "{serial_number}", "{host}/gpu{gpu_id}")
_PDU = ("{host}/pdu{rPDU2DeviceStatusIndex}", "{host}/pdu")
_WHOLE = {"gpu_partition_id": ("", "0")}
"""A partitioned MI300 shows a line for each part; the watts of its socket stand at the first."""


def _rows(
    names: Sequence[tuple[str, Meaning, str]],
    *,
    uid: tuple[str, ...],
    domain: PowerDomain = "accelerator",
    title: tuple[str, ...] = (),
    where: Mapping[str, tuple[str, ...]] | None = None,
    derived: bool = False,
    count: float = 1.0,
) -> list[Rule]:
    return [
        Rule(
            name=name,
            domain=domain,
            meaning=meaning,
            unit=unit,
            count=count,
            uid=uid,
            title=title,
            where=where or {},
            derived=derived,
        )
        for name, meaning, unit in names
    ]


_KEPLER_CPU: tuple[tuple[str, Meaning, str], ...] = (
    ("kepler_node_cpu_joules_total", "energy_j", "J"),
    ("kepler_node_cpu_watts", "power_w", "W"),
)

BUILT_IN: tuple[Rule, ...] = (
    # dcgm-exporter shows a field under the name that its list of counters gives it: the older and the newer one of a
    # field mean the same, but for energy, where the newer name is another field in another unit.
    *_rows(
        (
            ("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "energy_j", "mJ"),  # field 156
            ("DCGM_FI_DEV_GPU_ENERGY_JOULES_TOTAL", "energy_j", "J"),  # 1611, whole joules
            ("DCGM_FI_DEV_POWER_USAGE", "power_w", "W"),  # 155
            ("DCGM_FI_DEV_BOARD_POWER_WATTS", "power_w", "W"),  # 155 since DCGM 4.6
            ("DCGM_FI_DEV_POWER_USAGE_INSTANT", "power_instant_w", "W"),  # 157
            ("DCGM_FI_DEV_BOARD_POWER_RAW_WATTS", "power_instant_w", "W"),
            ("DCGM_FI_DEV_ENFORCED_POWER_LIMIT", "limit_w", "W"),  # 164
            ("DCGM_FI_DEV_BOARD_POWER_LIMIT_ENFORCED_WATTS", "limit_w", "W"),
            ("DCGM_FI_DEV_POWER_MGMT_LIMIT", "limit_w", "W"),  # 160
            ("DCGM_FI_DEV_BOARD_POWER_LIMIT_REQUESTED_WATTS", "limit_w", "W"),
            ("dcgm_total_energy_consumption", "energy_j", "mJ"),  # with --use-old-namespace
            ("dcgm_power_usage", "power_w", "W"),
        ),
        uid=_DCGM,
        title=_GPU,
    ),
    # Grace: a socket is not a GPU, and lies in the same module.
    *_rows(
        (
            ("DCGM_FI_DEV_CPU_POWER_UTIL_CURRENT", "power_instant_w", "W"),  # 1130
            ("DCGM_FI_DEV_CPU_POWER_WATTS", "power_instant_w", "W"),
            ("DCGM_FI_DEV_CPU_POWER_LIMIT", "limit_w", "W"),  # 1131
            ("DCGM_FI_DEV_CPU_POWER_LIMIT_WATTS", "limit_w", "W"),
        ),
        domain="cpu_package",
        uid=("{host}/cpu{cpu}",),
    ),
    *_rows(
        (
            ("gpu_energy_consumed", "energy_j", "µJ"),
            ("gpu_average_package_power", "power_w", "W"),  # MI2xx
            ("gpu_package_power", "power_instant_w", "W"),  # MI3xx
            ("gpu_power_usage", "power_instant_w", "W"),
        ),
        uid=_AMD,
        title=_GPU,
        where=_WHOLE,
    ),
    # `habanalabs_energy` has no documented unit, and `accelerator_power_usage_watts` of the same exporter holds
    # milliwatts: neither is read.
    *_rows(
        (("habanalabs_power_mW", "power_instant_w", "mW"), ("habanalabs_power_default_limit_mW", "limit_w", "mW")),
        uid=("{UUID}", "{Serial}", "{serial}"),
        title=("device",),
    ),
    *_rows(
        (
            ("nvidia_smi_energy_joules_total", "energy_j", "J"),
            ("nvidia_smi_power_draw_average_watts", "power_w", "W"),
            ("nvidia_smi_power_draw_watts", "power_w", "W"),
            ("nvidia_smi_power_draw_instant_watts", "power_instant_w", "W"),
            ("nvidia_smi_enforced_power_limit_watts", "limit_w", "W"),
        ),
        uid=("GPU-{uuid}",),  # it writes the UUID without its prefix
    ),
    *_rows(
        (("all_smi_gpu_power_consumption_watts", "power_w", "W"),),
        uid=("{gpu_uuid}", "{uuid}", "{host}/gpu{gpu_index}", "{host}/gpu{index}"),
        title=("gpu",),
    ),
    *_rows((("ipmi_dcmi_power_consumption_watts", "power_instant_w", "W"),), domain="node", uid=("{host}/dcmi",)),
    *_rows(
        (("idrac_power_control_consumed_watts", "power_instant_w", "W"),),
        domain="node",
        uid=("{host}/power-control-{id}",),
        title=("name",),
    ),
    *_rows(
        (("rPDU2DeviceStatusEnergy", "energy_j", "kWh"),),
        domain="rack",
        uid=_PDU,
        count=0.1,  # PowerNet-MIB: tenths of a kilowatt-hour
    ),
    *_rows(
        (("rPDU2DeviceStatusPower", "power_instant_w", "W"),),
        domain="rack",
        uid=_PDU,
        count=10.0,  # hundredths of a kilowatt; -1 where the model does not measure it
    ),
    *_rows(
        (("all_smi_energy_consumed_joules_total", "energy_j", "J"),),
        uid=("{gpu_uuid}", "{host}/gpu{gpu_index}"),
        where={"scope": ("gpu",)},
        derived=True,
    ),
    *_rows(
        (("kepler_node_gpu_joules_total", "energy_j", "J"), ("kepler_node_gpu_watts", "power_w", "W")),
        uid=("{gpu_uuid}", "{host}/gpu{gpu}"),
        title=("gpu_name",),
        derived=True,
    ),
    *_rows(_KEPLER_CPU, domain="cpu_package", uid=("{host}/package",), where={"zone": ("package",)}, derived=True),
    *_rows(_KEPLER_CPU, domain="dram", uid=("{host}/dram",), where={"zone": ("dram",)}, derived=True),
)


# -- the user's


def read_table(path: Path | None) -> Table:
    """Our table, and before it the rows of the user's file; PowerFault names the row and what it may say."""
    if path is None:
        return Table(BUILT_IN)
    try:
        body = path.read_bytes()
        if len(body) > MOST_TABLE_BYTES:
            raise PowerFault(f"{path} is no table of series: it is larger than {MOST_TABLE_BYTES} bytes")
        document = tomllib.loads(body.decode())
    except OSError as error:
        raise PowerFault(f"the table of series {path} cannot be read ({error.strerror}): correct map=FILE") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PowerFault(f"{path} is no TOML: {printable(str(error))[:200]}") from error
    rows = document.get("series")
    unknown = sorted(document.keys() - {"series"})
    if unknown or not isinstance(rows, list) or not rows or len(rows) > MOST_ROWS:
        raise PowerFault(f"{path}: a table of series has one [[series]] for each metric, and nothing else")
    rules = [_read_row(row, f"{path}: [[series]] {number}") for number, row in enumerate(rows, start=1)]
    named = {rule.name for rule in rules}
    return Table([*rules, *(rule for rule in BUILT_IN if rule.name not in named)])


_TEXTS = ("name", "domain", "kind", "unit", "uid", "host", "title")
_NUMBERS = ("count", "refresh_s", "wrap")


def _read_row(row: object, where: str) -> Rule:
    if not isinstance(row, dict):
        raise PowerFault(f"{where} is no table")
    unknown = sorted(row.keys() - {*_TEXTS, *_NUMBERS, "where", "derived"})
    if unknown:
        raise PowerFault(f"{where}: {printable(unknown[0])} is not known; known are {', '.join((*_TEXTS, *_NUMBERS))}, "
                         "where and derived")  # fmt: skip
    texts = {key: _text(row, key, where) for key in _TEXTS}
    numbers = {key: _number(row, key, where) for key in _NUMBERS}
    name, unit, uid = (_needed(texts[key], key, where) for key in ("name", "unit", "uid"))
    if _NAME.fullmatch(name) is None:
        raise PowerFault(f"{where}: {name!r} is no name of a metric")
    domains = tuple(domain for domain in get_args(PowerDomain.__value__) if domain != "declared")
    domain = _one_of(_needed(texts["domain"], "domain", where), domains, "domain", where)
    meaning = _one_of(_needed(texts["kind"], "kind", where), get_args(Meaning.__value__), "kind", where)
    _one_of(unit, tuple(UNITS), "unit", where)
    if (UNITS[unit][0] == "energy") != (meaning == "energy_j"):
        raise PowerFault(f"{where}: the unit {unit} does not fit the kind {meaning}")
    derived = row.get("derived", False)
    if not isinstance(derived, bool):
        raise PowerFault(f"{where}: derived is true or false")
    return Rule(
        name=name,
        domain=domain,  # type: ignore[arg-type]  # it is one of them, as was asked above
        meaning=meaning,  # type: ignore[arg-type]
        unit=unit,
        uid=(uid,),
        count=numbers["count"] or 1.0,
        where=_read_where(row.get("where", {}), where),
        title=() if texts["title"] is None else (texts["title"],),
        host=texts["host"],
        derived=derived,
        refresh_s=numbers["refresh_s"],
        wrap=numbers["wrap"],
    )


def _text(row: Mapping[str, object], key: str, where: str) -> str | None:
    value = row.get(key)
    if value is None:
        return None
    if not isinstance(value, str) or not value or len(value) > MOST_UID_CHARACTERS or not value.isprintable():
        raise PowerFault(f"{where}: {key} is a text on one line of at most {MOST_UID_CHARACTERS} characters")
    return value


def _number(row: Mapping[str, object], key: str, where: str) -> float | None:
    value = row.get(key)
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e18:
        raise PowerFault(f"{where}: {key} is a number above 0")
    return float(value)


def _needed(value: str | None, key: str, where: str) -> str:
    if value is None:
        raise PowerFault(f"{where}: {key} is missing")
    return value


def _one_of(value: str, allowed: Sequence[str], key: str, where: str) -> str:
    if value not in allowed:
        raise PowerFault(f"{where}: {key} {printable(value)!r} is not known: say {', '.join(allowed)}")
    return value


def _read_where(value: object, where: str) -> dict[str, tuple[str, ...]]:
    if not isinstance(value, dict):
        raise PowerFault(f'{where}: where has labels and their values, for example {{ outlet = "7" }}')
    conditions = {}
    for label, told in value.items():
        values = told if isinstance(told, list) else [told]
        if not values or not all(isinstance(each, str) for each in values):
            raise PowerFault(f"{where}: where.{printable(label)} is a text or a list of texts")
        conditions[label] = tuple(values)
    return conditions


# -- which of them


def parse_match(text: str | None) -> tuple[Matcher, ...]:
    """Reads `{label="value",other=~"expression"}`; PowerFault where it is none."""
    if text is None:
        return ()
    conditions = parse_labels(text)
    if not conditions:
        raise PowerFault(
            f"match={printable(text)[:200]} is not understood: write it as PromQL does, "
            'for example match={Hostname="node1"} or match={job="dcgm",Hostname=~"node[1-4]"}'
        )
    matchers = []
    for label, sign, value in conditions:
        if sign in ("=~", "!~"):
            try:
                re.compile(value)
            except re.error as error:
                raise PowerFault(f"match: {printable(value)[:200]!r} is no regular expression ({error})") from error
        matchers.append(Matcher(label=label, sign=sign, value=value))
    return tuple(matchers)
