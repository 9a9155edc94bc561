{{/* A container's environment. Takes a dict of values by name. */}}
{{- define "tandem.env" -}}
{{- range $name, $value := . }}
- {name: {{ $name }}, value: {{ $value | toString | quote }}}
{{- end }}
{{- end }}

{{- define "tandem.containerSecurity" -}}
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
{{- end }}

{{- define "tandem.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ .Values.security.user }}
runAsGroup: {{ .Values.security.user }}
fsGroup: {{ .Values.security.user }}
# A shared volume of many files is not walked at each start.
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "tandem.mounts" -}}
{{- if .Values.storage.data.claim }}
- {name: data, mountPath: /data}
{{- end }}
{{- if .Values.storage.runs.claim }}
- {name: runs, mountPath: /runs}
{{- end }}
- {name: shm, mountPath: /dev/shm}
{{- end }}

{{/* Takes a dict: root, shmGiB. */}}
{{- define "tandem.volumes" -}}
{{- if .root.Values.storage.data.claim }}
- {name: data, persistentVolumeClaim: {claimName: {{ .root.Values.storage.data.claim }}}}
{{- end }}
{{- if .root.Values.storage.runs.claim }}
- {name: runs, persistentVolumeClaim: {claimName: {{ .root.Values.storage.runs.claim }}}}
{{- end }}
- {name: shm, emptyDir: {medium: Memory, sizeLimit: {{ .shmGiB }}Gi}}
{{- end }}

{{/* What head and workers have alike in a pod. Takes a dict: root, pod (the head, or a group). */}}
{{- define "tandem.place" -}}
terminationGracePeriodSeconds: {{ .pod.graceSeconds }}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.serviceAccount }}
serviceAccountName: {{ . }}
{{- end }}
{{- with .root.Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .pod.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .pod.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "tandem.podLabels" -}}
{{ include "tandem.selector" . }}
{{- with .Values.podLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* KubeRay's spec of a cluster: a head that trains nothing, and the groups. */}}
{{- define "tandem.rayCluster" -}}
{{- include "tandem.check" . -}}
{{- $scaled := include "tandem.autoscaled" . }}
{{- $store := mul .Values.ray.objectStoreGiB 1073741824 | toString -}}
rayVersion: {{ .Values.ray.version | quote }}
{{- if .Values.ray.token.enabled }}
authOptions:
  mode: token
  {{- with .Values.ray.token.secret }}
  secretName: {{ . }}
  {{- end }}
{{- else }}
authOptions: {mode: disabled}
{{- end }}
{{- if $scaled }}
enableInTreeAutoscaling: true
autoscalerOptions:
  version: v2
  idleTimeoutSeconds: {{ .Values.ray.idleSeconds }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  securityContext: {{- include "tandem.containerSecurity" . | nindent 4 }}
  resources:
    requests: {cpu: 500m, memory: 512Mi}
    limits: {cpu: "1", memory: 1Gi}
{{- end }}
headGroupSpec:
  rayStartParams:
    dashboard-host: 0.0.0.0
    metrics-export-port: "8080"
    num-cpus: "0"
    num-gpus: "0"
    object-store-memory: {{ $store | quote }}
  template:
    metadata:
      labels: {{- include "tandem.podLabels" . | nindent 8 }}
      {{- with .Values.head.annotations }}
      annotations: {{- toYaml . | nindent 8 }}
      {{- end }}
    spec:
      {{- include "tandem.place" (dict "root" . "pod" .Values.head) | nindent 6 }}
      # Ray's autoscaler, in this pod, asks Kubernetes for pods.
      automountServiceAccountToken: {{ if $scaled }}true{{ else }}false{{ end }}
      {{- with .Values.head.tolerations }}
      tolerations: {{- toYaml . | nindent 8 }}
      {{- end }}
      securityContext: {{- include "tandem.podSecurity" . | nindent 8 }}
      containers:
        - name: ray-head
          image: {{ include "tandem.image" . }}
          imagePullPolicy: {{ .Values.image.pullPolicy }}
          ports:
            - {name: gcs-server, containerPort: 6379}
            - {name: dashboard, containerPort: 8265}
            - {name: metrics, containerPort: 8080}
            - {name: as-metrics, containerPort: 44217}
            - {name: dash-metrics, containerPort: 44227}
            {{- range $i := until (int .Values.ports.discovery.count) }}
            - {name: discovery-{{ $i }}, containerPort: {{ add $.Values.ports.discovery.first $i }}}
            {{- end }}
          env: {{- include "tandem.env" .Values.env | nindent 12 }}
          {{- with .Values.envFrom }}
          envFrom: {{- toYaml . | nindent 12 }}
          {{- end }}
          lifecycle:
            preStop:
              exec:
                command:
                  - bash
                  - -c
                  - | {{- .Files.Get "files/stop-drivers.sh" | nindent 20 }}
          securityContext: {{- include "tandem.containerSecurity" . | nindent 12 }}
          resources:
            requests: {cpu: {{ .Values.head.cpu | quote }}, memory: {{ .Values.head.memory }}}
            limits: {cpu: {{ .Values.head.cpu | quote }}, memory: {{ .Values.head.memory }}}
          volumeMounts: {{- include "tandem.mounts" . | nindent 12 }}
      volumes: {{- include "tandem.volumes" (dict "root" . "shmGiB" .Values.head.shmGiB) | nindent 8 }}
workerGroupSpecs:
{{- range include "tandem.groups" . | fromYamlArray }}
{{- include "tandem.group" (dict "root" $ "pod" .) | nindent 2 }}
{{- end }}
{{- end }}

{{/* One group of workers. Takes a dict: root, pod (the group). */}}
{{- define "tandem.group" -}}
{{- $values := .root.Values }}
{{- $pod := .pod }}
{{- $network := dict "GLOO_SOCKET_IFNAME" $pod.interface "NCCL_SOCKET_IFNAME" $pod.interface }}
{{- if not $pod.gpus }}{{ $network = omit $network "NCCL_SOCKET_IFNAME" }}{{ end }}
{{- $env := mergeOverwrite (deepCopy $values.env) $network $pod.nccl $pod.env }}
{{- $devices := dict }}
{{- if $pod.gpus }}{{ $_ := set $devices $pod.gpuResource (toString $pod.gpus) }}{{ end }}
{{- if $pod.rdma.enabled }}{{ $_ := set $devices $pod.rdma.resource (toString $pod.rdma.count) }}{{ end }}
{{- $asked := merge (dict "cpu" (toString $pod.cpu) "memory" $pod.memory) $devices }}
- groupName: {{ $pod.name }}
  replicas: {{ $pod.min }}
  minReplicas: {{ $pod.min }}
  maxReplicas: {{ $pod.max }}
  rayStartParams:
    metrics-export-port: "8080"
    object-store-memory: {{ mul $values.ray.objectStoreGiB 1073741824 | toString | quote }}
  template:
    metadata:
      labels: {{- include "tandem.podLabels" .root | nindent 8 }}
      {{- with $pod.annotations }}
      annotations: {{- toYaml . | nindent 8 }}
      {{- end }}
    spec:
      {{- include "tandem.place" . | nindent 6 }}
      automountServiceAccountToken: false
      {{- if $pod.hostNetwork }}
      hostNetwork: true
      dnsPolicy: ClusterFirstWithHostNet
      {{- end }}
      {{- $tolerations := $pod.tolerations }}
      {{- if $pod.gpus }}
      {{- $tolerations = append $tolerations (dict "key" $pod.gpuResource "operator" "Exists" "effect" "NoSchedule") }}
      {{- end }}
      {{- with $tolerations }}
      tolerations: {{- toYaml . | nindent 8 }}
      {{- end }}
      securityContext: {{- include "tandem.podSecurity" .root | nindent 8 }}
      containers:
        - name: ray-worker
          image: {{ include "tandem.image" .root }}
          imagePullPolicy: {{ $values.image.pullPolicy }}
          ports:
            - {name: metrics, containerPort: 8080}
            {{- range $i := until (int $values.ports.ranks.perPod) }}
            - {name: rank-{{ $i }}, containerPort: {{ add $values.ports.ranks.first $i }}}
            {{- end }}
            {{- if eq $values.workload "service" }}
            - {name: serve, containerPort: 8000}
            {{- end }}
          env: {{- include "tandem.env" $env | nindent 12 }}
          {{- with $values.envFrom }}
          envFrom: {{- toYaml . | nindent 12 }}
          {{- end }}
          securityContext:
          {{- if $pod.rdma.enabled }}
            {{- if $pod.rdma.root }}
            runAsNonRoot: false
            runAsUser: 0
            {{- end }}
            allowPrivilegeEscalation: false
            # Memory that a network card reads must not move.
            capabilities: {drop: [ALL], add: [IPC_LOCK]}
          {{- else }}
            {{- include "tandem.containerSecurity" .root | nindent 12 }}
          {{- end }}
          resources:
            requests: {{- toYaml $asked | nindent 14 }}
            limits: {{- toYaml $asked | nindent 14 }}
          volumeMounts: {{- include "tandem.mounts" .root | nindent 12 }}
      volumes: {{- include "tandem.volumes" (dict "root" .root "shmGiB" $pod.shmGiB) | nindent 8 }}
{{- end }}
