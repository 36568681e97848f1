# The demo's training job as an image for deploy/compose.yaml, built from the repository's root:
# `docker build --file deploy/trainer.Dockerfile --tag optwrap-demo-trainer .`. A trainer of your own needs no image of
# ours: `pip install optwrap`, the volume with the socket, and the environment variables that compose.yaml sets.
ARG PYTHON_IMAGE=python:3.11.13-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
# The environment variables, unlike the option, also pin what builds the wheel.
ENV PIP_CONSTRAINT=/src/constraints.txt \
    PIP_BUILD_CONSTRAINT=/src/constraints.txt
WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY optwrap optwrap
# rich and httpx are the demo's own: its progress bar, and its last question to the exporter.
RUN python -m venv --without-pip /opt/optwrap \
    && pip --python /opt/optwrap/bin/python install --no-cache-dir --disable-pip-version-check . rich httpx

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="optwrap-demo-trainer" \
      org.opencontainers.image.description="A small transformer, trained on data with faults put in"
# The exporter's user: whoever first mounts the volume with the ingest socket, its directory belongs to both.
RUN groupadd --gid 10425 optwrap \
    && useradd --uid 10425 --gid optwrap --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin optwrap \
    && install --directory --owner=optwrap --group=optwrap --mode=0700 /run/optwrap
COPY --from=build /opt/optwrap /opt/optwrap
WORKDIR /srv/demo
COPY examples examples
ENV PATH=/opt/optwrap/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10425:10425
ENTRYPOINT ["python", "-m", "examples.demo"]
