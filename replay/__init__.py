"""Drive recorded sessions against a serving system and score concurrent agents per megawatt."""
