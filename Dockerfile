# The exporter's image: `docker build -t optwrap-exporter .`. It has no JAX, compiler, npm or pip cache.
# The base image has a full version. To pin a digest instead: --build-arg PYTHON_IMAGE=python@sha256:...
ARG PYTHON_IMAGE=python:3.11.13-slim-bookworm

# --- The exporter, in an environment that the last stage copies. Its build fetches the page's chart library.
FROM ${PYTHON_IMAGE} AS build
# Unlike the option --constraint, these variables also pin the build requirements of the wheel.
ENV PIP_CONSTRAINT=/src/constraints.txt \
    PIP_BUILD_CONSTRAINT=/src/constraints.txt
WORKDIR /src
COPY constraints.txt ./
COPY service service
RUN python -m venv --without-pip /opt/optwrap \
    && pip --python /opt/optwrap/bin/python install --no-cache-dir --disable-pip-version-check ./service

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="optwrap-exporter" \
      org.opencontainers.image.description="Prometheus exporter, query API and live page for training jobs instrumented with optwrap"
# A new named volume takes over the owner of the directory where it is mounted, so both belong to this user.
RUN groupadd --gid 10425 optwrap \
    && useradd --uid 10425 --gid optwrap --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin optwrap \
    && install --directory --owner=optwrap --group=optwrap --mode=0700 /var/lib/optwrap /run/optwrap
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
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:10425/-/ready', timeout=4)"]
ENTRYPOINT ["optwrap-exporter"]
