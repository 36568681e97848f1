# The exporter's image. It has no JAX, compiler, npm or pip. It installs the wheel of dist/, which has the page's chart library:
# `make dist`, then `docker build --tag optwrap-exporter:0.1.0 .`. docs/guides/images.md says how to build behind a proxy, without
# a network, for another architecture, and on a base image with a digest (--build-arg PYTHON_IMAGE=python@sha256:...).
ARG PYTHON_IMAGE=python:3.11.13-slim-bookworm
ARG VERSION=0.1.0

# --- The exporter, in an environment that the last stage copies.
FROM ${PYTHON_IMAGE} AS build
ARG VERSION
# 1 where dist/offline has all wheels (`make offline`): pip then asks no index.
ARG PIP_NO_INDEX
WORKDIR /src
COPY constraints.txt ./
COPY dist dist
# Both secrets are optional: a configuration of pip, and a CA certificate that it may name as /run/secrets/ca.pem.
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca.pem \
    python -m venv --without-pip /opt/optwrap \
    && pip --python /opt/optwrap/bin/python install --no-cache-dir --disable-pip-version-check --constraint constraints.txt \
        --only-binary :all: --find-links dist/offline "dist/optwrap_exporter-${VERSION}-py3-none-any.whl"

FROM ${PYTHON_IMAGE}
# A new named volume takes over owner and mode of the directory where it is mounted. Both belong to this user, and to the group 0,
# so that any other user id works, too, as long as its group is 0.
RUN groupadd --gid 10425 optwrap \
    && useradd --uid 10425 --gid optwrap --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin optwrap \
    && install --directory --owner=optwrap --group=0 --mode=0770 /var/lib/optwrap /run/optwrap
COPY --from=build /opt/optwrap /opt/optwrap
# The exporter writes only to the volume and the socket, so the root file system can be read-only. Options come from the
# environment, so that arguments add to them (`docker run ... --retention-days 7`) and commands know the directory
# (`docker run ... forget RUN`). Beyond loopback, reports over TCP need --token-file. Trainers report over the socket, to
# which only this user can write.
ENV PATH=/opt/optwrap/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    OPTWRAP_EXPORTER_LISTEN=0.0.0.0:10425 \
    OPTWRAP_EXPORTER_DATA_DIR=/var/lib/optwrap \
    OPTWRAP_EXPORTER_INGEST_SOCKET=/run/optwrap/ingest.sock
USER 10425:10425
VOLUME ["/var/lib/optwrap"]
EXPOSE 10425
# http.client, because urllib would ask the proxy of the environment. compose.yaml repeats this: images in OCI's format have none.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import http.client, sys; c = http.client.HTTPConnection('127.0.0.1', 10425, timeout=4); c.request('GET', '/-/ready'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["optwrap-exporter"]
# The labels are last, so that another revision does not build the layers again.
ARG VERSION
ARG REVISION
ARG CREATED
LABEL org.opencontainers.image.title="optwrap-exporter" \
      org.opencontainers.image.description="Prometheus exporter, query API and live page for training jobs instrumented with optwrap" \
      org.opencontainers.image.authors="The optwrap authors" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
