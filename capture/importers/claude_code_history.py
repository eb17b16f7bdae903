"""The lines of one Claude Code session as the tree they are: answers put together, prompts rebuilt.

Lines point to their parents; a rewind makes a branch, parallel tools do too, so a prompt is the path from a line to its
root and the results of all tools that an answer on it called. Since version 2.1.3xx the log also keeps the requests
themselves, as lists of hashes of messages (`api-request`, `-blob`, `-shape`): where they are whole they are the prompt,
word for word as sent, system prompt and tools included.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from capture.call import Message
from capture.dialects import anthropic_messages
from capture.dialects.reading import Json, as_count, as_list, as_object, as_text, compact_json
from capture.importers.log_calls import stamp_ns

SYNTHETIC_MODEL = "<synthetic>"  # the agent's own words in the model's role


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line that stands in the tree or beside it."""

    position: int  # over all files of the session
    place: str
    data: Json
    uuid: str
    parent: str
    agent: str | None  # a sub-agent's id; None: the main conversation
    at_ns: int | None

    @property
    def kind(self) -> str:
        """The line's type: user, assistant, attachment, system, …"""
        return as_text(self.data.get("type"))

    @property
    def message(self) -> Json:
        """The vendor's message in it."""
        return as_object(self.data.get("message"))

    @property
    def blocks(self) -> list[Json]:
        """Content blocks of the message; plain text as one text block."""
        content = self.message.get("content")
        if isinstance(content, str):
            return [{"type": "text", "text": content}]
        return [as_object(block) for block in as_list(content)]


@dataclass(slots=True)
class Answer:
    """One answer of the model, spread over a line per content block; copies and early partial lines included."""

    message_id: str
    request_id: str
    lines: list[Line] = field(default_factory=list)
    _blocks: list[tuple[Json, int | None]] | None = None  # once the log is read

    @property
    def first(self) -> Line:
        """Its first line."""
        return self.lines[0]

    @property
    def key(self) -> tuple[str, str]:
        """Equal for the copy of an answer in another file."""
        return self.message_id, self.request_id

    def blocks(self) -> list[tuple[Json, int | None]]:
        """Content blocks, each once, with the stamp of the line that closed it."""
        if self._blocks is not None:
            return self._blocks
        found: dict[str, tuple[Json, int | None]] = {}
        for line in self.lines:
            for number, block in enumerate(line.blocks):
                # Two equal texts are one block logged twice unless the log numbers them.
                index = line.data.get("apiBlockIndex")
                name = as_text(block.get("id")) or compact_json(block)
                partial = next(reversed(found), None) if index is None else None
                if partial is not None and _begins(found[partial][0], block):
                    del found[partial]
                found[f"{index}/{number}" if index is not None else name] = (block, line.at_ns)
        self._blocks = list(found.values())
        return self._blocks

    def usage(self) -> Json:
        """The provider's usage: the largest output count is the last one, whatever the order of the lines."""
        best: Json = {}
        most = -1
        for line in self.lines:
            usage = as_object(line.message.get("usage"))
            count = as_count(usage.get("output_tokens"))
            if usage and (count if count is not None else -1) >= most:
                best, most = usage, count if count is not None else -1
        return best

    def stop(self) -> str | None:
        """The last stop reason that a line has."""
        return next((text for line in reversed(self.lines) if (text := as_text(line.message.get("stop_reason")))), None)

    def model(self) -> str:
        """The model that answered."""
        return next((text for line in self.lines if (text := as_text(line.message.get("model")))), "")

    def tool_ids(self) -> list[str]:
        """Ids of the tool calls, in order."""
        return [as_text(block.get("id")) for block, _ in self.blocks() if block.get("type") == "tool_use"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedRequest:
    """A request that the log keeps: parameters, system prompt, tools, and its messages as hashes."""

    line: Line
    id: str
    base: str  # the request whose first messages it repeats; empty: none
    keep: int  # how many of them
    tail: tuple[str, ...]  # hashes of the messages that follow
    parameters: Json
    shape: Json | None
    withheld: bool  # the agent left parts out of the log


class History:
    """The tree of one session."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self.lines = lines
        self.by_uuid: dict[str, Line] = {}
        self.children: defaultdict[str, list[Line]] = defaultdict(list)
        self.results: defaultdict[str, list[Line]] = defaultdict(list)
        self.answers: list[Answer] = []
        self.answer_of: dict[str, Answer] = {}  # by uuid of any of its lines
        self.requests: list[LoggedRequest] = []
        self._by_hash: dict[str, tuple[Message, ...]] = {}
        self._blobs: dict[str, Json] = {}
        self._spoken: dict[str, list[tuple[Message, ...]]] = {}  # by request
        self._preserves = any(as_object(line.data.get("compactMetadata")) for line in lines)
        self._told = _Told()
        self._last_path: tuple[str, list[Line]] = ("", [])
        by_id: defaultdict[str, list[Answer]] = defaultdict(list)
        for line in lines:
            if line.uuid:
                self.by_uuid.setdefault(line.uuid, line)
            if line.parent:
                self.children[line.parent].append(line)
            if line.kind == "assistant":
                self._add_answer(line, by_id)
            elif line.kind == "user":
                for block in line.blocks:
                    if block.get("type") == "tool_result":
                        self.results[as_text(block.get("tool_use_id"))].append(line)
        self._read_requests()

    def _add_answer(self, line: Line, by_id: defaultdict[str, list[Answer]]) -> None:
        message_id = as_text(line.message.get("id")) or line.uuid or line.place
        request_id = as_text(line.data.get("requestId"))
        answer = next(
            (
                answer
                for answer in by_id[message_id]
                if (not request_id or not answer.request_id or answer.request_id == request_id)
                and answer.first.agent == line.agent
            ),
            None,
        )
        if answer is None:
            answer = Answer(message_id, request_id)
            by_id[message_id].append(answer)
            self.answers.append(answer)
        answer.request_id = answer.request_id or request_id
        if not any(line.uuid and line.uuid == other.uuid for other in answer.lines):
            answer.lines.append(line)
        if line.uuid:
            self.answer_of.setdefault(line.uuid, answer)

    def path(self, leaf: str) -> list[Line]:
        """Lines from the root to `leaf`; what a compaction preserved stands after its summary."""
        known_leaf, known = self._last_path
        found: list[Line] = []
        seen: set[str] = set()
        at = leaf
        while at and at not in seen and (line := self.by_uuid.get(at)) is not None:
            if at == known_leaf:
                found.extend(reversed(known))
                break
            seen.add(at)
            found.append(line)
            at = line.parent
        found.reverse()
        self._last_path = (leaf, found)
        return self._with_preserved(found)

    def _with_preserved(self, path: list[Line]) -> list[Line]:
        if not self._preserves:
            return path
        kept: dict[str, list[Line]] = {}
        for line in path:
            preserved = as_object(as_object(line.data.get("compactMetadata")).get("preservedMessages"))
            names = [as_text(name) for name in as_list(preserved.get("uuids"))]
            if names:
                kept[as_text(preserved.get("anchorUuid"))] = [
                    self.by_uuid[name] for name in names if name in self.by_uuid
                ]
        if not kept:
            return path
        return [entry for line in path for entry in (line, *kept.get(line.uuid, ()))]

    def prompt(self, path: Sequence[Line], before: int) -> tuple[Message, ...]:
        """The conversation along a path as the agent would have sent it, with results logged before `before`."""
        told = self._told
        if not told.path or len(path) < len(told.path) or path[len(told.path) - 1] is not told.path[-1]:
            told = self._told = _Told()  # another branch; else the prompt goes on where the last one ended
        new = path[len(told.path) :]
        told.path = path
        told.positions.update(line.position for line in new)
        for line in new:
            if line.kind == "user" and line.message:
                told.add("user", line.blocks)
            elif line.kind == "attachment":
                rendered = [as_text(as_object(part).get("content")) for part in as_list(line.data.get("rendered"))]
                told.add("user", [{"type": "text", "text": text} for text in rendered if text])
            elif line.kind == "assistant" and not line.data.get("isApiErrorMessage"):
                answer = self.answer_of.get(line.uuid)
                if answer is None or id(answer) in told.answers:
                    continue
                told.answers.add(id(answer))
                told.add("assistant", [block for block, _ in answer.blocks()])
                for blocks in self._results_beside(answer, told.positions, before):
                    told.add("user", blocks)
        return (*told.messages, *told.last())

    def _results_beside(self, answer: Answer, on_path: set[int], before: int) -> Iterator[list[Json]]:
        """Results of parallel tools: each hangs on the line of its own call, so the path misses all but one."""
        for tool_id in answer.tool_ids():
            lines = [line for line in self.results.get(tool_id, ()) if line.position < before]
            if lines and not any(line.position in on_path for line in lines):
                yield [block for block in lines[-1].blocks if block.get("tool_use_id") == tool_id]

    def _read_requests(self) -> None:
        shapes: dict[str, Json] = {}
        for line in self.lines:
            data = line.data
            if line.kind == "api-request-shape":
                shapes[as_text(data.get("shapeHash"))] = as_object(data.get("shape"))
            elif line.kind == "api-request-blob":
                self._blobs[as_text(data.get("hash"))] = as_object(data.get("message"))
            elif line.kind == "api-request":
                self.requests.append(
                    LoggedRequest(
                        line=line,
                        id=as_text(data.get("id")),
                        base=as_text(data.get("base")),
                        keep=as_count(data.get("keep")) or 0,
                        tail=tuple(as_text(part) for part in as_list(data.get("tail"))),
                        parameters=as_object(data.get("params")),
                        shape=shapes.get(as_text(data.get("shapeHash"))),
                        withheld=bool(data.get("withheld")),
                    )
                )

    def spoken(self, request: LoggedRequest, path: Sequence[Line]) -> tuple[Message, ...] | None:
        """The messages of a logged request; None where one of them is not in the log. Ask in the order of the log.

        The log hashes the model's own answers but does not repeat them: they are the last answers on the path.
        """
        base = self._spoken.get(request.base, []) if request.base else []
        if request.withheld or (request.base and (request.base not in self._spoken or request.keep > len(base))):
            return None
        answers = self._answers_from_the_end(path)
        tail: list[tuple[Message, ...]] = []
        for name in reversed(request.tail):
            blob = self._blobs.get(name)
            if blob is None or blob.get("role") == "assistant":
                answer = next(answers, None)
                if blob is None and name not in self._by_hash:
                    if answer is None:
                        return None
                    blob = {"role": "assistant", "content": [block for block, _ in answer.blocks()]}
            if name not in self._by_hash:
                self._by_hash[name] = _as_messages(blob or {})
            tail.append(self._by_hash[name])
        self._spoken[request.id] = [*base[: request.keep], *reversed(tail)]
        return tuple(message for messages in self._spoken[request.id] for message in messages)

    def _answers_from_the_end(self, path: Sequence[Line]) -> Iterator[Answer]:
        seen: set[int] = set()
        for line in reversed(path):
            if line.kind == "assistant" and not line.data.get("isApiErrorMessage"):
                answer = self.answer_of.get(line.uuid)
                if answer is not None and id(answer) not in seen:
                    seen.add(id(answer))
                    yield answer


class _Told:
    """A prompt while it is put together along a path; only its last message may still grow."""

    def __init__(self) -> None:
        self.path: Sequence[Line] = ()
        self.positions: set[int] = set()
        self.answers: set[int] = set()
        self.messages: list[Message] = []
        self._role = ""
        self._blocks: list[Json] = []

    def add(self, role: str, blocks: Iterable[Json]) -> None:
        """Add content; what the client says in a row is one message."""
        if role != self._role or role == "assistant":
            self.messages.extend(self.last())
            self._role, self._blocks = role, []
        self._blocks = [*self._blocks, *blocks]

    def last(self) -> tuple[Message, ...]:
        """The message that may still grow."""
        if not self._blocks:
            return ()
        return _as_messages({"role": self._role, "content": _results_first(self._role, self._blocks)})


def _as_messages(vendor: Json) -> tuple[Message, ...]:
    return anthropic_messages.read_prompt({"messages": [vendor]}, {}, "/v1/messages").messages


def _begins(partial: Json, block: Json) -> bool:
    """Whether a block of text or thoughts is the beginning of another: older versions log it while it grows."""
    kind = as_text(block.get("type"))
    if kind not in ("text", "thinking") or partial.get("type") != kind:
        return False
    return as_text(block.get(kind)).startswith(as_text(partial.get(kind)))


def _results_first(role: str, blocks: Sequence[Json]) -> list[Json]:
    """Tool results lead a user's message: the service refuses anything else."""
    if role != "user":
        return list(blocks)
    return sorted(blocks, key=lambda block: block.get("type") != "tool_result")


def make_line(position: int, place: str, data: Mapping[str, Any], agent: str | None) -> Line:
    """A line of the log, its fields made safe to use."""
    return Line(
        position=position,
        place=place,
        data=data,
        uuid=as_text(data.get("uuid")),
        parent=as_text(data.get("parentUuid")),
        agent=as_text(data.get("agentId")) or agent,
        at_ns=stamp_ns(data.get("timestamp")),
    )
