"""What a training worker tells Ray's metrics after each step: 20 microseconds of work.

metrics = StageMetrics("finetune", leads=rank() == 0);  metrics.starts(step=0, steps=60)
metrics.stepped(step=1, samples=64, waited_s=0.4, loss=3.2)
"""

from __future__ import annotations

from sidray.metrics import counter, gauge


class StageMetrics:
    """Of one worker in one stage. Every worker counts its own samples and waiting; the one that `leads` has the loss,
    which is the same for all, and the progress."""

    def __init__(self, stage: str, leads: bool) -> None:
        self._labels = {"stage": stage}
        self._leads = leads
        self._samples = counter("sidray_training_samples")
        self._waited = counter("sidray_training_data_wait_seconds")
        self._loss = gauge("sidray_training_loss")
        self._step = gauge("sidray_training_step")
        self._steps = gauge("sidray_training_steps")
        self._told_s = 0.0

    def starts(self, step: int, steps: int) -> None:
        """Before the first batch, so that a stage that waits for it for ever is seen."""
        if self._leads:
            self._step.set(step, self._labels)
            self._steps.set(steps, self._labels)

    def stepped(self, step: int, samples: int, waited_s: float, loss: float) -> None:
        """`samples` of this step on this worker; `waited_s`: since the stage started."""
        self._samples.inc(samples, self._labels)
        if waited_s > self._told_s:
            self._waited.inc(waited_s - self._told_s, self._labels)
            self._told_s = waited_s
        if self._leads:
            self._step.set(step, self._labels)
            self._loss.set(loss, self._labels)
