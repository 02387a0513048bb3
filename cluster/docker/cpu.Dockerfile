# syntax=docker/dockerfile:1
# sidray for CPU nodes: heads, data, serving, training without GPUs. From the root of the repository:
#   docker build -f cluster/docker/cpu.Dockerfile -t sidray-cpu:0.1.0 .
# Pin the base by digest in your registry's copy: tags move.
FROM python:3.11.14-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/sidray
ENV PATH=/opt/sidray/bin:$PATH
# torch from PyPI brings gigabytes of CUDA; the small build is in PyTorch's own index. Layers that change least first.
RUN pip install --no-deps --index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu
COPY cluster/docker/requirements-cpu.lock /tmp/requirements.lock
RUN pip install --no-deps --require-hashes -r /tmp/requirements.lock
COPY pyproject.toml README.md LICENSE /src/
COPY platform /src/platform
RUN pip install --no-deps /src && pip check

FROM python:3.11.14-slim-bookworm
# wget: KubeRay's probe of a serving worker. bash, which runs its commands, is in the base.
RUN apt-get update && apt-get install -y --no-install-recommends wget && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home --shell /bin/bash sidray \
    && echo 'export PATH=/opt/sidray/bin:$PATH' > /etc/profile.d/sidray.sh
COPY --from=build /opt/sidray /opt/sidray
COPY jobs /app/jobs
COPY serve /app/serve
ENV PATH=/opt/sidray/bin:$PATH PYTHONUNBUFFERED=1 RAY_USAGE_STATS_ENABLED=0
# What sidray.cluster sets for a cluster that it starts itself: quiet libraries; large tensors keep their pages.
ENV DS_ACCELERATOR=cpu \
    RAY_DATA_DISABLE_PROGRESS_BARS=1 \
    RAY_task_oom_retries=3 \
    TOKENIZERS_PARALLELISM=false \
    HF_HUB_DISABLE_PROGRESS_BARS=1 \
    MALLOC_MMAP_MAX_=0 \
    MALLOC_TRIM_THRESHOLD_=1073741824
USER 1000:1000
WORKDIR /app
CMD ["sidray", "--help"]
