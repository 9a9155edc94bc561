{{/* Labels of everything in a release. */}}
{{- define "tandem.labels" -}}
{{ include "tandem.selector" . }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* Labels of a release's pods, which services, policies and monitors select by. */}}
{{- define "tandem.selector" -}}
app.kubernetes.io/part-of: tandem
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* The groups, each with what `worker` says where it says nothing: a list, as YAML. */}}
{{- define "tandem.groups" -}}
{{- $all := list }}
{{- range .Values.groups }}
{{- $all = append $all (mergeOverwrite (deepCopy $.Values.worker) .) }}
{{- end }}
{{- toYaml $all }}
{{- end }}

{{/* "true" where a group grows and shrinks. */}}
{{- define "tandem.autoscaled" -}}
{{- range include "tandem.groups" . | fromYamlArray }}{{ if lt (int .min) (int .max) }}true{{ end }}{{ end }}
{{- end }}

{{- define "tandem.image" -}}
{{- $tag := ternary "cuda" "cpu" (gt (int .Values.command.gpus) 0) }}
{{- range include "tandem.groups" . | fromYamlArray }}{{ if .gpus }}{{ $tag = "cuda" }}{{ end }}{{ end }}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default $tag | toString) }}
{{- end }}

{{/* Mistakes that no schema sees, each in one line. */}}
{{- define "tandem.check" -}}
{{- $names := list }}
{{- $shares := list .Values.head.shmGiB }}
{{- range include "tandem.groups" . | fromYamlArray }}
{{- $names = append $names .name }}
{{- $shares = append $shares .shmGiB }}
{{- if gt (int .min) (int .max) }}
{{- fail (printf "group %s: min %d is above max %d" .name (int .min) (int .max)) }}
{{- end }}
{{- if and .rdma.enabled (not .gpus) }}
{{- fail (printf "group %s: rdma.enabled, and no GPUs that would use it" .name) }}
{{- end }}
{{- if gt (int .gpus) (int $.Values.ports.ranks.perPod) }}
{{- fail (printf "group %s: %d GPUs a pod, and metrics ports for %d ranks: ports.ranks.perPod" .name (int .gpus) (int $.Values.ports.ranks.perPod)) }}
{{- end }}
{{- end }}
{{- if not $names }}{{ fail (printf "workload %s has no groups of workers: see examples/" .Values.workload) }}{{ end }}
{{- if ne (len $names) (len (uniq $names)) }}{{ fail (printf "groups of one name: %s" (join ", " $names)) }}{{ end }}
{{- range $shares }}
{{- if le (int .) (int $.Values.ray.objectStoreGiB) }}
{{- fail (printf "shmGiB %d does not hold ray.objectStoreGiB %d: Ray would put its objects on disk" (int .) (int $.Values.ray.objectStoreGiB)) }}
{{- end }}
{{- end }}
{{- if gt (len .Release.Name) 47 }}
{{- fail (printf "release %s: KubeRay takes names of at most 47 characters" .Release.Name) }}
{{- end }}
{{- if and (eq .Values.workload "job") (not (regexMatch "^([0-9]+)(\\.\\.[0-9]+)?$" (toString .Values.job.workers))) }}
{{- fail (printf "job.workers %v: a number, or a range as 2..8" .Values.job.workers) }}
{{- end }}
{{- if and (eq .Values.workload "service") (not .Values.serve.importPath) (not .Values.serve.bundle) }}
{{- fail "serve.bundle is empty: which bundle shall the service answer from?" }}
{{- end }}
{{- end }}
