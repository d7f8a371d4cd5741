"""What the server of :mod:`warm` imports before it forks: what trains. It ends when the process ends that has it."""

from tna_lightning.running.processes import end_server_with_parent
from tna_lightning.running.start import main

end_server_with_parent()

__all__ = ["main"]
