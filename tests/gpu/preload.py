"""Imports that all stages share; the server from which CPU stages are forked loads them once."""

from allinone.engine.distributed import launch

launch.prepare_environment()  # before torch's and DeepSpeed's imports

import deepspeed  # noqa: E402, F401
import torch  # noqa: E402, F401

import allinone.engine  # noqa: E402
import allinone.pretrain.cost  # noqa: E402
import allinone.pretrain.objectives.combined  # noqa: E402, F401
