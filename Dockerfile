# Fourfold in a container; docs/docker.md tells how to build and run it.
#   docker build -t fourfold .
#   docker run --rm -v "$PWD/outputs:/work/outputs" fourfold -m experiment=quadrants_embedded
ARG PYTHON_IMAGE=python:3.12-slim
FROM ${PYTHON_IMAGE}

# Empty: PyTorch as pip finds it (on Linux x86 that is the CUDA build). A URL: another package index, such as PyTorch's CPU builds.
ARG TORCH_INDEX=""
# The user inside; give your own `id -u` when you mount a folder of yours.
ARG UID=1000

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

RUN useradd --create-home --uid "$UID" fourfold \
    && mkdir -p /work/outputs /home/fourfold/.cache \
    && chown -R fourfold:fourfold /work /home/fourfold

# PyTorch is by far the largest layer and stays cached while only Fourfold changes.
COPY constraints.txt /src/
RUN python3 -m venv /opt/fourfold \
    && /opt/fourfold/bin/pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} -c /src/constraints.txt torch torchvision

COPY pyproject.toml README.md LICENSE /src/
COPY conf /src/conf
COPY src /src/src
RUN /opt/fourfold/bin/pip install -c /src/constraints.txt "/src[tensorboard,hf]"

USER fourfold
WORKDIR /work
ENV PATH=/opt/fourfold/bin:$PATH
VOLUME ["/work/outputs", "/home/fourfold/.cache"]
ENTRYPOINT ["fourfold"]
CMD ["--help"]
