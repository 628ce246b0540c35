# Ray's image with batchseg and its dependencies at the versions of constraints.txt. Not built here.
#
# command:  docker build --build-arg PLATFORM=gpu --tag REGISTRY/batchseg:0.1.0-gpu .
#           docker build --build-arg PLATFORM=cpu --tag REGISTRY/batchseg:0.1.0-cpu .
#           docker push REGISTRY/batchseg:0.1.0-gpu && docker push REGISTRY/batchseg:0.1.0-cpu
# used by:  jobs/rayjob-train.yaml, jobs/rayjob-segment.yaml; may be named in cluster.yaml
# PLATFORM: gpu (with the CUDA libraries that TensorFlow wants) or cpu. Head and workers may differ in it, in nothing else.
ARG PLATFORM=gpu
FROM rayproject/ray:2.60.0-py311-${PLATFORM}
ARG PLATFORM

# Runs as `ray` (uid 1000), as the image that it stands on.
USER ray
WORKDIR /home/ray/batchseg

# The dependencies first, so that a change of code sends a small layer only.
COPY --chown=ray:users pyproject.toml constraints.txt ./
RUN python -c 'import sys, tomllib; \
project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
print("\n".join(project["dependencies"] + project["optional-dependencies"].get(sys.argv[1], [])))' "${PLATFORM}" \
      > /tmp/requirements.txt \
    && pip install --no-cache-dir --constraint constraints.txt --requirement /tmp/requirements.txt \
    && rm /tmp/requirements.txt

COPY --chown=ray:users README.md LICENSE ./
COPY --chown=ray:users batchseg batchseg
RUN pip install --no-cache-dir --no-deps .

WORKDIR /home/ray
