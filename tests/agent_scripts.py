"""What the scripted model plays to real agents: each scenario as a script, keyed by a word of the task it is given.

Every step reports token counts of its own, so a recorded call tells which step it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from capture.script import Choose, HttpError, Script, ScriptedRequest, ScriptedUsage, Step, StreamBreak
from tests.real_agents import Agent

NEAR_THE_WINDOW = 125_000  # tokens: beyond what any of the agents is set up to hold before it summarises
SESSION_NAMES = ("x-claude-code-session-id", "session-id", "x-session-id")
LONG_TEXT = "The model says so much that its words come in several pieces."  # three of 24 characters


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A session to play: `script` answers prompts that hold one of its keys; the first prompt holds the first key."""

    key: str
    prompts: tuple[str, ...]
    scripts: dict[str, Choose]  # the longest keys first: a sub-agent's key begins with its parent's


def _counted(steps: Iterable[Step], first: int) -> tuple[Step, ...]:
    """The steps with token counts that no other step of the session has; a given input stays."""
    return tuple(
        replace(
            step,
            usage=ScriptedUsage(
                input_total=step.usage.input_total or 2000 + 10 * (first + place),
                cache_read=100 + first + place,
                output_total=40 + first + place,
                reasoning=5 if step.reasoning else 0,
            ),
        )
        for place, step in enumerate(steps)
    )


def _script(steps: Iterable[Step], *, first: int = 0, after: Step, **more: object) -> Script:
    *counted, end = _counted((*steps, after), first)
    return Script(steps=(*counted, end), after=end, **more)  # type: ignore[arg-type]


def faults(agent: Agent, key: str) -> Scenario:
    """Parallel tool calls, a refusal with 529, an error event in a stream after a few and after many words."""
    once = {"attempts": 1, "message": "Overloaded"}
    refused = HttpError(status=529, kind="overloaded_error", retry_after_s=0, **once)  # type: ignore[arg-type]
    early = StreamBreak(after_content_events=1, how="error_event", **once)  # type: ignore[arg-type]
    # All of the text has come: what is missing is the tool call alone. Some agents go on from there.
    late = StreamBreak(after_content_events=3, how="error_event", **once)  # type: ignore[arg-type]
    steps = [
        Step(
            text="Two at once.",
            reasoning="They need not wait for each other.",
            calls=(agent.call("sleep 0.4; echo left"), agent.call("sleep 0.2; echo right")),
        ),
        Step(text="Refused at first.", calls=(agent.call("sleep 0.3; echo three"),), error=refused),
        Step(text=LONG_TEXT, calls=(agent.call("echo four"),), broken=early),
        Step(text=LONG_TEXT, calls=(agent.call("echo five"),), broken=late),
    ]
    return _one(agent, key, steps)


def _one(agent: Agent, key: str, steps: Iterable[Step]) -> Scenario:
    prompt = f"Task {key}: run the steps."
    return Scenario(key=key, prompts=(prompt,), scripts={key: _script(steps, after=agent.end())})


def plain(agent: Agent, key: str, *, steps: int = 4) -> Scenario:
    """One short command after the other."""
    return _one(
        agent, key, [Step(text=f"Step {n}.", calls=(agent.call(f"sleep 0.2; echo {n}"),)) for n in range(steps)]
    )


def sub_agents(agent: Agent, key: str) -> Scenario:
    """Two sub-agents side by side; the first has one of its own."""
    first, second, nested = f"{key}-first", f"{key}-second", f"{key}-first-nested"
    main = parent(agent, "Two helpers.", (first, second), count=100)
    return Scenario(
        key=key,
        prompts=(f"Task {key}: let helpers do it.",),
        scripts={
            nested: _script(
                [Step(text="The nested helper works.", calls=(agent.call("sleep 0.2; echo nested"),))],
                first=400,
                after=Step(text="The nested helper is done."),
            ),
            first: parent(agent, "A helper of the helper.", (nested,), count=200),
            second: _script(
                [Step(text="The second helper works.", calls=(agent.call("sleep 0.5; echo second"),))],
                first=300,
                after=Step(text="The second helper is done."),
            ),
            key: main,
        },
    )


def parent(agent: Agent, text: str, tasks: tuple[str, ...], *, count: int, work: str = "do your part of it.") -> Choose:
    """Gives each task to a sub-agent of its own and waits for them; `count` sets its token counts apart."""
    calls = tuple(agent.spawn(f"Task {task}: {work}") for task in tasks)
    spawning = Step(text=text, calls=calls)
    if agent.wait_tool is None:
        return _script([spawning], first=count, after=Step(text=f"{text} All are done."))
    # Its sub-agents run by themselves: one answer starts them, the next waits for those that the results name.
    script = _script([spawning, Step(text="Now wait.")], first=count, after=Step(text=f"{text} All are done."))

    def choose(request: ScriptedRequest) -> Step:
        step = script(request)
        if request.purpose == "turn" and request.answered == 1:
            return replace(step, calls=agent.wait(request.tool_results))
        return step

    return choose


def compaction(agent: Agent, key: str) -> Scenario:
    """A context that comes near the window and is summarised; the session goes on behind the summary."""
    full = ScriptedUsage(input_total=NEAR_THE_WINDOW)
    work = [Step(text=f"Work {n}.", calls=(agent.call(f"sleep 0.1; echo work {n}"),)) for n in range(2)]
    if agent.compacts_after:
        steps = [*work, Step(text="That is the first half.", usage=full)]
        prompts = (f"Task {key}: first half.", "Now the second half.")
    else:
        steps = [work[0], replace(work[1], usage=full)]
        prompts = (f"Task {key}: run the steps.",)
    before = _counted(steps, 0)
    behind = _counted([Step(text="On.", calls=(agent.call("sleep 0.2; echo on"),)), agent.end()], 500)
    summary = Step(
        # Claude Code asks again where the tags are missing; the key brings the session's next prompts here.
        text=f"<summary>Task {key}: both commands ran well, what is left is to run one more of them.</summary>",
        usage=ScriptedUsage(input_total=4321, output_total=77),
        label="summary",
    )
    played: list[str] = []

    def choose(request: ScriptedRequest) -> Step:
        if request.purpose == "summary":
            played.clear()
            played.append("summary")
            return summary
        if not played:
            return replace(before[request.answered], label=f"steps[{request.answered}]")
        place = len(played) - 1
        played.append("turn")
        return replace(behind[place], label=f"behind[{place}]")

    return Scenario(key=key, prompts=prompts, scripts={key: choose})


class Play:
    """Plays scenarios side by side on one server, told apart by the keys in their prompts.

    A prompt without a key (a prewarm, a prompt that begins with a summary) is of the session whose id it declares.
    """

    def __init__(self, scenarios: Iterable[Scenario]) -> None:
        self._scripts = {key: script for scenario in scenarios for key, script in scenario.scripts.items()}
        self._main = {key: scenario.key for scenario in scenarios for key in scenario.scripts}
        self._sessions: dict[str, str] = {}  # a declared session id → key of its main script

    def __call__(self, request: ScriptedRequest) -> Step:
        """The step of the script that the request belongs to, labelled `KEY/steps[3]`."""
        key = next((key for key in self._scripts if key in request.opening_text), None)
        if key is None:
            key = next((self._sessions[value] for _, value in request.identity if value in self._sessions), None)
        else:
            for name, value in request.identity:
                if name in SESSION_NAMES:
                    self._sessions.setdefault(value, self._main[key])
        if request.purpose in ("side", "prewarm"):
            return Step(text="Beside the script.", label=f"{key}/{request.purpose}")
        if key is None:
            return Step(text="No scenario is this prompt's.", label="lost")
        step = self._scripts[key](request)
        return replace(step, label=f"{key}/{step.label}")


type MakeScenario = Callable[[Agent, str], Scenario]
