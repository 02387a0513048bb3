"""What an operator sets of the service: the `args:` of serve/search.yaml. Light: no torch, no Ray.

settings = build(RunSettings, {"run": "sidray-runs/runs/smgr-1a2b", "embedder": {"replicas": 2}}, "serve args")
"""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from sidray.config import Settings

Count = Annotated[int, Field(ge=1)]


class Bounds(Settings):
    """Between how many replicas Serve chooses; it waits `upscale_delay_s` and `downscale_delay_s` for the need to
    last."""

    min_replicas: Annotated[int, Field(ge=0)] = 1
    max_replicas: Count = 4
    upscale_delay_s: Annotated[float, Field(ge=0)] = 5.0
    downscale_delay_s: Annotated[float, Field(ge=0)] = 300.0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas={self.min_replicas} is more than max_replicas={self.max_replicas}")
        return self


class Autoscaling(Bounds):
    """Serve keeps each replica near `target_ongoing_requests`."""

    target_ongoing_requests: Annotated[float, Field(gt=0)] = 8.0

    def options(self, max_ongoing: int) -> dict[str, Any]:
        """Serve's autoscaling_config. `max_ongoing`: of a replica, for policies that ask."""
        return self.model_dump()


class TokenAutoscaling(Bounds):
    """Serve keeps each replica near `target_tokens` that wait or are computed, and adds replicas while all have their
    `max_ongoing` requests and more wait (autoscaling.py)."""

    target_tokens: Annotated[float, Field(gt=0)] = 512.0

    def options(self, max_ongoing: int) -> dict[str, Any]:
        """Serve's autoscaling_config."""
        policy = {
            "policy_function": "sidray.serving.autoscaling:OutstandingTokens",
            "policy_kwargs": {"target": self.target_tokens, "max_ongoing": max_ongoing},
        }
        return {**self.model_dump(exclude={"target_tokens"}), "policy": policy}


class ReplicaSettings(Settings):
    """A replica works on `max_ongoing` requests at once."""

    cpus: Annotated[float, Field(ge=0)] = 0.5
    max_ongoing: Count = 64


class DeploymentSettings(ReplicaSettings):
    """`replicas`, or `autoscaling` in their place."""

    replicas: Count = 1
    autoscaling: Autoscaling | None = None

    @model_validator(mode="after")
    def _scales(self) -> DeploymentSettings:
        if self.autoscaling and self.autoscaling.target_ongoing_requests >= self.max_ongoing:
            raise ValueError(
                f"autoscaling.target_ongoing_requests={self.autoscaling.target_ongoing_requests:g} must be below "
                f"max_ongoing={self.max_ongoing}: at the limit the deployment would never scale"
            )
        return self


class EmbedderSettings(ReplicaSettings):
    """A batch holds `batch_tokens` padded tokens, `batch_pictures` pictures or `batch_items` items; an idle model waits
    `batch_wait_ms` for company. The texts of a batch are read in groups of similar length, so that padding adds at most
    the share `padding`: less of it takes more calls of the model, which does not pay where a call costs more than what
    it computes (the demo's model on a CPU: 5 % fewer searches/s than with 1.0). `threads` are torch's. In each gateway
    replica `max_queued` requests wait; the next is answered 503."""

    replicas: Count = 1
    autoscaling: TokenAutoscaling | None = None
    cpus: Annotated[float, Field(ge=0)] = 1.0
    gpus: Annotated[float, Field(ge=0)] = 0.0
    max_queued: Count = 256
    threads: Count = 1
    batch_tokens: Count = 4096
    batch_pictures: Count = 16
    batch_items: Count = 16
    batch_wait_ms: Annotated[float, Field(ge=0)] = 2.0
    padding: Annotated[float, Field(ge=0)] = 0.1


class RecallSettings(DeploymentSettings):
    """`threads` searches run at once in a replica, each on one core. `max_queued` as in the embedder. Each replica
    looks for new items and generations every `poll_ms`, and one search in `check_every` is held against an exact one.
    With `gpus` the vectors lie on the GPU and every search is exact."""

    gpus: Annotated[float, Field(ge=0)] = 0.0
    threads: Count = 1
    max_queued: Count = 256
    poll_ms: Annotated[float, Field(ge=10)] = 250.0
    check_every: Count = 1000


class WriterSettings(ReplicaSettings):
    """There is one replica. Writes that come within `commit_ms` share a commit. A new generation is built when
    `fold_rows` were written, by whomever, or some and the last one is `fold_s` old."""

    max_queued: Count = 256
    commit_ms: Annotated[float, Field(ge=0, le=100)] = 20.0
    fold_rows: Count = 20_000
    fold_s: Annotated[float, Field(gt=0)] = 600.0


class GatewaySettings(DeploymentSettings):
    """A replica answers `max_ongoing` requests at once, half of them writes and embeddings, and refuses the next with
    503; `timeout_s` is each one's deadline (504), `write_timeout_s` that of writes and embeddings. `keys`: URI of a
    file of API keys, "": none are asked for; each key may send `requests_per_s` to a replica, 0: any number."""

    max_ongoing: Count = 128
    timeout_s: Annotated[float, Field(gt=0)] = 10.0
    write_timeout_s: Annotated[float, Field(gt=0)] = 60.0
    keys: str = ""
    requests_per_s: Annotated[float, Field(ge=0)] = 0.0


class RunSettings(Settings):
    """The application of one run. `run`: URI of a finished run; `variant`: one of its variants, "" = the recipe
    itself."""

    run: str
    variant: str = ""
    embedder: EmbedderSettings = EmbedderSettings()
    recall: RecallSettings = RecallSettings()
    writer: WriterSettings = WriterSettings()


class ServiceSettings(Settings):
    """The application of the gateway. `weights`: application of a run -> its share of the searches; `shadows`: the
    applications that get a copy of every search but those by vector, and whose answers nobody sees."""

    weights: Annotated[dict[str, Annotated[float, Field(gt=0)]], Field(min_length=1)]
    shadows: tuple[str, ...] = ()
    gateway: GatewaySettings = GatewaySettings()
