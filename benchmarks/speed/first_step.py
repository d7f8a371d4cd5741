"""`python -m tna_lightning` with the same arguments, which ends after the first step of an optimizer."""

import os
import runpy

from torch.optim.optimizer import register_optimizer_step_post_hook

register_optimizer_step_post_hook(lambda *_: os._exit(0))
runpy.run_module("tna_lightning", run_name="__main__", alter_sys=False)
raise SystemExit("the run ended without a training step")
