"""The query embedder: texts and pictures to unit vectors, batched across concurrent requests on one model thread.

A plain class; app.py makes it a Serve deployment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from sidray.embedding.runtime import RunModel
from sidray.models.graph_constants import NO_IMAGES
from sidray.serving.batcher import Batcher
from sidray.serving.messages import Embedded, Refusal, Vector
from sidray.serving.schemas import Model
from sidray.serving.settings import EmbedderSettings

MAX_INPUT_TOKENS = 8192
STALLED_S = 120.0
