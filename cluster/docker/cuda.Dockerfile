# syntax=docker/dockerfile:1
# sidray for GPU nodes. From the root of the repository:
#   docker build -f cluster/docker/cuda.Dockerfile -t sidray-cuda:0.1.0 .
# CUDA comes with torch's wheels, and the driver with the node (NVIDIA's container toolkit), so the base is the same as
# that of cpu.Dockerfile: Python, Ray and the libraries must be equal on all nodes of a cluster. No compiler: sidray's
# optimiser is torch's, and DeepSpeed builds no operators.
FROM python:3.11.14-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/sidray
ENV PATH=/opt/sidray/bin:$PATH
COPY cluster/docker/requirements-cuda.lock /tmp/requirements.lock
RUN pip install --no-deps --require-hashes -r /tmp/requirements.lock
COPY pyproject.toml README.md LICENSE /src/
COPY platform /src/platform
RUN pip install --no-deps /src && pip check

FROM python:3.11.14-slim-bookworm
RUN apt-get update && apt-get install -y --no-install-recommends wget && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home --shell /bin/bash sidray \
    && echo 'export PATH=/opt/sidray/bin:$PATH' > /etc/profile.d/sidray.sh
COPY --from=build /opt/sidray /opt/sidray
COPY jobs /app/jobs
COPY serve /app/serve
ENV PATH=/opt/sidray/bin:$PATH PYTHONUNBUFFERED=1 RAY_USAGE_STATS_ENABLED=0
# DS_ACCELERATOR is not set: DeepSpeed finds the GPU.
ENV RAY_DATA_DISABLE_PROGRESS_BARS=1 \
    RAY_task_oom_retries=3 \
    TOKENIZERS_PARALLELISM=false \
    HF_HUB_DISABLE_PROGRESS_BARS=1 \
    MALLOC_MMAP_MAX_=0 \
    MALLOC_TRIM_THRESHOLD_=1073741824
# What the container toolkit mounts of the driver.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000:1000
WORKDIR /app
CMD ["sidray", "--help"]
