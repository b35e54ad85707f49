# An image with the framework and its pinned packages, for NVIDIA GPUs. Written by hand and never built by its authors:
# the machines of this project have no Docker. If it fails, docs/install.md has the same steps.
#
#   docker build -t distil .
#   docker run --gpus all --shm-size 16g -v "$PWD/model_hub:/app/model_hub" -v "$PWD/data:/app/data" \
#       -v "$PWD/outputs:/app/outputs" distil bash scripts/gpt2/kd_gpt2_base.sh
#
# The base has nvcc because DeepSpeed compiles a kernel where a configuration asks for one; the wheel of torch brings
# CUDA's libraries itself. Mounted folders must be writable for user 1000.
FROM nvidia/cuda:13.0.2-devel-ubuntu24.04

RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv python3-dev build-essential git pdsh openssh-client \
    && rm -rf /var/lib/apt/lists/*

# Ubuntu's image has a user 1000 already.
RUN userdel --remove ubuntu 2>/dev/null || true; useradd --create-home --uid 1000 distil && install -d -o distil /app
USER distil
WORKDIR /app

# First what seldom changes, so that an edit of the code does not install everything again.
COPY --chown=distil requirements.txt constraints.txt ./
RUN python3 -m venv .venv \
    && .venv/bin/pip install --no-cache-dir -r requirements.txt -c constraints.txt setuptools

COPY --chown=distil . .
RUN .venv/bin/pip install --no-cache-dir --no-build-isolation --no-deps -e .

ENV PATH=/app/.venv/bin:$PATH HF_HOME=/app/model_hub/.cache
CMD ["bash"]
