# quintain in a container: miner, trainer, pipelines and what KubeRay wants of an image. Built from the project's root:
#
#   docker build --tag quintain:1.0 .                           # faiss for the CPU
#   docker build --tag quintain:1.0-gpu --build-arg FAISS=gpu . # faiss for NVIDIA GPUs (CUDA 12)
#   docker run --rm --shm-size 1g -v "$PWD/runs:/data" quintain:1.0 run --demo --run-dir /data/demo
#
# Change: the tag of python:3.11-slim to a digest of your mirror. No token and no credential is in it or goes in at build
# time: they come from a Secret or an environment file when it runs.
FROM python:3.11-slim

# wget: KubeRay up to 1.5 asks by it whether a Ray node is well.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends wget \
    && rm -rf /var/lib/apt/lists/*

# Into the system's Python, not a virtual environment: KubeRay's login shells would not have its bin in their PATH.
ARG FAISS=cpu
WORKDIR /opt/quintain
COPY pyproject.toml README.md LICENSE ./
COPY locks ./locks
COPY miner ./miner
COPY trainer ./trainer
COPY pipelines ./pipelines
# Nothing without a hash; then the project itself, which brings nothing along.
RUN pip install --no-cache-dir --require-hashes --requirement "locks/${FAISS}.txt" \
    && pip install --no-cache-dir --no-deps --no-build-isolation .

RUN useradd --uid 1000 --user-group --create-home quintain \
    && mkdir /data \
    && chown quintain:quintain /data
USER 1000:1000
WORKDIR /data

# Ray asks everybody for the cluster's token, and reports to nobody.
ENV RAY_AUTH_MODE=token \
    RAY_USAGE_STATS_ENABLED=0 \
    RAY_TRAIN_V2_ENABLED=1 \
    PYTHONUNBUFFERED=1

ENTRYPOINT ["pipelines"]
CMD ["--help"]
