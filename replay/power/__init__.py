"""Power: sources that read watts and joules, and the integral that turns them into the energy of a window."""
