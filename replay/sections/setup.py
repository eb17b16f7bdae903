"""What was measured and how: the system as disclosed, the server, the policies, the plan, and the files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from replay.document import Cell, Section, Table, columns, pairs, row
from replay.sections.source import Source
from replay.sentence import UNKNOWN, count, name_of, plain, value

_UNDISCLOSED = Cell(text="undisclosed", tone="missed")
_NONE = Cell(text=UNKNOWN, tone="quiet")


def system(source: Source) -> Section:
    """The system file, with what it leaves out, and what the probe saw of the server."""
    score = source.score
    disclosed = score["system"]
    items: list[tuple[str, str | Cell]] = []
    for key, item in disclosed.items():
        if key != "accelerators" and key not in _PARTS:
            items.append((name_of(key), _UNDISCLOSED if item is None else _cell(item)))
    for key, words in _PARTS.items():
        items.append((name_of(key), words(disclosed[key]) if disclosed.get(key) else _NONE))
    accelerators = disclosed.get("accelerators") or []
    named = "; ".join(_accelerator(item) for item in accelerators)
    items.insert(1, ("accelerators", named or _UNDISCLOSED))
    missing = [name_of(name) for name in score["undisclosed"]]
    lead = (
        (f"{count(len(missing), 'field')} undisclosed: {', '.join(missing)}.",)
        if missing
        else ("Every field of the system file is disclosed.",)
    )
    return Section(
        slug="system",
        title="System under test",
        lead=lead,
        blocks=(
            pairs("As its owner states it in system.toml; nothing of it was checked but the power devices.", items),
            _server(score),
        ),
    )


def _accelerator(item: dict[str, Any]) -> str:
    where = [
        item[key] if key == "uuid" else f"{key} {item[key]}" for key in ("uuid", "node", "module") if item.get(key)
    ]
    told = ", ".join([item.get("kind", "gpu"), item.get("role", "serve"), *where])
    return f"{item.get('count', 1)} × {item['name']} ({told})"


def _nodes(items: list[dict[str, Any]]) -> str:
    return ", ".join(item["name"] + (f" (rack {item['rack']})" if item.get("rack") else "") for item in items)


def _racks(items: list[dict[str, Any]]) -> str:
    def whole(item: dict[str, Any]) -> str:
        held = [count(item[key], key.removesuffix("s")) for key in ("nodes", "accelerators") if item.get(key)]
        return f" of {' and '.join(held)}" if held else ""

    return ", ".join(f"{item['name']}{whole(item)}" for item in items)


def _meters(items: list[dict[str, Any]]) -> str:
    def one(item: dict[str, Any]) -> str:
        sure = (
            f", ± {value(item['u_percent'])} % by {item.get('evidence') or 'no evidence'}"
            if item.get("u_percent")
            else ""
        )
        return f"{plain(item['device'])} covers {item['covers']}{sure}"

    return "; ".join(one(item) for item in items)


def _provisioned(item: dict[str, Any]) -> str:
    """Its total, where it yields one."""
    from replay.provisioned import ProvisionedFault, read_provisioned

    try:
        return f"{value(read_provisioned(item).power_w, 'W')} by its system_power.json"
    except ProvisionedFault as fault:
        return f"no total, because {fault}"


_PARTS: dict[str, Callable[[Any], str]] = {
    "nodes": _nodes,
    "racks": _racks,
    "meters": _meters,
    "prices": plain,
    "provisioned": _provisioned,
}
"""Tables of the system file; a small system needs none of them."""


def _server(score: dict[str, Any]) -> Table:
    endpoint = score["endpoint"]
    items: list[tuple[str, str | Cell]] = [
        ("model", endpoint["model"]),
        ("address", ", ".join(endpoint["urls"])),
        ("affinity headers", ", ".join(endpoint["affinity_headers"]) or "none"),
        ("through a proxy", "yes" if endpoint.get("proxy") else "no"),
    ]
    items += [(name_of(key), _cell(item)) for key, item in (score["probe"] or {}).items()]
    return pairs("What the client was told, and what its probe saw of the server before the first trial.", items)


def policies(source: Source) -> Section:
    """Policies, plan, dataset and protocol: results that differ in any of these do not compare."""
    score = source.score
    plan = score["plan"]
    items: list[tuple[str, str | Cell]] = [(name_of(key), _cell(item)) for key, item in score["policies"].items()]
    planned: list[tuple[str, str | Cell]] = [
        (name_of(key), _cell(item)) for key, item in plan.items() if key != "left_out"
    ]
    match = score.get("dataset_match")
    planned += [
        ("dataset digest", Cell(text=score["dataset_digest"], code=True)),
        ("dataset match", "no statement was made of what it should be like" if match is None else _cell(match)),
    ]
    blocks = [
        pairs("Policies. Two results compare only where all of these are alike.", items),
        pairs("The plan: what the dataset became.", planned),
    ]
    if plan["left_out"]:
        blocks.append(
            Table(
                caption="Sessions that the plan left out.",
                columns=columns("session:", "why:"),
                rows=tuple(row(Cell(text=item["session_id"], code=True), item["reason"]) for item in plan["left_out"]),
                folded=len(plan["left_out"]) > 8,
            )
        )
    blocks += _protocols(score)
    points = tuple(
        f"{result['slo']}, trial {result['reference_trial'] or 1}: {rule}."
        for result in score["results"]
        for rule in result["protocol_unmet"]
    )
    return Section(
        slug="policies",
        title="Workload, policies and protocol",
        lead=("Rules of the service level's own protocol that the trial behind the result did not meet:",)
        if points
        else (),
        points=points,
        blocks=tuple(blocks),
    )


def _protocols(score: dict[str, Any]) -> list[Table]:
    asked: dict[str, dict[str, Any]] = {}
    if score.get("protocol"):
        asked["the trials"] = score["protocol"]
    for slo in score["slos"]:
        if slo["protocol"] not in asked.values():
            asked[slo["name"]] = slo["protocol"]
    if not asked:
        return []
    names = list(dict.fromkeys(key for protocol in asked.values() for key in protocol))
    rows = tuple(row(name_of(name), *(_cell(protocol.get(name)) for protocol in asked.values())) for name in names)
    return [
        Table(
            caption="Protocol: what the trials ran under, and what each service level asks for.",
            columns=columns("rule:", *(f"{name}:" for name in asked)),
            rows=rows,
        )
    ]


def files(source: Source) -> Section:
    """Digest of every file, and the command with which anyone computes the score again."""
    score = source.score
    rows = tuple(
        row(Cell(text=path, code=True), Cell(text=digest, code=True)) for path, digest in score["files"].items()
    )
    return Section(
        slug="files",
        title="Check it yourself",
        lead=(
            "The run's folder holds every request and every power reading. This computes every number again from them, "
            "and finds a changed byte:",
        ),
        command=f"agentdyno replay verify {source.folder}",
        blocks=(
            Table(
                caption="SHA-256 of the files that the score rests on.",
                columns=columns("file:", "sha256:"),
                rows=rows,
                folded=len(rows) > 12,
            ),
        ),
    )


def _cell(item: Any) -> Cell:
    """Any JSON value, as code where it is one long word."""
    text = plain(item)
    return Cell(text=text, tone="quiet" if text == UNKNOWN else None, code=len(text) >= 40 and " " not in text)
