"""Record real coding-agent sessions: wire bytes → Exchange → ModelCall → Trajectory.

Only `recorder.py` and `proxy.py` import mitmproxy.
"""
