"""deploy/ held to others' schemas: Grafana's types, Compose's; a linter's verdict on Dockerfiles.

`deploy/schemas.sh` brings them; what is not there is skipped.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.deploy.chart import DEPLOY, SCHEMAS

MODULES = SCHEMAS / "node_modules"
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
OF_PROMETHEUS = ("expr", "titleFormat", "step")
"""What the Prometheus data source reads of an annotation; Grafana's schema leaves it to that."""
TYPES = """
import type { Dashboard } from './node_modules/@grafana/schema/dist/types/raw/dashboard/x/types.gen.d.ts';
import type { Options as timeseries, FieldConfig } from './node_modules/@grafana/schema/dist/types/raw/composable/timeseries/panelcfg/x/types.gen.d.ts';
import type { Options as stat } from './node_modules/@grafana/schema/dist/types/raw/composable/stat/panelcfg/x/types.gen.d.ts';
// JSON has the enums' values, not their names.
type Plain<T> = T extends string ? `${T}` : T extends number ? number : T extends boolean ? boolean
  : T extends (infer U)[] ? Plain<U>[] : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;
"""  # noqa: E501 - TypeScript has no way to break a path


def needs_schema(path: Path) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        not path.exists(), reason=f"{path.name} is not there (deploy/schemas.sh)"
    )


def type_errors(program: str, folder: Path) -> str:
    """What TypeScript says of `program`, which may import from node_modules."""
    (folder / "node_modules").symlink_to(MODULES)
    (folder / "check.ts").write_text(TYPES + program)
    flags = ("--noEmit", "--strict", "--skipLibCheck", "--allowImportingTsExtensions")
    modules = ("--module", "nodenext", "--moduleResolution", "nodenext", "--preserveSymlinks")
    compiler = str(MODULES / ".bin" / "tsc")
    done = subprocess.run(
        [compiler, *flags, *modules, "check.ts"], cwd=folder, capture_output=True, text=True
    )
    return done.stdout + done.stderr


def as_typescript(dashboard: dict[str, Any]) -> str:
    """Constants that have the types of Grafana's dashboards, panel options and field settings."""
    for annotation in dashboard["annotations"]["list"]:
        for field in OF_PROMETHEUS:
            del annotation[field]
    lines = [f"export const dashboard: Plain<Dashboard> = {json.dumps(dashboard)};"]
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            continue
        name, kind = f"panel{panel['id']}", panel["type"]
        options = json.dumps(panel["options"])
        lines.append(f"export const {name}: Plain<{kind}> = {options};")
        if kind == "timeseries":
            fields = json.dumps(panel["fieldConfig"]["defaults"]["custom"])
            lines.append(f"export const {name}Field: Plain<FieldConfig> = {fields};")
    return "\n".join(lines)


@needs_schema(MODULES / "@grafana")
@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_grafanas_types_accept_the_dashboards(file: Path, tmp_path: Path) -> None:
    assert type_errors(as_typescript(json.loads(file.read_text())), tmp_path) == ""


@needs_schema(MODULES / "@grafana")
def test_grafanas_types_refuse_what_is_wrong(tmp_path: Path) -> None:
    dashboard = json.loads(DASHBOARDS[0].read_text())
    dashboard["panels"][1]["gridPos"]["width"] = 3
    dashboard["panels"][-1]["options"]["legend"]["placement"] = "left"
    found = type_errors(as_typescript(dashboard), tmp_path)
    assert "'\"width\"' does not exist" in found and "left" in found


@needs_schema(SCHEMAS / "compose-spec.json")
def test_compose_is_of_its_schema() -> None:
    schema = json.loads((SCHEMAS / "compose-spec.json").read_text())
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    jsonschema.validate(compose, schema)


@needs_schema(SCHEMAS / "python" / "bin" / "hadolint")
@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_dockerfiles_are_without_reproach(kind: str) -> None:
    command = [
        str(SCHEMAS / "python" / "bin" / "hadolint"),
        str(DEPLOY / f"docker/Dockerfile.{kind}"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
