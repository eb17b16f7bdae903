"""Commands of the user's: cut into words, run without a shell, named where they fail."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from capture.fault import EnvironmentFault
from replay.user_command import command_words, run_command


def test_a_command_is_cut_into_words_as_a_shell_does() -> None:
    assert command_words("systemctl restart 'my model'", "--restart-cmd") == ("systemctl", "restart", "my model")
    for text in ("", "'open"):
        with pytest.raises(ValueError, match="--power-cap-cmd"):
            command_words(text, "--power-cap-cmd")


def test_no_shell_reads_the_words(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.touch()
    run_command((sys.executable, "-c", "pass", f"; rm {kept}"), "restart", timeout_s=30)
    assert kept.exists()


def test_what_a_failing_command_prints_is_no_order_to_the_terminal() -> None:
    words = (sys.executable, "-c", "import sys; print('\\x1b[2Jbroken'); sys.exit(4)")
    with pytest.raises(EnvironmentFault, match=r"the power cap command .* failed with exit code 4:  \[2Jbroken"):
        run_command(words, "power cap", timeout_s=30)
