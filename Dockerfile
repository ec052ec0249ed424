# syntax=docker/dockerfile:1
# One image for every process of the shop; compose and Kubernetes choose the process by its name in the Procfile.
# Where no base image can be pulled, BASE names a stand-in that has Python 3.11 or newer.
ARG BASE=python:3.13-slim

FROM ${BASE} AS build
# Where to install from, if not from the index that pip knows: --no-index --find-links /wheels
ARG PIP_OPTIONS=""
WORKDIR /src
# The locked packages first: this layer is built again only when the lock changes.
COPY requirements/app.lock requirements/app.lock
RUN python3 -m venv /venv && /venv/bin/pip install --no-cache-dir ${PIP_OPTIONS} --requirement requirements/app.lock "setuptools>=77"
COPY pyproject.toml README.md LICENSE ./
COPY cacheworkers cacheworkers
RUN /venv/bin/pip install --no-cache-dir --no-deps --no-build-isolation .

FROM ${BASE}
RUN useradd --system --uid 10001 --no-create-home shop && mkdir -p /run/metrics /run/beat && chown shop /run/metrics /run/beat
COPY --from=build /venv /venv
WORKDIR /shop
COPY Procfile ./
COPY app app
ENV PATH=/venv/bin:$PATH PYTHONPATH=/shop PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# A pod or container that is asked to end gives its tasks back to the queue within the grace period.
ENV REMAP_SIGTERM=SIGQUIT
USER 10001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s CMD ["python", "-m", "app.probe"]
# An init as process 1: signals reach the process, and what its children leave behind is reaped.
ENTRYPOINT ["dumb-init", "--", "python", "-m", "app.procfile"]
CMD ["web"]
