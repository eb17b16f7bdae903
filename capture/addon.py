"""For `mitmdump -s addon.py`: records into the store named by AGENTDYNO_STORE, else into the default one."""

from capture.recorder import recorder_for
from capture.store import default_store

addons = [recorder_for(default_store())]
