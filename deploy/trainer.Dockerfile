# The image of the demo trainer for deploy/compose.yaml. Build it in the repository's root:
# `docker build --file deploy/trainer.Dockerfile --tag optwrap-demo-trainer .`. Your own trainer needs only
# `pip install optwrap`, the volume with the socket, and the variables OPTWRAP_ENDPOINT and OPTWRAP_RUN.
ARG PYTHON_IMAGE=python:3.11.13-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
# Unlike the option --constraint, these variables also pin the build requirements of the wheel.
ENV PIP_CONSTRAINT=/src/constraints.txt \
    PIP_BUILD_CONSTRAINT=/src/constraints.txt
WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY optwrap optwrap
# The demo itself needs rich for its progress bar and httpx for a last request to the exporter.
RUN python -m venv --without-pip /opt/optwrap \
    && pip --python /opt/optwrap/bin/python install --no-cache-dir --disable-pip-version-check . rich httpx

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="optwrap-demo-trainer" \
      org.opencontainers.image.description="A small transformer, trained on data with faults"
# The same user as the exporter's, so that both own the directory of the socket, whichever mounts the volume first.
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
