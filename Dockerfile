# syntax=docker/dockerfile:1
#
# Heed on vLLM's own image, of the one release that it supports:
#
#     docker build -t heed .
#
# For machines without a GPU, on a plain Python image with the CPU build of vLLM (PIP_EXTRA_INDEX_URL is
# PyTorch's CPU index, as its install page prints it):
#
#     docker build -t heed:cpu --build-arg BASE=python:3.11-slim-bookworm --build-arg EXTRAS=cpu \
#         --build-arg PIP_EXTRA_INDEX_URL=… .
ARG BASE=vllm/vllm-openai:v0.32.0
FROM ${BASE}

# Extras of Heed to install: none on vLLM's image, which has vLLM already.
ARG EXTRAS=""
ARG PIP_EXTRA_INDEX_URL=""
ARG REVISION=""

LABEL org.opencontainers.image.title="Heed" \
      org.opencontainers.image.description="vLLM whose attention every request can edit" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="${REVISION}"

USER 0
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]

# The CPU build compiles at run time when it is not started with --enforce-eager.
# hadolint ignore=DL3008
RUN if [ -n "${EXTRAS}" ]; then \
        apt-get update && \
        apt-get install -y --no-install-recommends g++ libnuma1 && \
        rm -rf /var/lib/apt/lists/*; \
    fi

WORKDIR /opt/heed
COPY pyproject.toml README.md LICENSE ./
COPY deploy/constraints-cpu.txt deploy/
COPY scripts/setup_environment.py scripts/
COPY kernels kernels
COPY interventions interventions
COPY server server

# vLLM's image has all that Heed needs, in versions of its own; on another base they are those that last served.
# hadolint ignore=DL3013
RUN if [[ ",${EXTRAS}," == *,cpu,* ]]; then export PIP_CONSTRAINT=/opt/heed/deploy/constraints-cpu.txt; fi && \
    python3 -m pip install --no-cache-dir --disable-pip-version-check ".${EXTRAS:+[${EXTRAS}]}" && \
    python3 scripts/setup_environment.py --repair && \
    rm -rf /opt/heed/*

# Fails the build where the base image holds another vLLM.
RUN python3 -c "from heed_server.engine import versions as v; v.require_supported_vllm(v.installed_vllm())"

# Group 0 may do what the user may, as platforms that choose the user themselves expect.
RUN id 2000 > /dev/null 2>&1 || useradd --uid 2000 --gid 0 --no-create-home --home-dir /home/heed heed && \
    mkdir -p /home/heed/.cache && \
    chown -R 2000:0 /home/heed && \
    chmod -R g=u /home/heed

# What is compiled is loaded from where it was written, and a /tmp in memory is often mounted noexec.
ENV HOME=/home/heed \
    USER=heed \
    HF_HOME=/home/heed/.cache/huggingface \
    VLLM_CACHE_ROOT=/home/heed/.cache/vllm \
    TRITON_CACHE_DIR=/home/heed/.cache/triton \
    TORCHINDUCTOR_CACHE_DIR=/home/heed/.cache/torchinductor \
    VLLM_NO_USAGE_STATS=1

WORKDIR /home/heed
USER 2000:0
EXPOSE 8000

# Weights of a large model take minutes to load.
HEALTHCHECK --start-period=30m --interval=15s --timeout=5s --retries=3 \
    CMD ["python3", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=4)"]

ENTRYPOINT ["heed", "serve"]
