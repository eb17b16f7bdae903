"""The true times of the tools in a golden log: the commands of `tests/logs` print the machine's clock."""

from __future__ import annotations

import re

from capture.importers.log_session import LogSession


def printed_stamps(session: LogSession) -> dict[str, list[float]]:
    """Start and end (s, UTC) by tool call, for each command whose result shows both."""
    printed = {
        message.tool_call_id: [float(found) for found in re.findall(r"\d{10}\.\d{6}", message.content)]
        for call in session.calls
        for message in call.messages
        if message.role == "tool"
    }
    return {name: stamps for name, stamps in printed.items() if name is not None and len(stamps) == 2}
