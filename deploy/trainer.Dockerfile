# The image of the demo trainer for deploy/compose.yaml. Build it in the repository's root, after `make dist`:
# `docker build --file deploy/trainer.Dockerfile --tag optwrap-demo-trainer:0.1.0 .`. Your own trainer needs only
# `pip install optwrap`, the volume with the socket, and the variables OPTWRAP_ENDPOINT and OPTWRAP_RUN.
ARG PYTHON_IMAGE=python:3.11.13-slim-bookworm
ARG VERSION=0.1.0

FROM ${PYTHON_IMAGE} AS build
ARG VERSION
ARG PIP_NO_INDEX
WORKDIR /src
COPY constraints.txt ./
COPY dist dist
# The secrets are those of the exporter's image. The demo itself needs rich for its progress bar and httpx for a last request to the
# exporter.
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca.pem \
    python -m venv --without-pip /opt/optwrap \
    && pip --python /opt/optwrap/bin/python install --no-cache-dir --disable-pip-version-check --constraint constraints.txt \
        --only-binary :all: --find-links dist/offline "dist/optwrap-${VERSION}-py3-none-any.whl" rich httpx

FROM ${PYTHON_IMAGE}
# The same user as the exporter's, so that both own the directory of the socket, whichever mounts the volume first.
RUN groupadd --gid 10425 optwrap \
    && useradd --uid 10425 --gid optwrap --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin optwrap \
    && install --directory --owner=optwrap --group=0 --mode=0770 /run/optwrap
COPY --from=build /opt/optwrap /opt/optwrap
WORKDIR /srv/demo
COPY examples examples
ENV PATH=/opt/optwrap/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10425:10425
ENTRYPOINT ["python", "-m", "examples.demo"]
ARG VERSION
ARG REVISION
ARG CREATED
LABEL org.opencontainers.image.title="optwrap-demo-trainer" \
      org.opencontainers.image.description="A small transformer, trained on data with faults" \
      org.opencontainers.image.authors="The optwrap authors" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
